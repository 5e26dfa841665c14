"""From rows of logits to a candidate token and a confidence each: filters, penalties, scores. All in float32.

Order (released `sample_tokens`): temperature, top-p, top-k, repetition, position, softmax. Nothing here sorts the
vocabulary: top-k leaves a [n, k] remnant on which everything after it works, and top-p alone finds its threshold by
bisection.
"""

import jax
import jax.numpy as jnp

from omnidiff_jax.sampling.config import Confidence, Filters, SamplerConfig
from omnidiff_jax.sampling.penalties import repel

LOWEST = float(jnp.finfo(jnp.float32).min)


def first_best(x: jax.Array) -> jax.Array:
    """`argmax` over the last axis as two plain reductions: XLA's argmax is ten times slower on a CPU. int32 [n]."""
    width = x.shape[-1]
    at_best = jnp.where(x == x.max(axis=-1, keepdims=True), jnp.arange(width, dtype=jnp.int32)[None, :], width - 1)
    return at_best.min(axis=-1)


def nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """bool [n, V]: the smallest set of most likely tokens with a total probability above `top_p` (ties all kept).

    A token is kept when the tokens above it weigh at most `top_p`. The least weight kept is found by bisecting over
    the bit patterns of non-negative float32, which are ordered as the numbers are: exact, and 30 passes instead of a
    sort.
    """
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    budget = top_p * weights.sum(axis=-1)  # below the whole, so a threshold of 0 is always too low

    def narrow(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # the mass above `low` exceeds the budget, that above `high` does not
        middle = low + (high - low) // 2
        threshold = jax.lax.bitcast_convert_type(middle, jnp.float32)[:, None]
        over = jnp.where(weights > threshold, weights, 0.0).sum(axis=-1) > budget
        return jnp.where(over, middle, low), jnp.where(over, high, middle)

    one = jax.lax.bitcast_convert_type(jnp.float32(1.0), jnp.int32)
    bounds = jnp.zeros(logits.shape[:1], jnp.int32), jnp.full(logits.shape[:1], one)
    _, least = jax.lax.fori_loop(0, 30, narrow, bounds)
    return weights >= jax.lax.bitcast_convert_type(least, jnp.float32)[:, None]


def filter_rows(logits: jax.Array, filters: Filters) -> tuple[jax.Array, jax.Array | None]:
    """Temperature, top-p and top-k.

    Args:
        logits: float32 [n, V].
        filters: which of them are on.

    Returns:
        Logits [n, W], `LOWEST` where removed, and the ids int32 [n, W] they belong to; without top-k, W = V and the
        ids are None (column = id).
    """
    if filters.temperature > 0:
        logits = jnp.maximum(logits / filters.temperature, LOWEST)
    if not 0 < filters.top_k < logits.shape[-1]:
        if filters.top_p < 1:
            logits = jnp.where(nucleus(logits, filters.top_p), logits, LOWEST)
        return logits, None
    values, ids = jax.lax.top_k(logits, filters.top_k)
    if filters.top_p < 1:
        weights = jnp.exp(values - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
        above = jnp.cumsum(weights, axis=-1) - weights
        values = jnp.where(above <= filters.top_p, values, LOWEST)
    return values, ids


def score(logits: jax.Array, column: jax.Array, confidence: Confidence) -> jax.Array:
    """float32 [n]: confidence in the candidate at `column` int32 [n] of final logits [n, W]; larger = surer."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    weights = jnp.exp(shifted)
    total = weights.sum(axis=-1)
    if confidence.kind == "entropy":
        return jnp.where(weights > 0, weights * shifted, 0.0).sum(axis=-1) / total - jnp.log(total)
    chosen = jnp.take_along_axis(weights, column[:, None], axis=-1)[:, 0]
    if confidence.kind == "topk_margin":
        best = first_best(logits)[:, None]
        others = jnp.where(jnp.arange(logits.shape[-1])[None, :] == best, 0.0, weights)
        return (1.0 - others.max(axis=-1)) / total
    return chosen / total  # maskgit_plus; for origin it is only reported


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
    logits, ids = filter_rows(logits.astype(jnp.float32), config.filters)
    if seen is not None:
        seen = seen if ids is None else jnp.take_along_axis(seen, ids, axis=-1)
        logits = jnp.where(seen, jnp.maximum(repel(logits, config.repetition.penalty), LOWEST), logits)
    if config.position.form == "paper":
        logits = logits * factor[:, None]
    elif config.position.form == "released":
        logits = jnp.maximum(repel(logits, factor[:, None]), LOWEST)
    drawn = logits
    if keys is not None:
        drawn = logits + jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    column = first_best(drawn)
    token = column if ids is None else jnp.take_along_axis(ids, column[:, None], axis=-1)[:, 0]
    return token, score(logits, column, config.confidence)
