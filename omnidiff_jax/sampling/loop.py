"""The sampling loop: one jitted `while_loop` over steps for a whole ragged batch.

Each step runs the backbone once (on twice the rows under guidance), then the head and everything after it on the
masked rows of the running blocks. The carry holds no history: a position is written once, so that
`SampleResult.commit_step` is the history (`film`).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from omnidiff_jax import rng
from omnidiff_jax.errors import UserError
from omnidiff_jax.sampling.candidates import LOWEST
from omnidiff_jax.sampling.canvas import Canvas, bucket
from omnidiff_jax.sampling.config import Blocks, Confidence, SamplerConfig, Schedule
from omnidiff_jax.sampling.denoiser import Denoiser
from omnidiff_jax.sampling.guidance import stack_canvases
from omnidiff_jax.sampling.penalties import position_factor, seen_tokens
from omnidiff_jax.sampling.schedule import Plan, make_plan, total_steps
from omnidiff_jax.sampling.scoring import RowTables, prediction_sources, score_rows


@struct.dataclass
class SampleResult:
    """What was generated, and how.

    Attributes:
        tokens: int32 [B, L], the filled canvas.
        steps: int32 [B], steps in which the example committed something.
        commit_step: int32 [B, L], step at which a position was revealed; -1 for given (and never revealed) ones.
        confidence: float32 [B, L], confidence at that step; 0 where `commit_step` is -1.
        committed: int32 [B, S], positions chosen at each step.
    """

    tokens: jax.Array
    steps: jax.Array
    commit_step: jax.Array
    confidence: jax.Array
    committed: jax.Array


def sample(
    denoiser: Denoiser, canvas: Canvas, config: SamplerConfig, seed: int = 0, unconditional: Canvas | None = None
) -> SampleResult:
    """Fills the masked positions of `canvas`.

    Calls with equal shapes, model functions and config share compiled code, whatever the number of steps, schedule
    and blocks. An example's answer depends on the seed, its id and its own row, not on the batch around it (up to
    the rounding of matrix products of other sizes).

    Args:
        denoiser: the model.
        canvas: host arrays, from `build_canvas`.
        config: how to decode.
        seed: of the noise (temperatures above 0, random order); unused otherwise.
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
    static = _static(config, int(generate.sum()), canvas.generate.size, length)
    return _run(denoiser, canvas, plan, rng.stream(seed, "sampling"), **static)


