"""Bidirectional grouped-query attention that stays within segments: one function, several backends.

A backend is a row of `BACKENDS`: a function and what it can do. Kernels for particular devices join as further rows.
`xla` is the reference, `chunked` bounds memory for long rows, `rows` suits short rows on a CPU, `cudnn` is for NVIDIA
GPUs, `splash` for TPUs, `tokamax` takes what that library thinks best.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from omnidiff_jax.config import choose
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.chunked_attention import chunked_attention
from omnidiff_jax.models.device_attention import cudnn_attention, splash_attention, tokamax_attention
from omnidiff_jax.models.kept import take
from omnidiff_jax.models.row_attention import row_attention


def xla_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, query_segments: jax.Array | None, key_segments: jax.Array | None
) -> jax.Array:
    """The reference: whole score matrices, softmax in float32. Arguments as in `attention`."""
    if query_segments is None or key_segments is None:
        return masked_attention(query, key, value, None)
    visible = (query_segments[:, :, None] == key_segments[:, None, :]) & (query_segments > 0)[:, :, None]
    return masked_attention(query, key, value, visible)


def masked_attention(query: jax.Array, key: jax.Array, value: jax.Array, visible: jax.Array | None) -> jax.Array:
    """As `xla_attention`, of every query to the keys that are `visible`, bool [B, L, S]; None = all of them."""
    batch, length, heads, width = query.shape
    kv_heads = key.shape[2]
    group = heads // kv_heads
    # [B, K, G*L, hd]: the query heads that share a key head become rows of one batched matmul.
    q = query.reshape(batch, length, kv_heads, group, width).transpose(0, 2, 3, 1, 4)
    q = q.reshape(batch, kv_heads, group * length, width) * jnp.asarray(1.0 / math.sqrt(width), query.dtype)
    k, v = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    scores = jnp.einsum("bkqd,bksd->bkqs", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, kv_heads, group, length, key.shape[1])
    if visible is not None:
        visible = visible[:, None, None]
        weights = jax.nn.softmax(scores, axis=-1, where=visible)
        # softmax over nothing is undefined; a query that sees no key gets zeros.
        weights = jnp.where(visible, weights, 0.0)
    else:
        weights = jax.nn.softmax(scores, axis=-1)
    weights = weights.reshape(batch, kv_heads, group * length, -1).astype(value.dtype)
    out = jnp.einsum("bkqs,bksd->bkqd", weights, v)
    out = out.reshape(batch, kv_heads, group, length, width).transpose(0, 3, 1, 2, 4)
    return out.reshape(batch, length, heads, width)


MASKS = ("full", "prefix")
"""Who sees whom within a sample: everyone everyone, or what is given only what is given."""


class Sight(NamedTuple):
    """Which keys a query sees.

    Attributes:
        query_segments, key_segments: int32 [B, L] and [B, S], as in `attention`.
        query_given, key_given: bool [B, L] and [B, S], positions of the condition: they see one another only, while
            all others see both. None = everyone sees the whole segment.
        visible: bool [B, L, S], in place of all these where segments cannot say it.
    """

    query_segments: jax.Array
    key_segments: jax.Array
    query_given: jax.Array | None = None
    key_given: jax.Array | None = None
    visible: jax.Array | None = None

    def of(self, places: jax.Array) -> "Sight":
        """That of the queries `places` int32 [B, C] alone."""
        given = None if self.query_given is None else take(self.query_given, places)
        return self._replace(query_segments=take(self.query_segments, places), query_given=given)


@dataclasses.dataclass(frozen=True)
class Backend:
    """An implementation of `attention` and what it can do.

    Attributes:
        function: takes (query, key, value, query_segments, key_segments).
        honours_segments: False = attends across segments, and is refused where segment ids are given.
        home: jax's name of the only devices it serves well; None = all.
    """

    function: Callable[..., jax.Array]
    honours_segments: bool
    home: str | None = None


BACKENDS: dict[str, Backend] = {
    "xla": Backend(xla_attention, honours_segments=True),
    "chunked": Backend(chunked_attention, honours_segments=True),
    "rows": Backend(row_attention, honours_segments=True),
    "cudnn": Backend(cudnn_attention, honours_segments=True, home="gpu"),
    "splash": Backend(splash_attention, honours_segments=True, home="tpu"),
    "tokamax": Backend(tokamax_attention, honours_segments=True),
}


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids_q: jax.Array | None,
    segment_ids_kv: jax.Array | None,
    *,
    backend: str,
) -> jax.Array:
    """Softmax attention of every query to all keys of its own segment, scaled by 1/sqrt(hd).

    Args:
        query: [B, L, H, hd].
        key, value: [B, S, K, hd]; H is a multiple of K, query head h reads key head h // (H / K).
        segment_ids_q: int32 [B, L], 0 = padding; None (with `segment_ids_kv`) = everything sees everything.
        segment_ids_kv: int32 [B, S].
        backend: a name in `BACKENDS`.

    Returns:
        [B, L, H, hd], dtype of `query`; exactly 0 where the query is padding or sees no key.

    Raises:
        UserError: unknown backend, or segment ids given to one that ignores them.
        ValueError: only one of the segment ids is given, or H is not a multiple of K.
    """
    chosen = choose(BACKENDS, backend, "attention backend")
    if (segment_ids_q is None) != (segment_ids_kv is None):
        raise ValueError("give segment ids for both queries and keys, or for neither")
    if query.shape[2] % key.shape[2]:
        raise ValueError(f"{query.shape[2]} query heads cannot share {key.shape[2]} key heads")
    if segment_ids_q is not None and not chosen.honours_segments:
        able = sorted(name for name, b in BACKENDS.items() if b.honours_segments)
        raise UserError(f"attention backend {backend!r} ignores segment ids, so packed rows need one of {able}")
    return chosen.function(query, key, value, segment_ids_q, segment_ids_kv)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, sight: Sight, *, backend: str) -> jax.Array:
    """`attention` of every query to the keys that `sight` lets it see.

    With a condition every backend runs twice, once among the condition alone, as segments are all that kernels know;
    what segments cannot say is left to the reference.
    """
    query_segments, key_segments, query_given, key_given, visible = sight
    if visible is not None:
        return masked_attention(query, key, value, visible)
    y = attention(query, key, value, query_segments, key_segments, backend=backend)
    if query_given is None or key_given is None:
        return y
    among = jnp.where(query_given, query_segments, 0), jnp.where(key_given, key_segments, 0)
    return jnp.where(query_given[..., None, None], attention(query, key, value, *among, backend=backend), y)
