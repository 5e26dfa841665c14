"""A step in two halves: what the model predicts where an answer stands, and what follows from predictions.

The first half is the call of the model. The second is cheap and row by row, and can be taken on a guess.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from omnidiff_jax import rng
from omnidiff_jax.errors import UserError
from omnidiff_jax.sampling.cache import Call
from omnidiff_jax.sampling.candidates import Span
from omnidiff_jax.sampling.canvas import Canvas
from omnidiff_jax.sampling.config import SamplerConfig
from omnidiff_jax.sampling.denoiser import Denoiser
from omnidiff_jax.sampling.drafting import Predictions
from omnidiff_jax.sampling.plan import Plan
from omnidiff_jax.sampling.results import SampleResult
from omnidiff_jax.sampling.reveal import Look
from omnidiff_jax.sampling.scoring import RowTables, prediction_sources, score_rows


class Standing(NamedTuple):
    """Where answers are.

    Attributes:
        step: int32 [B], steps of each answer so far.
        column: int32 [B], where each answer is in its plan: its step, unless blocks were done early.
        result: what was generated so far.
        reveal: state of the `Reveal`.
    """

    step: jax.Array
    column: jax.Array
    result: SampleResult
    reveal: Any


class Compiled(NamedTuple):
    """What identifies compiled code, besides shapes.

    Attributes:
        config: without what the plan says.
        chunk: rows of logits that exist at once.
        capacity: a multiple of it, at least the number of positions that a step looks at.
        span: ids whose logits are computed, None = all.
        rest: numbers of rows that are looked at together where less than a chunk is left; None = `rest_sizes`.
    """

    config: SamplerConfig
    chunk: int
    capacity: int
    span: Span | None
    rest: tuple[int, ...] | None = None

    def steady(self, rows: int) -> "Compiled":
        """The code that scores `rows` rows together, however many there are.

        A product of matrices of another size is rounded otherwise, and that may decide between two positions of which
        the model is as sure: what an answer is must not depend on how many others are scored beside it.
        """
        chunk = min(self.chunk, max(1 << (rows - 1).bit_length(), 32))
        return self._replace(chunk=chunk, capacity=-(-self.capacity // chunk) * chunk, rest=(chunk,))


class Looked(NamedTuple):
    """Which positions a step looks at, and how many of them it is to reveal.

    Attributes:
        masked: bool [B, L], of all blocks.
        eligible, written, quota: as in `Look`.
        progress: float32 [B], share of the plan already taken.
        start, stop: int32 [B], columns of the running block; equal where an answer is done.
    """

    masked: jax.Array
    eligible: jax.Array
    written: jax.Array
    quota: jax.Array
    progress: jax.Array
    start: jax.Array
    stop: jax.Array

    @property
    def scored(self) -> jax.Array:
        """bool [B, L]: positions that the head is run on."""
        return self.eligible | self.written


def look(canvas: Canvas, plan: Plan, config: SamplerConfig, standing: Standing) -> Looked:
    """What every answer's next step looks at; the canvas may have unconditional rows too."""
    generate = canvas.generate[: len(plan.steps)]
    columns = jnp.arange(generate.shape[1])[None, :]
    masked = generate & (standing.result.tokens == canvas.mask_id)
    at = jnp.minimum(standing.column, plan.ratio.shape[1] - 1)[:, None]
    ratio, start, stop = (jnp.take_along_axis(x, at, axis=1) for x in (plan.ratio, plan.start, plan.stop))
    stop = jnp.where(standing.column[:, None] < plan.steps[:, None], stop, start)
    running_block = (columns >= start) & (columns < stop)
    eligible = masked & running_block
    count = eligible.sum(axis=1, keepdims=True, dtype=jnp.int32)
    share = (count.astype(jnp.float32) * ratio).astype(jnp.int32)
    quota = jnp.minimum(jnp.maximum(share, 1), count)
    progress = standing.column.astype(jnp.float32) / jnp.maximum(plan.steps, 1)
    # At a block's last step nothing can be masked again.
    written = generate & ~masked & running_block & (count > 0) & (ratio < 1)
    written = config.reveal.revisits(written, standing.reveal)
    return Looked(masked, eligible, written, quota, progress, start[:, 0], stop[:, 0])


def _keys(canvas: Canvas, noise: jax.Array, standing: Standing, name: str) -> jax.Array:
    names = canvas.example_ids[: len(noise)]
    return jax.vmap(lambda key, i, n: rng.sample_keys(rng.named(key, name), i, n))(noise, names, standing.step)


