"""The sampling loop: one jitted `while_loop` over steps for a whole ragged batch.

Each step runs the backbone once (on twice the rows under guidance), then the head and everything after it on the
masked rows of the running blocks. The carry holds the state of the cache and no history: a position is written once,
so that `SampleResult.commit_step` is the history (`results.film`).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omnidiff_jax import rng
from omnidiff_jax.errors import UserError
from omnidiff_jax.sampling.candidates import Span
from omnidiff_jax.sampling.canvas import Canvas, bucket
from omnidiff_jax.sampling.config import SamplerConfig
from omnidiff_jax.sampling.denoiser import Denoiser
from omnidiff_jax.sampling.guidance import stack_canvases
from omnidiff_jax.sampling.plan import Plan, make_plan, total_steps
from omnidiff_jax.sampling.results import SampleResult
from omnidiff_jax.sampling.rows import LOWEST
from omnidiff_jax.sampling.schedule import Blocks, Schedule
from omnidiff_jax.sampling.scoring import RowTables, prediction_sources, score_rows

Carry = tuple[jax.Array, SampleResult, Any]
"""Number of the step, what was generated so far, state of the cache."""


def sample(
    denoiser: Denoiser,
    canvas: Canvas,
    config: SamplerConfig,
    seed: int | Sequence[int] = 0,
    unconditional: Canvas | None = None,
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

    Raises:
        UserError: guidance without `unconditional`, or allowed sets over another vocabulary than the model's.
    """
    generate = np.asarray(canvas.generate)
    plan = make_plan(config, generate, np.asarray(canvas.answer_start), np.asarray(canvas.answer_length))
    length = generate.shape[1]
    if config.guidance.scale > 0:
        if unconditional is None:
            raise UserError(
                f"guidance.scale = {config.guidance.scale} needs an unconditional canvas: build one with "
                "unconditional_canvas, or set guidance.scale = 0"
            )
        canvas = stack_canvases(canvas, unconditional)
    allowed = None if canvas.allowed is None else np.asarray(canvas.allowed)
    span = config.candidates.span(allowed, np.asarray(canvas.groups)[: len(generate)][generate])
    static = _static(config, int(generate.sum()), canvas.generate.size, length, span)
    rows = len(plan.steps)
    seeds = [*seed, *[0] * (rows - len(seed))] if isinstance(seed, Sequence) else [seed] * rows
    return _run(denoiser, canvas, plan, rng.streams(seeds, "sampling"), **static)


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
    plan: Any = Plan(abstract(rows, steps, dtype=jnp.float32), columns, columns, abstract(rows))
    noise = jax.eval_shape(lambda: rng.streams([0] * rows, "sampling"))
    return _run.trace(
        denoiser, canvas, plan, noise, **_static(config, rows * answer, canvas.generate.size, length, span)
    )


def _static(config: SamplerConfig, masks: int, positions: int, length: int, span: Span | None) -> dict[str, Any]:
    """The arguments that identify compiled code, for `masks` positions to generate among `positions`."""
    chunk = min(config.rows_per_chunk, max(1 << (masks - 1).bit_length(), 32))  # few sizes, few compilations
    capacity = chunk if masks <= chunk else bucket(positions, chunk)
    # What the plan already says is left out of the compiled code's identity.
    settings = dataclasses.replace(config, steps=None, steps_per_token=1.0, schedule=Schedule(), blocks=Blocks())
    return {"config": settings, "chunk": chunk, "capacity": capacity, "length": length, "span": span}


