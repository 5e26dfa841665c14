"""Attention a few batch rows at a time, for CPUs: their scores stay in cache and their heads share the cores.

Short rows on few cores run about twice as fast as with whole score tensors. Weights are recomputed in the backward
pass. Heads are gathered where they are split.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from omnidiff_jax.sharding import axes

_LOW = -1e30  # finite, so that a query without visible keys leaves no NaN
_ROWS = 4  # at a time


def row_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, query_segments: jax.Array | None, key_segments: jax.Array | None
) -> jax.Array:
    """Row-wise attention; arguments as in `attention.attention`."""
    batch, length, heads, width = query.shape
    kv_length, kv_heads = key.shape[1], key.shape[2]
    if query_segments is None or key_segments is None:
        query_segments = jnp.ones((batch, length), jnp.int32)
        key_segments = jnp.ones((batch, kv_length), jnp.int32)
    group = heads // kv_heads
    q = query.reshape(batch, length, kv_heads, group, width).transpose(0, 2, 3, 1, 4)
    q = q.reshape(batch, kv_heads, group * length, width) * jnp.asarray(1.0 / math.sqrt(width), query.dtype)
    k, v = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    attend = _attend
    if shards := axes.split_over(axes.BATCH):
        # Each device loops over the rows it has.
        rows = PartitionSpec(shards)
        attend = jax.shard_map(_attend, in_specs=(rows,) * 5, out_specs=rows, check_vma=False)
    out = attend(q, k, v, query_segments, key_segments)
    out = out.reshape(batch, kv_heads, group, length, width).transpose(0, 3, 1, 2, 4)
    return out.reshape(batch, length, heads, width)


def _by_rows(function: Callable[..., tuple[jax.Array, ...]], operands: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """`function` of at most `_ROWS` rows after the other; every operand and result has the batch first."""
    batch = operands[0].shape[0]
    rows = math.gcd(batch, _ROWS)
    if rows == batch:
        return function(*operands)
    groups = tuple(x.reshape(batch // rows, rows, *x.shape[1:]) for x in operands)
    return tuple(x.reshape(batch, *x.shape[2:]) for x in jax.lax.map(lambda xs: function(*xs), groups))


def _visible(sq: jax.Array, sk: jax.Array, length: int) -> jax.Array:
    """bool [B, 1, length, S]: the segment mask, repeated for each query head of a group."""
    mask = (sq[:, :, None] == sk[:, None, :]) & (sq > 0)[:, :, None]
    return jnp.tile(mask, (1, length // sq.shape[1], 1))[:, None]


def _contract(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Product of [B, K, ...] over one of the last two axes of each, in float32."""
    heads = ((0, 1), (0, 1))
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), heads), preferred_element_type=jnp.float32)


@jax.custom_vjp
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, sq: jax.Array, sk: jax.Array) -> jax.Array:
    """q [B, K, G*L, hd] already scaled, k and v [B, K, S, hd], segments [B, L] and [B, S] -> [B, K, G*L, hd]."""
    return _attend_fwd(q, k, v, sq, sk)[0]


def _attend_fwd(q, k, v, sq, sk):
    out, lse = _by_rows(_forward, (q, k, v, sq, sk))
    return out, (q, k, v, sq, sk, out, lse)


def _forward(q, k, v, sq, sk):
    """The output [B, K, G*L, hd] and the log-sum-exp [B, K, G*L]."""
    visible = _visible(sq, sk, q.shape[2])
    scores = jnp.where(visible, _contract(q, k, 3, 3), _LOW)
    top = scores.max(-1, keepdims=True)
    weights = jnp.where(visible, jnp.exp(scores - top), 0.0)
    total = weights.sum(-1, keepdims=True)
    total = jnp.where(total > 0, total, 1.0)
    out = _contract(weights.astype(v.dtype), v, 3, 2) / total
    return out.astype(q.dtype), (top + jnp.log(total))[..., 0]


def _attend_bwd(residuals, d_out):
    return *_by_rows(_backward, (*residuals, d_out)), None, None


def _backward(q, k, v, sq, sk, out, lse, d_out):
    visible = _visible(sq, sk, q.shape[2])
    weights = jnp.where(visible, jnp.exp(_contract(q, k, 3, 3) - lse[..., None]), 0.0)
    d_v = _contract(weights.astype(d_out.dtype), d_out, 2, 2)
    delta = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(-1, keepdims=True)
    d_scores = (weights * (_contract(d_out, v, 3, 3) - delta)).astype(q.dtype)
    d_q, d_k = _contract(d_scores, k, 3, 2), _contract(d_scores, q, 2, 2)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype)


_attend.defvjp(_attend_fwd, _attend_bwd)
