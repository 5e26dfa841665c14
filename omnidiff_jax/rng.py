"""Named random streams, and noise keyed by sample so that it does not depend on where the sample landed."""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def stream(seed: int | jax.Array, name: str) -> jax.Array:
    """The key of the stream `name` of run `seed`: same in every process, independent across names."""
    return named(jax.random.key(seed), name)


def streams(seeds: Sequence[int], name: str) -> jax.Array:
    """Keys [n]: the stream `name` of each seed."""
    return jax.vmap(lambda seed: stream(seed, name))(np.asarray(seeds, np.uint32))


def named(key: jax.Array, name: str) -> jax.Array:
    """A key derived from `key` by a name."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def sample_keys(key: jax.Array, sample_ids: jax.Array, epochs: jax.Array) -> jax.Array:
    """One key per sample, a function of (key, sample id, epoch) only.

    Args:
        key: scalar key.
        sample_ids: uint32 [...].
        epochs: int32 [...], same shape.

    Returns:
        keys [...].
    """
    flat = jax.vmap(lambda i, e: jax.random.fold_in(jax.random.fold_in(key, i), e))(
        sample_ids.reshape(-1).astype(jnp.uint32), epochs.reshape(-1).astype(jnp.uint32)
    )
    return flat.reshape(sample_ids.shape)


def sample_uniforms(keys: jax.Array) -> jax.Array:
    """float32 [...] uniforms in [0, 1), one for each of `keys` [...]."""
    return jax.vmap(jax.random.uniform)(keys.reshape(-1)).reshape(keys.shape)


def token_uniforms(keys: jax.Array, indices: jax.Array) -> jax.Array:
    """Uniforms keyed by (sample, index within the sample).

    Args:
        keys: key of each token's sample, [...].
        indices: int32 [...], the token's position within its sample.

    Returns:
        float32 [...] in [0, 1).
    """
    draw = jax.vmap(lambda k, i: jax.random.uniform(jax.random.fold_in(k, i)))
    return draw(keys.reshape(-1), indices.reshape(-1).astype(jnp.uint32)).reshape(indices.shape)
