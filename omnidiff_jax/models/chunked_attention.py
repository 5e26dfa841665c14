"""Attention in blocks with an online softmax: memory grows with L, not L². Exact, forward and backward.

The backward pass recomputes each block's weights from the saved log-sum-exp (as FlashAttention-2, arXiv 2307.08691).
"""

import functools
import math

import jax
import jax.numpy as jnp

QUERY_BLOCK = 512
KEY_BLOCK = 1024
_LOW = -1e30  # finite, so that a block without visible keys leaves no NaN


def chunked_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, query_segments: jax.Array | None, key_segments: jax.Array | None
) -> jax.Array:
    """Block-wise attention; arguments as in `attention.attention`."""
    batch, length, heads, width = query.shape
    kv_length, kv_heads = key.shape[1], key.shape[2]
    if query_segments is None or key_segments is None:
        query_segments = jnp.ones((batch, length), jnp.int32)
        key_segments = jnp.ones((batch, kv_length), jnp.int32)
    q_block, k_block = min(QUERY_BLOCK, length), min(KEY_BLOCK, kv_length)
    q = query.reshape(batch, length, kv_heads, heads // kv_heads, width).transpose(0, 2, 3, 1, 4)
    q = q * jnp.asarray(1.0 / math.sqrt(width), query.dtype)
    # Keys padded with segment -1, queries with 0, see and are seen by nothing.
    q = _blocks(_pad(q, 3, q_block, 0), 3, q_block)
    sq = _blocks(_pad(query_segments, 1, q_block, 0), 1, q_block)
    k = _blocks(_pad(key.transpose(0, 2, 1, 3), 2, k_block, 0), 2, k_block)
    v = _blocks(_pad(value.transpose(0, 2, 1, 3), 2, k_block, 0), 2, k_block)
    sk = _blocks(_pad(key_segments, 1, k_block, -1), 1, k_block)
    out = _attend(q, k, v, sq, sk)  # [nq, B, K, G, q_block, hd]
    out = jnp.moveaxis(out, 0, 3).reshape(batch, kv_heads, heads // kv_heads, -1, width)[:, :, :, :length]
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width)


def _pad(x: jax.Array, axis: int, multiple: int, fill: int) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths, constant_values=fill)


def _blocks(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Splits `axis` into blocks of `size` and puts the block number in front."""
    shape = x.shape[:axis] + (x.shape[axis] // size, size) + x.shape[axis + 1 :]
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def _visible(sq: jax.Array, sk: jax.Array) -> jax.Array:
    """bool [B, 1, 1, q_block, k_block]."""
    return ((sq[:, :, None] == sk[:, None, :]) & (sq > 0)[:, :, None])[:, None, None]


def _scores(q: jax.Array, k: jax.Array, visible: jax.Array) -> jax.Array:
    scores = _matmul("bkgqd,bksd->bkgqs", q, k)
    return jnp.where(visible, scores, _LOW)


_matmul = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, sq: jax.Array, sk: jax.Array) -> jax.Array:
    return _forward(q, k, v, sq, sk)[0]


def _forward(q, k, v, sq, sk):
    """Blocks in, (out [nq, B, K, G, q_block, hd], log-sum-exp [nq, B, K, G, q_block]) out."""

    def query_block(carry, xs):
        q_i, sq_i = xs

        def key_block(state, xs):
            top, total, out = state
            k_j, v_j, sk_j = xs
            visible = _visible(sq_i, sk_j)
            scores = _scores(q_i, k_j, visible)
            new_top = jnp.maximum(top, scores.max(-1))
            scale = jnp.exp(top - new_top)
            weights = jnp.where(visible, jnp.exp(scores - new_top[..., None]), 0.0)
            total = total * scale + weights.sum(-1)
            update = _matmul("bkgqs,bksd->bkgqd", weights.astype(v_j.dtype), v_j)
            return (new_top, total, out * scale[..., None] + update), None

        shape = q_i.shape[:-1]
        start = (
            jnp.full(shape, _LOW, jnp.float32),
            jnp.zeros(shape, jnp.float32),
            jnp.zeros(q_i.shape, jnp.float32),
        )
        (top, total, out), _ = jax.lax.scan(key_block, start, (k, v, sk))
        total = jnp.where(total > 0, total, 1.0)
        return carry, ((out / total[..., None]).astype(q_i.dtype), top + jnp.log(total))

    _, (out, lse) = jax.lax.scan(query_block, None, (q, sq))
    return out, lse


def _attend_fwd(q, k, v, sq, sk):
    out, lse = _forward(q, k, v, sq, sk)
    return out, (q, k, v, sq, sk, out, lse)


def _attend_bwd(residuals, d_out):
    q, k, v, sq, sk, out, lse = residuals

    def query_block(carry, xs):
        d_k, d_v = carry
        q_i, sq_i, out_i, lse_i, d_out_i = xs
        delta = (out_i.astype(jnp.float32) * d_out_i.astype(jnp.float32)).sum(-1)

        def key_block(d_q_i, xs):
            k_j, v_j, sk_j, d_k_j, d_v_j = xs
            visible = _visible(sq_i, sk_j)
            weights = jnp.where(visible, jnp.exp(_scores(q_i, k_j, visible) - lse_i[..., None]), 0.0)
            d_v_j += _matmul("bkgqs,bkgqd->bksd", weights.astype(d_out_i.dtype), d_out_i)
            d_weights = _matmul("bkgqd,bksd->bkgqs", d_out_i, v_j)
            d_scores = (weights * (d_weights - delta[..., None])).astype(q_i.dtype)
            d_q_i += _matmul("bkgqs,bksd->bkgqd", d_scores, k_j)
            d_k_j += _matmul("bkgqs,bkgqd->bksd", d_scores, q_i)
            return d_q_i, (d_k_j, d_v_j)

        d_q_i, carry = jax.lax.scan(key_block, jnp.zeros(q_i.shape, jnp.float32), (k, v, sk, d_k, d_v))
        return carry, d_q_i

    zeros = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    (d_k, d_v), d_q = jax.lax.scan(query_block, zeros, (q, sq, out, lse, d_out))
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None


_attend.defvjp(_attend_fwd, _attend_bwd)
