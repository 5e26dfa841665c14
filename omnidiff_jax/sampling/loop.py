"""The sampling loop: one jitted `while_loop` over steps for a whole ragged batch.

Each call runs the backbone once (on twice the rows under guidance), then the head and everything after it on the
masked rows of the running blocks (`step.py`). It is one step of every answer, or several where drafts are confirmed
(`drafting.py`). The carry holds the states of strategies and no history: what stands at a position was written once,
so that `SampleResult.commit_step` is the history (`results.film`).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from omnidiff_jax import rng
from omnidiff_jax.errors import UserError
from omnidiff_jax.sampling.cache import Layout
from omnidiff_jax.sampling.candidates import Span
from omnidiff_jax.sampling.canvas import Canvas, bucket
from omnidiff_jax.sampling.config import SamplerConfig
from omnidiff_jax.sampling.denoiser import Denoiser
from omnidiff_jax.sampling.drafting import chosen, parted, repeated, stacked
from omnidiff_jax.sampling.guidance import stack_canvases
from omnidiff_jax.sampling.plan import Plan, make_plan, total_steps
from omnidiff_jax.sampling.results import SampleResult
from omnidiff_jax.sampling.schedule import Blocks, Schedule
from omnidiff_jax.sampling.step import Compiled, Standing, commit, look, predict
from omnidiff_jax.sharding.spread import Spread


class Carry(NamedTuple):
    """What a call hands to the next.

    Attributes:
        calls: int32 [], of the model so far.
        step, column, result, reveal: as in `Standing`.
        drafting: what the `Drafting` kept of the last call.
        cache: state of the `Cache`.
    """

    calls: jax.Array
    step: jax.Array
    column: jax.Array
    result: SampleResult
    reveal: Any
    drafting: Any
    cache: Any


def sample(
    denoiser: Denoiser,
    canvas: Canvas,
    config: SamplerConfig,
    seed: int | Sequence[int] = 0,
    unconditional: Canvas | None = None,
    most_steps: int | None = None,
    spread: Spread | None = None,
) -> SampleResult:
    """Fills the masked positions of `canvas`.

    Calls with equal shapes, model functions and config share compiled code, whatever the number of steps, schedule
    and blocks. An example's answer depends on its seed, its id and its own row, not on the batch around it (up to
    the rounding of matrix products of other sizes).

    Args:
        denoiser: the model.
        canvas: host arrays, from `build_canvas`.
        config: how to decode.
        seed: of the noise (temperatures above 0, random order), unused otherwise; one for all examples or for each.
        unconditional: from `unconditional_canvas`; needed by guidance, else ignored.
        most_steps: as many of the planned steps are taken, and what they leave stays masked: to compile without the
            wait. None = all.
        spread: lays the rows of an even batch over the processes of a mesh; each gets the whole result. None = this
            process's devices.

    Raises:
        UserError: guidance without `unconditional`, allowed sets over another vocabulary than the model's, or a cache
            that cannot serve the canvas.
    """
    generate = np.asarray(canvas.generate)
    plan = make_plan(config, generate, np.asarray(canvas.answer_start), np.asarray(canvas.answer_length))
    if most_steps is not None:
        plan = plan._replace(steps=np.minimum(plan.steps, np.int32(most_steps)))
    length = generate.shape[1]
    allowed = None if canvas.allowed is None else np.asarray(canvas.allowed)
    span = config.candidates.span(allowed, np.asarray(canvas.groups)[generate])
    if config.guidance.scale > 0:
        if unconditional is None:
            raise UserError(
                f"guidance.scale = {config.guidance.scale} needs an unconditional canvas: build one with "
                "unconditional_canvas, or set guidance.scale = 0"
            )
        canvas = stack_canvases(canvas, unconditional)
    config = dataclasses.replace(config, cache=config.cache.fitted(_layout(canvas, plan, config)))
    code = compiled(config, int(generate.sum()), canvas.generate.size, span)
    rows = len(plan.steps)
    seeds = [*seed, *[0] * (rows - len(seed))] if isinstance(seed, Sequence) else [seed] * rows
    noise = rng.streams(seeds, "sampling")
    if spread is None:
        return _run(denoiser, canvas, plan, noise, code=code, length=length)
    with spread.entered():
        return spread.gathered(_run(denoiser, *spread.laid((canvas, plan)), noise, code=code, length=length))


def trace_sampler(
    denoiser: Denoiser, canvas: Canvas, config: SamplerConfig, *, rows: int, answer: int, span: Span | None = None
) -> Any:
    """What `sample` runs, traced and not executed: for compiling ahead of time.

    Args:
        denoiser: with abstract params (`jax.ShapeDtypeStruct`).
        canvas: of abstract arrays; under guidance the unconditional rows are in it too.
        config: how to decode.
        rows: B, canvases with an answer of their own.
        answer: positions to generate in each.
        span: ids whose logits are computed, None = all.
    """
    length = canvas.generate.shape[1]
    steps = total_steps(config, answer)

    def abstract(*shape: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    columns = abstract(rows, steps)
    fixed = config.confidence.planned(np.ones(answer, bool)) is not None
    order = abstract(rows, length, dtype=jnp.float32) if fixed else None
    plan: Any = Plan(abstract(rows, steps, dtype=jnp.float32), columns, columns, abstract(rows), order)
    noise = jax.eval_shape(lambda: rng.streams([0] * rows, "sampling"))
    every: Any = np.zeros(len(canvas.generate), np.int32)
    layout = Layout(length, every, every, every + answer, every + answer, min(config.blocks.size, answer))
    config = dataclasses.replace(config, cache=config.cache.fitted(layout))
    code = compiled(config, rows * answer, canvas.generate.size, span)
    return _run.trace(denoiser, canvas, plan, noise, code=code, length=length)


def _layout(canvas: Canvas, plan: Plan, config: SamplerConfig) -> Layout:
    """What a cache is told of `canvas`, host arrays of R rows."""
    start, size = np.asarray(canvas.answer_start), np.asarray(canvas.answer_length)
    batch = len(plan.steps)
    asked, last = start.copy(), start + size
    if len(start) > batch:
        shift: Any = (start[batch:] - start[:batch])[:, None]
        ends: Any = (start[:batch, None], last[:batch, None])
        partners = [config.guidance.partners(x, shift) for x in ends]
        asked[batch:], last[batch:] = (np.asarray(x)[:, 0] for x in partners)
    block = int((plan.stop - plan.start).max(initial=0)) if config.blocks.size else 0
    held = (np.asarray(canvas.inputs.segment_ids) > 0).sum(axis=1)
    return Layout(canvas.generate.shape[1], start, asked, np.maximum(last, start + size), held, block)


def compiled(config: SamplerConfig, masks: int, positions: int, span: Span | None) -> Compiled:
    """The identity of the code that fills `masks` of `positions` positions."""
    masks, positions = masks * config.drafting.rows, positions * config.drafting.rows
    chunk = min(config.rows_per_chunk, max(1 << (masks - 1).bit_length(), 32))  # few sizes, few compilations
    capacity = chunk if masks <= chunk else bucket(positions, chunk)
    settings = dataclasses.replace(config, steps=None, steps_per_token=1.0, schedule=Schedule(), blocks=Blocks())
    return Compiled(settings, chunk, capacity, span)


@functools.partial(jax.jit, static_argnames=("code", "length"))
def _run(
    denoiser: Denoiser, canvas: Canvas, plan: Plan, noise: jax.Array, *, code: Compiled, length: int
) -> SampleResult:
    """See `sample`.

    `noise` is B keys. `canvas` has 2B rows under guidance; the result has the first `length` positions of its first B.
    """

    def running(carry: Carry) -> jax.Array:
        return unfinished(canvas, plan, carry).any()

    def next_step(carry: Carry) -> Carry:
        return advance(denoiser, canvas, plan, noise, carry, code)

    result = jax.lax.while_loop(running, next_step, begin(denoiser, canvas, plan, code.config)).result
    return dataclasses.replace(
        result,
        tokens=result.tokens[:, :length],
        commit_step=result.commit_step[:, :length],
        confidence=result.confidence[:, :length],
    )


def begin(denoiser: Denoiser, canvas: Canvas, plan: Plan, config: SamplerConfig) -> Carry:
    """What is there before the first step; arguments as `advance`'s."""
    batch = len(plan.steps)
    generate, none = canvas.generate[:batch], jnp.zeros((batch,), jnp.int32)
    empty = SampleResult(
        tokens=canvas.inputs.tokens[:batch],
        steps=none,
        commit_step=jnp.full(generate.shape, -1, jnp.int32),
        confidence=jnp.zeros(generate.shape, jnp.float32),
        committed=jnp.zeros(plan.ratio.shape, jnp.int32),
    )
    reveal = config.reveal.init(generate)
    drafting = config.drafting.init(generate, canvas.mask_id, config.reveal.compared)
    return Carry(jnp.int32(0), none, none, empty, reveal, drafting, config.cache.init(denoiser, canvas))