def predict(
    denoiser: Denoiser, canvas: Canvas, plan: Plan, noise: jax.Array, standing: Standing, calls: jax.Array, cache: Any,
    code: Compiled,
) -> tuple[Predictions, Any]:  # fmt: skip
    """What the model says where every answer stands, and the cache's next state.

    Args:
        denoiser: the model.
        canvas: R rows, B and under guidance as many unconditional ones.
        plan: of the B answers.
        noise: keys [B].
        standing: of the B answers.
        calls: int32 [], of the model so far.
        cache: its state.
        code: static.
    """
    config, batch, mask_id = code.config, len(plan.steps), canvas.mask_id
    generate, answer_length, before = canvas.generate[:batch], canvas.answer_length[:batch], standing.result.tokens
    sources = prediction_sources(canvas, batch, denoiser.alignment, config.guidance)
    offsets = jnp.arange(generate.shape[1])[None, :] - canvas.answer_start[:batch, None]
    in_answer = (offsets >= 0) & (offsets < answer_length[:, None])
    looked = look(canvas, plan, config, standing)
    call = _call(canvas, calls, looked)
    vocab_size = _vocab_size(denoiser, canvas, config, cache, call)
    tables = RowTables(
        groups=canvas.groups[:batch],
        allowed=canvas.allowed,
        seen=config.repetition.seen(before, generate, in_answer, mask_id, standing.step[:, None], vocab_size),
        factor=config.position.factor(offsets, answer_length, looked.masked, looked.progress),
        keys=_keys(canvas, noise, standing, "tokens") if config.filters.draws else None,
    )
    hidden, cache = config.cache.hidden(denoiser, _with_unconditional(canvas, before), cache, call)
    ids = code.span or Span(0, vocab_size, False)
    head = functools.partial(denoiser.logits, denoiser.params, start=ids.start, stop=ids.stop)
    token, confidence, likely = score_rows(
        head, hidden, sources, looked.scored, tables, mask_id, config, code.chunk, code.capacity, ids, code.rest
    )
    return Predictions(looked.scored, token, confidence, likely), cache


def commit(
    canvas: Canvas, plan: Plan, noise: jax.Array, config: SamplerConfig, predictions: Predictions, standing: Standing
) -> Standing:
    """Where every answer stands after the step that follows from predictions."""
    batch, mask_id = len(plan.steps), canvas.mask_id
    generate, result, before = canvas.generate[:batch], standing.result, standing.result.tokens
    token, confidence = predictions.candidates, predictions.confidence
    looked = look(canvas, plan, config, standing)

    def uniforms() -> jax.Array:
        each = jnp.broadcast_to(_keys(canvas, noise, standing, "order")[:, None], confidence.shape)
        return rng.token_uniforms(each, jnp.broadcast_to(jnp.arange(confidence.shape[1])[None, :], confidence.shape))

    if plan.order is None:
        order = config.confidence.order(confidence, uniforms, looked.progress)
    else:
        order = jnp.pad(plan.order, [(0, 0), (0, generate.shape[1] - plan.order.shape[1])])
    sure = config.confidence.share(confidence)
    decision = config.reveal.decide(
        Look(looked.eligible, looked.written, before, token, confidence, sure, order, looked.quota, predictions.likely),
        standing.reveal,
    )
    revealed = decision.reveal & (token != mask_id)
    after = jnp.where(revealed, token, jnp.where(decision.mask, mask_id, before))
    tokens = config.stopping.settle(after, generate, mask_id, token, confidence)
    revealed |= tokens != after
    count = decision.reveal.sum(axis=1, dtype=jnp.int32)
    kept = ~decision.mask
    # An answer that is done takes no more steps; its last number of them lies beyond the table.
    committed = result.committed.at[jnp.arange(batch), standing.step].add(count, mode="drop")
    result = SampleResult(
        tokens=tokens,
        steps=result.steps + (count > 0),
        commit_step=jnp.where(revealed, standing.step[:, None], jnp.where(kept, result.commit_step, -1)),
        confidence=jnp.where(revealed, confidence, jnp.where(kept, result.confidence, 0.0)),
        committed=committed,
    )
    column = standing.column + 1
    if config.reveal.early:
        column = _next_column(plan, column, generate & (tokens == mask_id))
    return standing._replace(step=standing.step + 1, column=column, result=result, reveal=decision.state)


def _call(canvas: Canvas, number: jax.Array, looked: Looked) -> Call:
    """The step as a cache sees it, with the running blocks of all rows."""
    batch, block = len(looked.start), (looked.start, looked.stop)
    if len(canvas.answer_start) == batch:
        return Call(number, *block)
    shift = canvas.answer_start[batch:] - canvas.answer_start[:batch]
    return Call(number, *(jnp.concatenate([x, x + shift]) for x in block))


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