@functools.partial(jax.jit, static_argnames=("config", "chunk", "capacity", "length", "span"))
def _run(
    denoiser: Denoiser,
    canvas: Canvas,
    plan: Plan,
    noise: jax.Array,
    *,
    config: SamplerConfig,
    chunk: int,
    capacity: int,
    length: int,
    span: Span | None,
) -> SampleResult:
    """See `sample`.

    `noise` is B keys. `canvas` has 2B rows under guidance; the result has the first `length` positions of its first B.
    """
    batch, mask_id, names = len(plan.steps), canvas.mask_id, canvas.example_ids[: len(plan.steps)]
    generate, answer_length = canvas.generate[:batch], canvas.answer_length[:batch]
    state = config.cache.init(denoiser, canvas)
    sources = prediction_sources(canvas, batch, denoiser.alignment, config.guidance)
    columns = jnp.arange(generate.shape[1])[None, :]
    offsets = columns - canvas.answer_start[:batch, None]
    in_answer = (offsets >= 0) & (offsets < answer_length[:, None])
    vocab_size = _vocab_size(denoiser, canvas, config, state)

    def running(carry: Carry) -> jax.Array:
        step, result, _ = carry
        masked = (generate & (result.tokens == mask_id)).any(axis=1)
        return (masked & (step < plan.steps)).any()

    def advance(carry: Carry) -> Carry:
        step, result, state = carry
        before = result.tokens
        masked = generate & (before == mask_id)
        ratio, start, stop = (jax.lax.dynamic_index_in_dim(x, step, 1) for x in (plan.ratio, plan.start, plan.stop))
        eligible = masked & (columns >= start) & (columns < stop)
        count = eligible.sum(axis=1, keepdims=True, dtype=jnp.int32)
        share = (count.astype(jnp.float32) * ratio).astype(jnp.int32)
        quota = jnp.minimum(jnp.maximum(share, 1), count)
        progress = step.astype(jnp.float32) / jnp.maximum(plan.steps, 1)

        def keys(name: str) -> jax.Array:
            return jax.vmap(lambda key, i: rng.sample_keys(rng.named(key, name), i, step))(noise, names)

        tables = RowTables(
            groups=canvas.groups[:batch],
            allowed=canvas.allowed,
            seen=config.repetition.seen(before, generate, in_answer, mask_id, step, vocab_size),
            factor=config.position.factor(offsets, answer_length, masked, progress),
            keys=keys("tokens") if config.filters.draws else None,
        )
        hidden, state = config.cache.hidden(denoiser, _with_unconditional(canvas, before), state, step)
        ids = span or Span(0, vocab_size, False)
        head = functools.partial(denoiser.logits, denoiser.params, start=ids.start, stop=ids.stop)
        token, confidence = score_rows(head, hidden, sources, eligible, tables, mask_id, config, chunk, capacity, ids)

        def uniforms() -> jax.Array:
            each = jnp.broadcast_to(keys("order")[:, None], confidence.shape)
            return rng.token_uniforms(each, jnp.broadcast_to(columns, confidence.shape))

        order = config.confidence.order(confidence, uniforms, progress)
        written = _most_confident(order, eligible, quota) & (token != mask_id)
        revealed = jnp.where(written, token, before)
        tokens = config.stopping.settle(revealed, generate, mask_id, token, confidence)
        written |= tokens != revealed
        result = SampleResult(
            tokens=tokens,
            steps=result.steps + (quota[:, 0] > 0),
            commit_step=jnp.where(written, step, result.commit_step),
            confidence=jnp.where(written, confidence, result.confidence),
            committed=jax.lax.dynamic_update_slice_in_dim(result.committed, quota, step, 1),
        )
        return step + 1, result, state

    empty = SampleResult(
        tokens=canvas.inputs.tokens[:batch],
        steps=jnp.zeros((batch,), jnp.int32),
        commit_step=jnp.full(generate.shape, -1, jnp.int32),
        confidence=jnp.zeros(generate.shape, jnp.float32),
        committed=jnp.zeros(plan.ratio.shape, jnp.int32),
    )
    _, result, _ = jax.lax.while_loop(running, advance, (jnp.int32(0), empty, state))
    return dataclasses.replace(
        result,
        tokens=result.tokens[:, :length],
        commit_step=result.commit_step[:, :length],
        confidence=result.confidence[:, :length],
    )


def _vocab_size(denoiser: Denoiser, canvas: Canvas, config: SamplerConfig, state: Any) -> int:
    """V, without running anything.

    Raises:
        UserError: allowed sets of another vocabulary.
    """
    hidden, _ = jax.eval_shape(config.cache.hidden, denoiser, canvas.inputs.tokens, state, jnp.int32(0))
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


def _most_confident(order: jax.Array, eligible: jax.Array, quota: jax.Array) -> jax.Array:
    """bool [B, L]: the `quota` [B, 1] eligible positions of highest order, the earlier one on ties."""
    order = jnp.where(jnp.isnan(order), LOWEST, jnp.maximum(order, LOWEST))
    ranking = jnp.argsort(jnp.where(eligible, -order, jnp.inf), axis=1, stable=True)
    rank = jnp.argsort(ranking, axis=1)
    return eligible & (rank < quota)
