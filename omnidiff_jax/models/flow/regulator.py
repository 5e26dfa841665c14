"""Length regulation: code vectors (12.5 a second) to mel frames (86.13 a second)."""

from __future__ import annotations

from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp

from omnidiff_jax.models.flow.layers import Conv1d, GroupNorm, mish


def frames_per_code(code_rate: float, sample_rate: int, hop: int) -> Fraction:
    """Exact number of mel frames per code, e.g. 441/64 at 12.5 codes, 22050 Hz, hop 256."""
    return Fraction(sample_rate, hop) / Fraction(code_rate)


def nearest_indices(codes: jax.Array, frames: jax.Array, size: int) -> jax.Array:
    """Code under each frame, by the legacy torch rule floor(k * float32(codes / frames)).

    Args:
      codes: int [B] codes per utterance.
      frames: int [B] frames per utterance.
      size: number of frames of the buffer.

    Returns:
      int32 [B, size] in [0, codes - 1] (frames past the utterance repeat its last code).
    """
    scale = codes.astype(jnp.float32) / jnp.maximum(frames, 1).astype(jnp.float32)
    index = jnp.floor(jnp.arange(size, dtype=jnp.float32)[None] * scale[:, None]).astype(jnp.int32)
    return jnp.clip(index, 0, jnp.maximum(codes - 1, 0)[:, None])


class LengthRegulator(nn.Module):
    """Nearest-neighbour stretching, then `layers` of [conv 3, group norm over all channels, Mish], then conv 1.

    Attributes:
      layers: number of convolution blocks.
      released: let padded frames into norms and neighbours, as the released code does.
      dtype: compute dtype.
    """

    layers: int
    released: bool
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, codes: jax.Array, mask: jax.Array) -> jax.Array:
        """Codes to frames: x [B, L, M] code vectors, codes int [B], mask bool [B, T] -> [B, T, M], 0 where padded."""
        width = x.shape[-1]
        index = nearest_indices(codes, mask.sum(axis=1), mask.shape[1])
        x = jnp.take_along_axis(x, index[:, :, None], axis=1)
        counted = None if self.released else mask
        keep = jnp.ones_like(mask)[:, :, None] if self.released else mask[:, :, None]
        for n in range(self.layers):
            x = Conv1d(width, 3, padding=1, dtype=self.dtype, name=f"conv_{n}")(x * keep)
            x = mish(GroupNorm(1, self.dtype, name=f"norm_{n}")(x, counted))
        return Conv1d(width, 1, dtype=self.dtype, name="out")(x) * mask[:, :, None]