def trace_sampler(denoiser: Denoiser, canvas: Canvas, config: SamplerConfig, *, rows: int, answer: int) -> Any:
    """What `sample` runs, traced and not executed: for compiling ahead of time.

    Args:
        denoiser: with abstract params (`jax.ShapeDtypeStruct`).
        canvas: of abstract arrays; under guidance the unconditional rows are in it too.
        config: how to decode.
        rows: B, canvases with an answer of their own.
        answer: positions to generate in each.
    """
    length = canvas.generate.shape[1]
    steps = total_steps(config, answer)

    def abstract(*shape: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    columns = abstract(rows, steps)
    plan: Any = Plan(abstract(rows, steps, dtype=jnp.float32), columns, columns, abstract(rows))
    key = jax.eval_shape(lambda: rng.stream(0, "sampling"))
    return _run.trace(denoiser, canvas, plan, key, **_static(config, rows * answer, canvas.generate.size, length))


def _static(config: SamplerConfig, masks: int, positions: int, length: int) -> dict[str, Any]:
    """The arguments that identify compiled code, for `masks` positions to generate among `positions`."""
    chunk = min(config.rows_per_chunk, max(1 << (masks - 1).bit_length(), 32))  # few sizes, few compilations
    capacity = chunk if masks <= chunk else bucket(positions, chunk)
    # What the plan already says is left out of the compiled code's identity.
    settings = dataclasses.replace(config, steps=None, steps_per_token=1.0, schedule=Schedule(), blocks=Blocks())
    return {"config": settings, "chunk": chunk, "capacity": capacity, "length": length}


def film(canvas: Canvas, result: SampleResult) -> np.ndarray:
    """The canvas after each step, int32 [S, B, L], for film strips; S steps until the last one's commit."""
    commit_step, tokens = np.asarray(result.commit_step), np.asarray(result.tokens)
    active = np.flatnonzero((np.asarray(result.committed) > 0).any(axis=0))
    steps = int(active.max(initial=-1)) + 1
    before = np.broadcast_to(np.asarray(canvas.inputs.tokens), (steps, *tokens.shape))
    revealed = (commit_step >= 0) & (commit_step <= np.arange(steps)[:, None, None])
    return np.where(revealed, tokens, before)


@functools.partial(jax.jit, static_argnames=("config", "chunk", "capacity", "length"))
def _run(
    denoiser: Denoiser,
    canvas: Canvas,
    plan: Plan,
    key: jax.Array,
    *,
    config: SamplerConfig,
    chunk: int,
    capacity: int,
    length: int,
) -> SampleResult:
    """See `sample`. `canvas` has 2B rows under guidance; the result has the first `length` positions of its first B."""
    batch, mask_id, ids = len(plan.steps), canvas.mask_id, canvas.example_ids[: len(plan.steps)]
    generate, answer_length = canvas.generate[:batch], canvas.answer_length[:batch]
    context = denoiser.prepare(denoiser.params, canvas)
    sources = prediction_sources(canvas, batch, denoiser.alignment, config.guidance)
    columns = jnp.arange(generate.shape[1])[None, :]
    offsets = columns - canvas.answer_start[:batch, None]
    in_answer = (offsets >= 0) & (offsets < answer_length[:, None])
    vocab_size = _vocab_size(denoiser, canvas, context)

    def running(carry: tuple[jax.Array, SampleResult]) -> jax.Array:
        step, result = carry
        masked = (generate & (result.tokens == mask_id)).any(axis=1)
        return (masked & (step < plan.steps)).any()

    def advance(carry: tuple[jax.Array, SampleResult]) -> tuple[jax.Array, SampleResult]:
        step, result = carry
        before = result.tokens
        masked = generate & (before == mask_id)
        ratio, start, stop = (jax.lax.dynamic_index_in_dim(x, step, 1) for x in (plan.ratio, plan.start, plan.stop))
        eligible = masked & (columns >= start) & (columns < stop)
        count = eligible.sum(axis=1, keepdims=True, dtype=jnp.int32)
        share = (count.astype(jnp.float32) * ratio).astype(jnp.int32)
        quota = jnp.minimum(jnp.maximum(share, 1), count)
        progress = step.astype(jnp.float32) / jnp.maximum(plan.steps, 1)

        def keys(name: str) -> jax.Array:
            return rng.sample_keys(rng.named(key, name), ids, jnp.full((batch,), step))

        tables = RowTables(
            groups=canvas.groups[:batch],
            allowed=canvas.allowed,
            seen=None
            if config.repetition.penalty == 1
            else seen_tokens(config.repetition, before, generate, in_answer, mask_id, step, vocab_size),
            factor=position_factor(config.position, offsets, answer_length, masked, progress),
            keys=keys("tokens") if config.filters.temperature > 0 else None,
        )
        hidden = denoiser.hidden(denoiser.params, _with_unconditional(canvas, before), context)
        head = functools.partial(denoiser.logits, denoiser.params)
        token, confidence = score_rows(head, hidden, sources, eligible, tables, mask_id, config, chunk, capacity)
        order = _order(confidence, config.confidence, functools.partial(keys, "order"), columns, progress)
        written = _most_confident(order, eligible, quota) & (token != mask_id)
        tokens = jnp.where(written, token, before)
        if config.stopping.end_id is not None:
            tail = _after_end(tokens, generate, mask_id, config.stopping.end_id)
            tokens = jnp.where(tail, config.stopping.end_id, tokens)
            written |= tail
        return step + 1, SampleResult(
            tokens=tokens,
            steps=result.steps + (quota[:, 0] > 0),
            commit_step=jnp.where(written, step, result.commit_step),
            confidence=jnp.where(written, confidence, result.confidence),
            committed=jax.lax.dynamic_update_slice_in_dim(result.committed, quota, step, 1),
        )

    empty = SampleResult(
        tokens=canvas.inputs.tokens[:batch],
        steps=jnp.zeros((batch,), jnp.int32),
        commit_step=jnp.full(generate.shape, -1, jnp.int32),
        confidence=jnp.zeros(generate.shape, jnp.float32),
        committed=jnp.zeros(plan.ratio.shape, jnp.int32),
    )
    _, result = jax.lax.while_loop(running, advance, (jnp.int32(0), empty))
    return dataclasses.replace(
        result,
        tokens=result.tokens[:, :length],
        commit_step=result.commit_step[:, :length],
        confidence=result.confidence[:, :length],
    )


def _vocab_size(denoiser: Denoiser, canvas: Canvas, context: object) -> int:
    """V, without running anything.

    Raises:
        UserError: allowed sets of another vocabulary.
    """
    hidden = jax.eval_shape(denoiser.hidden, denoiser.params, canvas.inputs.tokens, context)
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


def _order(confidence, settings: Confidence, keys, columns: jax.Array, progress: jax.Array) -> jax.Array:
    """float32 [B, L], what positions are ranked by: the confidence, with noise where there is a temperature."""
    if settings.kind != "origin" and settings.temperature == 0:
        return confidence
    each = jnp.broadcast_to(keys()[:, None], confidence.shape)
    uniform = rng.token_uniforms(each, jnp.broadcast_to(columns, confidence.shape))
    if settings.kind == "origin":
        return uniform
    tiny = jnp.finfo(jnp.float32).tiny
    gumbel = -jnp.log(-jnp.log(jnp.maximum(uniform, tiny)))
    fade = 1.0 - progress[:, None] if settings.anneal == "linear" else 1.0
    return confidence + settings.temperature * fade * gumbel


def _most_confident(order: jax.Array, eligible: jax.Array, quota: jax.Array) -> jax.Array:
    """bool [B, L]: the `quota` [B, 1] eligible positions of highest order, the earlier one on ties."""
    order = jnp.where(jnp.isnan(order), LOWEST, jnp.maximum(order, LOWEST))
    ranking = jnp.argsort(jnp.where(eligible, -order, jnp.inf), axis=1, stable=True)
    rank = jnp.argsort(ranking, axis=1)
    return eligible & (rank < quota)


def _after_end(tokens: jax.Array, generate: jax.Array, mask_id: int, end_id: int) -> jax.Array:
    """bool [B, L]: the masked positions of examples with a generated `end_id` before their first mask."""
    masked = generate & (tokens == mask_id)
    settled = jnp.cumsum(masked, axis=1) == 0
    return masked & (settled & generate & (tokens == end_id)).any(axis=1, keepdims=True)