def unfinished(canvas: Canvas, plan: Plan, carry: Carry) -> jax.Array:
    """bool [B]: answers that hold a mask and have steps left."""
    masked = (canvas.generate[: len(plan.steps)] & (carry.result.tokens == canvas.mask_id)).any(axis=1)
    return masked & (carry.column < plan.steps)


def advance(denoiser: Denoiser, canvas: Canvas, plan: Plan, noise: jax.Array, carry: Carry, code: Compiled) -> Carry:
    """One call of the model: a step of every answer that has one left, and as many more as its drafts turn out right.

    Each answer is where it is in its own plan.

    Args:
        denoiser: the model.
        canvas: R rows, B and under guidance as many unconditional ones.
        plan: of the B answers.
        noise: keys [B].
        carry: of the call before.
        code: static.
    """
    config, batch = code.config, len(plan.steps)
    rows = config.drafting.rows
    begun = Standing(carry.step, carry.column, carry.result, carry.reveal)
    follow = functools.partial(commit, canvas, plan, noise, config)
    states = [begun]
    for _ in range(1, rows):
        states.append(follow(carry.drafting, states[-1]))
    wide = repeated(dataclasses.replace(canvas, allowed=None), batch, rows)
    plans, noises, kept = repeated((plan, noise, carry.cache), batch, rows)
    wide = dataclasses.replace(wide, allowed=canvas.allowed)
    predictions, cache = predict(denoiser, wide, plans, noises, stacked(states), carry.calls, kept, code)
    last, *others = parted(predictions, rows)
    now, agreed = follow(last, begun), jnp.ones((batch,), bool)
    for draft, ahead in zip(states[1:], others, strict=True):
        looked = look(canvas, plan, config, now)
        same = (now.result.tokens == draft.result.tokens) & (looked.scored == ahead.scored)
        agreed &= same.all(axis=1) & (now.column == draft.column)
        last, now = chosen(agreed, (ahead, follow(ahead, now)), (last, now))
    # Of the steps of a call one counts.
    result = dataclasses.replace(now.result, steps=jnp.minimum(now.result.steps, begun.result.steps + 1))
    drafting = config.drafting.keep(last, canvas.mask_id)
    cache = cache if rows == 1 else carry.cache
    return Carry(carry.calls + 1, now.step, now.column, result, now.reveal, drafting, cache)
