"""Questions about rows of logits, answered in few passes over the vocabulary and without sorting it.

A row is looked at as groups of neighbours. The best of every group is found in one pass; whatever is among the k best
of the row lies in one of the k best groups, so that the rest of the work is on these alone. Results are exactly those
of `jax.lax.top_k`, the lower index first among equals.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Vocabularies below are looked at as they are.
_SMALL = 4096
_WIDTHS = range(64, 257)  # of a group
_PADDED = 128

LOWEST = float(jnp.finfo(jnp.float32).min)


class Likeliest(NamedTuple):
    """The k most likely tokens of rows, the most likely first.

    Attributes:
        columns: int32 [..., k], -1 where a row has fewer.
        shares: float32 [..., k], their probabilities; 0 where there is none.
    """

    columns: jax.Array
    shares: jax.Array

    @classmethod
    def none(cls, shape: tuple[int, ...], k: int) -> "Likeliest":
        """Of rows [...] of which nothing is known."""
        return cls(jnp.full((*shape, k), -1, jnp.int32), jnp.zeros((*shape, k), jnp.float32))


def first_best(x: jax.Array) -> jax.Array:
    """`argmax` over the last axis, int32 [n]; XLA's own is ten times slower on a CPU."""
    if x.shape[-1] < _SMALL:
        return _first(x, x.max(axis=-1, keepdims=True))
    groups = _grouped(x)
    best = groups.max(axis=-1)
    group = _first(best, best.max(axis=-1, keepdims=True))
    row = jnp.take_along_axis(groups, group[:, None, None], axis=1)[:, 0]
    # A row with NaN has no best one; the padding must not be taken for it.
    return jnp.minimum(group * groups.shape[-1] + _first(row, row.max(axis=-1, keepdims=True)), x.shape[-1] - 1)


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of each row, the largest first: values [n, k] and columns int32 [n, k].

    Args:
        x: float32 [n, W].
        k: 1 <= k <= W.
    """
    if x.shape[-1] < max(_SMALL, 4 * k):
        return jax.lax.top_k(x, k)
    groups = _grouped(x)
    if k >= groups.shape[1]:
        return jax.lax.top_k(x, k)
    _, chosen = jax.lax.top_k(groups.max(axis=-1), k)
    chosen = jnp.sort(chosen, axis=-1)  # so that equals still stand in the order of their columns
    values, places = jax.lax.top_k(jnp.take_along_axis(groups, chosen[..., None], axis=1).reshape(len(x), -1), k)
    width = groups.shape[-1]
    return values, jnp.take_along_axis(chosen, places // width, axis=1) * width + places % width


def likeliest(logits: jax.Array, k: int) -> Likeliest:
    """The k most likely tokens of softmax(logits) [n, W], k >= 1."""
    values, columns = top_k(logits, min(k, logits.shape[-1]))
    best, total = weigh(logits)
    spare = [(0, 0), (0, k - values.shape[-1])]
    shares = jnp.exp(values - best[:, None]) / total[:, None]
    return Likeliest(jnp.pad(columns, spare, constant_values=-1), jnp.pad(shares, spare))


def divergence(now: Likeliest, before: Likeliest) -> jax.Array:
    """KL(now || before) in nats, float32 [...], of distributions of which the k most likely tokens are known.

    What is not among the most likely of `now` counts as one token. What was not among those of `before` is given the
    least probability of these, the most that it can have had. Exact where k covers every token that has a share.
    """
    tiny = 1e-12  # the released KLASS adds it to both probabilities
    same = (now.columns[..., :, None] == before.columns[..., None, :]) & (before.columns[..., None, :] >= 0)
    tail = jnp.maximum(1.0 - before.shares.sum(axis=-1, keepdims=True), 0.0)
    unlisted = jnp.minimum(before.shares.min(axis=-1, keepdims=True), tail)
    was = jnp.where(same.any(axis=-1), (same * before.shares[..., None, :]).sum(axis=-1), unlisted)
    moved = now.shares * (jnp.log(now.shares + tiny) - jnp.log(was + tiny))
    rest, rest_was = (jnp.maximum(1.0 - x.sum(axis=-1), 0.0) for x in (now.shares, was))
    return moved.sum(axis=-1) + rest * (jnp.log(rest + tiny) - jnp.log(rest_was + tiny))


def weigh(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maximum of each row, and the sum of exp(logits - maximum): float32 [n] each."""
    best = logits.max(axis=-1)
    # Recomputed inside the sum, a logit may round to more than its maximum.
    return best, jnp.exp(jnp.minimum(logits - best[:, None], 0.0)).sum(axis=-1)


def negative_entropy(logits: jax.Array) -> jax.Array:
    """sum p log p of softmax(logits) [n, W], nats: float32 [n]."""
    shifted = jnp.minimum(logits - logits.max(axis=-1, keepdims=True), 0.0)  # as in `weigh`
    weights = jnp.exp(shifted)
    zero = jnp.zeros((), logits.dtype)
    # Of removed tokens weight and logit multiply to 0, not NaN: LOWEST less a maximum may be -inf.
    parts = weights, weights * jnp.maximum(shifted, LOWEST)
    # Both sums in one pass, or the exponentials would be computed twice; and one whose last bits do not depend on the
    # number of rows, as those of sums that XLA's CPU fuses do.
    total, weighted = jax.lax.reduce(parts, (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), (1,))
    return jnp.minimum(weighted / total - jnp.log(total), 0.0)


def _grouped(x: jax.Array) -> jax.Array:
    """x [n, W] as [n, G, w], padded with `LOWEST` where W has no fitting divisor."""
    rows, size = x.shape
    width = next((w for w in _WIDTHS if size % w == 0), 0)
    if not width:
        width = _PADDED
        x = jnp.pad(x, ((0, 0), (0, -size % width)), constant_values=LOWEST)
    return x.reshape(rows, -1, width)


def _first(x: jax.Array, value: jax.Array) -> jax.Array:
    """First column of each row of x [n, W] that holds `value` [n, 1]; W - 1 where none does."""
    columns = jnp.arange(x.shape[-1], dtype=jnp.int32)[None, :]
    return jnp.where(x == value, columns, x.shape[-1] - 1).min(axis=-1)
