"""Rotary position embedding, half-split (not interleaved), as in Qwen2."""

import jax
import jax.numpy as jnp


def rope_tables(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every position's angles.

    Args:
        positions: int32 [B, L].
        head_dim: even width of a head.
        theta: base of the geometric series of wavelengths.

    Returns:
        float32 (cos, sin), each [B, L, 1, head_dim / 2].
    """
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    angles = positions[:, :, None, None].astype(jnp.float32) / (theta**exponents)[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates pairs (i, i + head_dim/2) of each head.

    Args:
        x: [B, L, H, head_dim], any float dtype; the rotation is computed in float32.
        cos, sin: from `rope_tables`.

    Returns:
        [B, L, H, head_dim], dtype of `x`.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
