"""What a pass over some positions reuses of an earlier pass over all of them: keys, values, and what layers added.

Only positions that are computed again cost projections and feed-forward; the keys and values of all others are taken as
they were (Fast-dLLM, arXiv 2505.22618; dLLM-Cache, arXiv 2506.06295).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Kept:
    """Of one layer, or of all, stacked in front.

    Attributes:
        key, value: [B, L, K, hd], keys rotated.
        attention, mlp: [B, L, D], what attention and feed-forward added to the residual stream; None where no pass
            asks for them.
    """

    key: jax.Array
    value: jax.Array
    attention: jax.Array | None = None
    mlp: jax.Array | None = None


@struct.dataclass
class Window:
    """Which positions a pass computes.

    Attributes:
        places: int32 [B, C], distinct positions of each row; L or more stands for none. None = every position, and
            what there is to keep is kept.
        share: None = all of `places`, nothing kept; else the share of them, from 0 to 1, that each layer computes:
            those whose values turned most since they were kept.
        beside: the pass computes something else at `places`, which stands beside the rows: their own keys stay.
    """

    places: Any = None
    share: float | None = struct.field(pytree_node=False, default=None)
    beside: bool = struct.field(pytree_node=False, default=False)

    @property
    def keeps(self) -> bool:
        """Whether the pass gives back what it leaves to the next."""
        return self.places is None or self.share is not None

    def take(self, x: jax.Array) -> jax.Array:
        """[B, L, ...] -> [B, C, ...]; what stands for none is a copy of another position."""
        return take(x, self.places)

    def joined(self, kept: jax.Array, places: jax.Array, new: jax.Array) -> jax.Array:
        """Keys or values of a whole row: `kept` [B, L, ...] with `new` [B, k, ...] at `places`, or behind it."""
        return jnp.concatenate([kept, new.astype(kept.dtype)], axis=1) if self.beside else put(kept, places, new)


def take(x: jax.Array, places: jax.Array) -> jax.Array:
    """Rows `places` int [B, C] of `x` [B, L, ...]: [B, C, ...]; places beyond L give the last row."""
    return jax.vmap(lambda row, at: jnp.take(row, at, axis=0, mode="clip"))(x, places)


def put(x: jax.Array, places: jax.Array, new: jax.Array) -> jax.Array:
    """`x` [B, L, ...] with `new` [B, C, ...] at `places` int [B, C]; those beyond L are dropped."""
    return jax.vmap(lambda row, at, values: row.at[at].set(values.astype(row.dtype), mode="drop"))(x, places, new)


def most_turned(window: Window, value: jax.Array, kept: jax.Array) -> jax.Array:
    """The members of a window that a layer computes again.

    Args:
        window: C places of each row, with a share; n of a row's are real, and ceil(share * n) are computed.
        value: [B, C, K, hd], of what the layer is given now.
        kept: [B, L, K, hd], of what it was given when each position was last computed.

    Returns:
        int32 [B, ceil(share * C)], members of the window, the least cosine similarity first; C stands for none.
    """
    assert window.share is not None
    size, length = window.places.shape[1], kept.shape[1]
    new, old = (x.astype(jnp.float32).reshape(*x.shape[:2], -1) for x in (value, window.take(kept)))
    norms = jnp.linalg.norm(new, axis=-1) * jnp.linalg.norm(old, axis=-1)
    similarity = (new * old).sum(-1) / jnp.maximum(norms, 1e-12)
    real = window.places < length
    most = max(math.ceil(window.share * size), 1)
    _, chosen = jax.lax.top_k(jnp.where(real, -similarity, -jnp.inf), most)
    # By a row's own places: what it is answered may not depend on the longest answer beside it.
    wanted = jnp.ceil(window.share * real.sum(axis=1, keepdims=True).astype(jnp.float32) - 1e-4)
    return jnp.where(jnp.arange(most)[None, :] < wanted, chosen, size).astype(jnp.int32)


def places_of(window: Window, chosen: jax.Array, length: int) -> jax.Array:
    """The places int32 [B, k] in rows of L = `length` of the members `chosen` int32 [B, k]; L where it is none."""
    places = jnp.take_along_axis(window.places, jnp.minimum(chosen, window.places.shape[1] - 1), axis=1)
    return jnp.where(chosen < window.places.shape[1], places, length)
