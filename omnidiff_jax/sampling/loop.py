"""The sampling loop: one jitted `while_loop` over steps for a whole ragged batch.

Each step runs the backbone once (on twice the rows under guidance), then the head and everything after it on the
masked rows of the running blocks. The carry holds the states of strategies and no history: what stands at a position
was written once, so that `SampleResult.commit_step` is the history (`results.film`).
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
from omnidiff_jax.sampling.cache import Call, Layout
from omnidiff_jax.sampling.candidates import Span
from omnidiff_jax.sampling.canvas import Canvas, bucket
from omnidiff_jax.sampling.config import SamplerConfig
from omnidiff_jax.sampling.denoiser import Denoiser
from omnidiff_jax.sampling.guidance import stack_canvases
from omnidiff_jax.sampling.plan import Plan, make_plan, total_steps
from omnidiff_jax.sampling.results import SampleResult
from omnidiff_jax.sampling.reveal import Look
from omnidiff_jax.sampling.schedule import Blocks, Schedule
from omnidiff_jax.sampling.scoring import RowTables, prediction_sources, score_rows


class Carry(NamedTuple):
    """What a step hands to the next.

    Attributes:
        calls: int32 [], of the model so far.
        step: int32 [B], steps of each answer so far.
        column: int32 [B], where each answer is in its plan: its step, unless blocks were done early.
        result: what was generated so far.
        reveal: state of the `Reveal`.
        cache: state of the `Cache`.
    """

    calls: jax.Array
    step: jax.Array
    column: jax.Array
    result: SampleResult
    reveal: Any
    cache: Any


class Compiled(NamedTuple):
    """What identifies compiled code, besides shapes.

    Attributes:
        config: without what the plan says.
        chunk: rows of logits that exist at once.
        capacity: a multiple of it, at least the number of positions that a step looks at.
        span: ids whose logits are computed, None = all.
    """

    config: SamplerConfig
    chunk: int
    capacity: int
    span: Span | None


def sample(
    denoiser: Denoiser,
    canvas: Canvas,
    config: SamplerConfig,
    seed: int | Sequence[int] = 0,
    unconditional: Canvas | None = None,
    most_steps: int | None = None,
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
    return _run(denoiser, canvas, plan, rng.streams(seeds, "sampling"), code=code, length=length)


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
    layout = Layout(length, every, every, every + answer, min(config.blocks.size, answer))
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
    return Layout(canvas.generate.shape[1], start, asked, np.maximum(last, start + size), block)


def compiled(config: SamplerConfig, masks: int, positions: int, span: Span | None) -> Compiled:
    """The identity of the code that fills `masks` of `positions` positions."""
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
    return Carry(jnp.int32(0), none, none, empty, config.reveal.init(generate), config.cache.init(denoiser, canvas))


def unfinished(canvas: Canvas, plan: Plan, carry: Carry) -> jax.Array:
    """bool [B]: answers that hold a mask and have steps left."""
    masked = (canvas.generate[: len(plan.steps)] & (carry.result.tokens == canvas.mask_id)).any(axis=1)
    return masked & (carry.column < plan.steps)


def advance(denoiser: Denoiser, canvas: Canvas, plan: Plan, noise: jax.Array, carry: Carry, code: Compiled) -> Carry:
    """One step of every answer that has one left; each is where it is in its own plan.

    Args:
        denoiser: the model.
        canvas: R rows, B and under guidance as many unconditional ones.
        plan: of the B answers.
        noise: keys [B].
        carry: of the step before.
        code: static.
    """
    config, batch, mask_id = code.config, len(plan.steps), canvas.mask_id
    names, generate, answer_length = canvas.example_ids[:batch], canvas.generate[:batch], canvas.answer_length[:batch]
    sources = prediction_sources(canvas, batch, denoiser.alignment, config.guidance)
    columns = jnp.arange(generate.shape[1])[None, :]
    offsets = columns - canvas.answer_start[:batch, None]
    in_answer = (offsets >= 0) & (offsets < answer_length[:, None])
    step, result, before = carry.step[:, None], carry.result, carry.result.tokens
    masked = generate & (before == mask_id)
    at = jnp.minimum(carry.column, plan.ratio.shape[1] - 1)[:, None]
    ratio, start, stop = (jnp.take_along_axis(x, at, axis=1) for x in (plan.ratio, plan.start, plan.stop))
    running_block = (columns >= start) & (columns < stop) & (carry.column < plan.steps)[:, None]
    call = _call(canvas, carry.calls, start[:, 0], jnp.where(carry.column < plan.steps, stop[:, 0], start[:, 0]))
    vocab_size = _vocab_size(denoiser, canvas, config, carry.cache, call)
    eligible = masked & running_block
    count = eligible.sum(axis=1, keepdims=True, dtype=jnp.int32)
    share = (count.astype(jnp.float32) * ratio).astype(jnp.int32)
    quota = jnp.minimum(jnp.maximum(share, 1), count)
    progress = carry.column.astype(jnp.float32) / jnp.maximum(plan.steps, 1)
    # At a block's last step nothing can be masked again.
    written = generate & ~masked & running_block & (count > 0) & (ratio < 1)
    written = config.reveal.revisits(written, carry.reveal)

    def keys(name: str) -> jax.Array:
        return jax.vmap(lambda key, i, n: rng.sample_keys(rng.named(key, name), i, n))(noise, names, carry.step)

    tables = RowTables(
        groups=canvas.groups[:batch],
        allowed=canvas.allowed,
        seen=config.repetition.seen(before, generate, in_answer, mask_id, step, vocab_size),
        factor=config.position.factor(offsets, answer_length, masked, progress),
        keys=keys("tokens") if config.filters.draws else None,
    )
    hidden, cache = config.cache.hidden(denoiser, _with_unconditional(canvas, before), carry.cache, call)
    ids = code.span or Span(0, vocab_size, False)
    head = functools.partial(denoiser.logits, denoiser.params, start=ids.start, stop=ids.stop)
    scored = eligible | written
    token, confidence = score_rows(
        head, hidden, sources, scored, tables, mask_id, config, code.chunk, code.capacity, ids
    )

    def uniforms() -> jax.Array:
        each = jnp.broadcast_to(keys("order")[:, None], confidence.shape)
        return rng.token_uniforms(each, jnp.broadcast_to(columns, confidence.shape))

    if plan.order is None:
        order = config.confidence.order(confidence, uniforms, progress)
    else:
        order = jnp.pad(plan.order, [(0, 0), (0, generate.shape[1] - plan.order.shape[1])])
    sure = config.confidence.share(confidence)
    decision = config.reveal.decide(
        Look(eligible, written, before, token, confidence, sure, order, quota), carry.reveal
    )
    revealed = decision.reveal & (token != mask_id)
    after = jnp.where(revealed, token, jnp.where(decision.mask, mask_id, before))
    tokens = config.stopping.settle(after, generate, mask_id, token, confidence)
    revealed |= tokens != after
    chosen = decision.reveal.sum(axis=1, dtype=jnp.int32)
    kept = ~decision.mask
    # An answer that is done takes no more steps; its last number of them lies beyond the table.
    committed = result.committed.at[jnp.arange(batch), carry.step].add(chosen, mode="drop")
    result = SampleResult(
        tokens=tokens,
        steps=result.steps + (chosen > 0),
        commit_step=jnp.where(revealed, step, jnp.where(kept, result.commit_step, -1)),
        confidence=jnp.where(revealed, confidence, jnp.where(kept, result.confidence, 0.0)),
        committed=committed,
    )
    column = carry.column + 1
    if config.reveal.early:
        column = _next_column(plan, column, generate & (tokens == mask_id))
    return Carry(carry.calls + 1, carry.step + 1, column, result, decision.state, cache)


def _call(canvas: Canvas, number: jax.Array, start: jax.Array, stop: jax.Array) -> Call:
    """The step as a cache sees it, from the running blocks [B] of the conditional rows."""
    batch = len(start)
    if len(canvas.answer_start) == batch:
        return Call(number, start, stop)
    shift = canvas.answer_start[batch:] - canvas.answer_start[:batch]
    return Call(number, *(jnp.concatenate([x, x + shift]) for x in (start, stop)))


def _vocab_size(denoiser: Denoiser, canvas: Canvas, config: SamplerConfig, state: Any, call: Call) -> int:
    """V, without running anything.

    Raises:
        UserError: allowed sets of another vocabulary.
    """
    hidden, _ = jax.eval_shape(config.cache.hidden, denoiser, canvas.inputs.tokens, state, call)
    row = jax.ShapeDtypeStruct((1, hidden.shape[-1]), hidden.dtype)
    size = jax.eval_shape(denoiser.logits, denoiser.params, row).shape[-1]
    if canvas.allowed is not None and canvas.allowed.shape[1] != size:
        raise UserError(f"allowed sets over {canvas.allowed.shape[1]} ids, but the model's vocabulary has {size}")
    return size


def _with_unconditional(canvas: Canvas, tokens: jax.Array) -> jax.Array:
    """`tokens` [B, L], followed under guidance by the unconditional rows holding the same answers: [R, L]."""
    batch, length = tokens.shape
    if canvas.generate.shape[0] == batch:
        return tokens
    shift = canvas.answer_start[:batch] - canvas.answer_start[batch:]
    column = jnp.clip(jnp.arange(length)[None, :] + shift[:, None], 0, length - 1)
    answers = jnp.take_along_axis(tokens, column, axis=1)
    return jnp.concatenate([tokens, jnp.where(canvas.generate[batch:], answers, canvas.inputs.tokens[batch:])])


def _next_column(plan: Plan, column: jax.Array, masked: jax.Array) -> jax.Array:
    """int32 [B]: the first column from `column` [B] on whose block has a mask left, S where there is none.

    `masked` is bool [B, L].
    """
    before = jnp.pad(jnp.cumsum(masked, axis=1, dtype=jnp.int32), [(0, 0), (1, 0)])
    left = jnp.take_along_axis(before, plan.stop, axis=1) - jnp.take_along_axis(before, plan.start, axis=1)
    numbers = jnp.arange(left.shape[1], dtype=jnp.int32)[None, :]
    return jnp.where((left > 0) & (numbers >= column[:, None]), numbers, left.shape[1]).min(axis=1)
