"""The head on masked rows only: hidden states of a step -> a candidate and a confidence at every eligible position.

Filters, penalties and scores are in float32, in the released order (`sample_tokens`): temperature, top-p, top-k,
repetition, position, softmax.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from omnidiff_jax.diffusion.alignment import predictors
from omnidiff_jax.sampling.candidates import Span
from omnidiff_jax.sampling.canvas import Canvas
from omnidiff_jax.sampling.config import SamplerConfig
from omnidiff_jax.sampling.guidance import Guidance
from omnidiff_jax.sampling.rows import LOWEST, Likeliest, first_best, likeliest


@struct.dataclass
class RowTables:
    """What a row's decision depends on besides its logits, looked up by example and position.

    Attributes:
        groups: int32 [B, L], row of `allowed`.
        allowed: bool [G, V] or None.
        seen: bool [B, V], tokens penalised as repeated, or None.
        factor: float32 [B, L], position penalty.
        keys: keys [B] to draw with, or None.
    """

    groups: jax.Array
    allowed: jax.Array | None
    seen: jax.Array | None
    factor: jax.Array
    keys: jax.Array | None


def decide(
    logits: jax.Array, seen: jax.Array | None, factor: jax.Array, keys: jax.Array | None, config: SamplerConfig
) -> tuple[jax.Array, jax.Array]:
    """A candidate and its confidence for each of n independent rows.

    Args:
        logits: [n, V], after guidance, `LOWEST` where a row must not choose.
        seen: bool [n, V], tokens that the repetition penalty is for, or None.
        factor: float32 [n], position penalty.
        keys: keys [n] to draw with, or None: take the most likely.
        config: filters, penalties, confidence.

    Returns:
        int32 [n] token ids, float32 [n] confidences.
    """
    logits = logits.astype(jnp.float32)

    def chosen(kept: jax.Array, ids: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        if seen is not None:
            kept = config.repetition.apply(kept, seen if ids is None else jnp.take_along_axis(seen, ids, axis=-1))
        kept = config.position.apply(kept, factor)
        drawn = kept
        if keys is not None:
            drawn = kept + jax.vmap(lambda key: jax.random.gumbel(key, kept.shape[1:]))(keys)
        column = first_best(drawn)
        token = column if ids is None else jnp.take_along_axis(ids, column[:, None], axis=-1)[:, 0]
        return token, config.confidence.score(kept, column)

    remnant = config.filters.remnant(logits)
    if remnant is None:
        return chosen(*config.filters.keep(logits))
    values, ids, enough = remnant
    token, confidence = chosen(values, ids)

    def of_all() -> tuple[jax.Array, jax.Array]:
        other_token, other_confidence = chosen(*config.filters.keep(logits))
        # Row by row: what a row gets may not depend on the rows beside it.
        return jnp.where(enough, token, other_token), jnp.where(enough, confidence, other_confidence)

    return jax.lax.cond(enough.all(), lambda: (token, confidence), of_all)


def prediction_sources(canvas: Canvas, batch: int, alignment: str, guidance: Guidance) -> list[jax.Array]:
    """Which hidden state predicts each position, as indices into hidden [R, L, D] seen as [R * L, D].

    Args:
        canvas: R = 2 * `batch` rows under guidance, conditional ones first; else R = `batch`.
        batch: B.
        alignment: of the model's logits.
        guidance: says which positions of both canvases are a pair.

    Returns:
        int32 [B, L]: one array, or the conditional and the unconditional one.
    """
    length = canvas.inputs.tokens.shape[1]
    index, _ = predictors(alignment, canvas.inputs.segment_ids)
    rows = jnp.arange(index.shape[0])[:, None] * length
    conditional = rows[:batch] + index[:batch]
    if guidance.scale == 0:
        return [conditional]
    position = jnp.broadcast_to(jnp.arange(length)[None, :], conditional.shape)
    shift = (canvas.answer_start[batch:] - canvas.answer_start[:batch])[:, None]
    position = jnp.clip(guidance.partners(position, shift), 0, length - 1)
    return [conditional, rows[batch:] + jnp.take_along_axis(index[batch:], position, axis=1)]


# Vocabularies from this size on: a row costs more than compiling for another number of rows.
LARGE = 1 << 15


def rest_sizes(chunk: int, columns: int) -> tuple[int, ...]:
    """Numbers of rows that are looked at together where less than a `chunk` is left: few, since each is compiled.

    Args:
        chunk: the largest of them.
        columns: logits in a row.
    """
    parts = (2, 4, 6, 8, 12, 16) if columns < LARGE else (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
    return tuple(sorted({max(chunk * sixteenths // 16, 1) for sixteenths in parts}))


def score_rows(
    head: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,
    sources: list[jax.Array],
    eligible: jax.Array,
    tables: RowTables,
    mask_id: int,
    config: SamplerConfig,
    chunk: int,
    capacity: int,
    ids: Span,
    rest: tuple[int, ...] | None = None,
) -> tuple[jax.Array, jax.Array, Any]:
    """Runs head, guidance, filters and scores on the eligible rows, `chunk` at a time and only as often as needed.

    Args:
        head: [n, D] -> [n, W], the logits of `ids`.
        hidden: [R, L, D].
        sources: from `prediction_sources`.
        eligible: bool [B, L].
        tables: see `RowTables`.
        mask_id: the mask token.
        config: guidance, candidates, filters, penalties, confidence, what `reveal` compares.
        chunk: rows of logits that exist at once.
        capacity: a multiple of `chunk`, at least the number of eligible rows.
        ids: whose logits are computed.
        rest: numbers of rows that are looked at together where less than a chunk is left; None = `rest_sizes`.

    Returns:
        int32 [B, L] candidates, float32 [B, L] confidences; 0 where not eligible. And the `Likeliest` [B, L, k] before
        filters and penalties, which mean nothing elsewhere, or () where `reveal` compares none.
    """
    length = eligible.shape[1]
    flat_hidden = hidden.reshape(-1, hidden.shape[-1])
    flat = eligible.reshape(-1)
    order = jnp.nonzero(flat, size=capacity, fill_value=0)[0].astype(jnp.int32)

    def logits_of(index: jax.Array) -> jax.Array:
        rows = [head(flat_hidden[source.reshape(-1)[index]]).astype(jnp.float32) for source in sources]
        return rows[0] if len(rows) == 1 else config.guidance.combine(*rows)

    def decide_some(start: jax.Array, out: tuple[Any, ...], rows: int) -> tuple[Any, ...]:
        index = jax.lax.dynamic_slice_in_dim(order, start, rows)
        example, position = index // length, index % length
        logits = config.candidates.allow(logits_of(index), mask_id - ids.start)
        if tables.allowed is not None and not ids.all_allowed:
            allowed = tables.allowed[:, ids.start : ids.stop]
            logits = jnp.where(allowed[tables.groups.reshape(-1)[index]], logits, LOWEST)
        # Cut first: looked up and cut at once, a TPU takes the rows one after another in a loop.
        seen = None if tables.seen is None else tables.seen[:, ids.start : ids.stop][example]
        keys = None if tables.keys is None else jax.vmap(jax.random.fold_in)(tables.keys[example], position)
        decided = decide(logits, seen, tables.factor.reshape(-1)[index], keys, config)
        compared = likeliest(logits, config.reveal.compared) if config.reveal.compared else ()
        return jax.tree.map(
            lambda buffer, new: jax.lax.dynamic_update_slice_in_dim(buffer, new, start, 0), out, (*decided, compared)
        )

    compared = Likeliest.none((capacity,), config.reveal.compared) if config.reveal.compared else ()
    out: tuple[Any, ...] = jnp.zeros((capacity,), jnp.int32), jnp.zeros((capacity,), jnp.float32), compared
    count = flat.sum(dtype=jnp.int32)
    whole = jnp.maximum(count - 1, 0) // chunk * chunk
    if capacity > chunk:
        out = jax.lax.fori_loop(0, whole // chunk, lambda number, out: decide_some(number * chunk, out, chunk), out)
    # What is left of a chunk costs what the next smaller size costs.
    sizes = rest or rest_sizes(chunk, ids.stop - ids.start)
    branches: list[Callable[..., Any]] = [functools.partial(decide_some, whole, rows=rows) for rows in sizes]
    out = jax.lax.switch(jnp.searchsorted(jnp.asarray([0, *sizes]), count - whole), [lambda out: out, *branches], out)
    place = jnp.cumsum(flat) - 1
    token, confidence = (jnp.where(flat, x[place], 0).reshape(eligible.shape) for x in (out[0] + ids.start, out[1]))
    return token, confidence, jax.tree.map(lambda x: x[place].reshape(*eligible.shape, -1), out[2])
