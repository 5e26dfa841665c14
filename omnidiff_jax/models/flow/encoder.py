"""Token encoder of the flow decoder: a conformer without convolutions, attending block by block.

Source: CosyVoice `BlockConformerEncoder` with `block_rel_selfattn`; relative positions after Transformer-XL
(arXiv 1901.02860, eq. in section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from omnidiff_jax.config import Count
from omnidiff_jax.models.flow.layers import dense, layer_norm, length_mask


@dataclass(frozen=True)
class TokenEncoderConfig:
    """Numbers of the token encoder.

    Attributes:
      width: D, also the width of the code embedding.
      heads: H, dividing `width`.
      hidden: F of the feed-forward layers.
      layers: N.
      block_size: codes per block; a code attends to its own block and to everything before it.
    """

    width: Count = 512
    heads: Count = 8
    hidden: Count = 2048
    layers: Count = 6
    block_size: Count = 10

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


def relative_positions(length: int, width: int) -> np.ndarray:
    """Sinusoids of the offsets length-1 … -(length-1), sine and cosine interleaved: float32 [2*length-1, width]."""
    offsets = np.arange(length - 1, -length, -1, dtype=np.float32)
    rates = np.exp(np.arange(0, width, 2, dtype=np.float32) * np.float32(-np.log(10000.0) / width))
    table = np.empty((2 * length - 1, width), np.float32)
    table[:, 0::2] = np.sin(offsets[:, None] * rates)
    table[:, 1::2] = np.cos(offsets[:, None] * rates)
    return table


def _shift(scores: jax.Array) -> jax.Array:
    """[B, H, L, 2L-1] over offsets L-1 … -(L-1) -> [B, H, L, L]: entry (i, j) takes the column of offset i - j."""
    batch, heads, length, offsets = scores.shape
    padded = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (1, 0)))
    skewed = padded.reshape(batch, heads, offsets + 1, length)[:, :, 1:].reshape(batch, heads, length, offsets)
    return skewed[..., :length]


def block_mask(lengths: jax.Array, length: int, block_size: int) -> jax.Array:
    """Who sees whom: bool [B, L, L], true where j <= i or both lie in one block, and j < lengths[b]."""
    index = np.arange(length)
    visible = (index[None, :] <= index[:, None]) | (index[None, :] // block_size == index[:, None] // block_size)
    return jnp.asarray(visible)[None] & length_mask(lengths, length)[:, None, :]


class RelativeAttention(nn.Module):
    """Self-attention whose scores add a content bias u and a position term (q + v) p, p by offset."""

    config: TokenEncoderConfig
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, table: jax.Array) -> jax.Array:
        """Attends: x [B, L, D], mask bool [B, L, L], table [2L-1, D] of relative positions -> [B, L, D]."""
        heads, head_dim = self.config.heads, self.config.width // self.config.heads

        def project(value: jax.Array, name: str, bias: bool = True) -> jax.Array:
            out = dense(self.config.width, ("embed", "heads"), bias=bias, dtype=self.dtype, name=name)(value)
            return out.reshape(*value.shape[:-1], heads, head_dim)

        zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("heads", "head_dim"))
        content_bias = self.param("content_bias", zeros, (heads, head_dim))[None, None].astype(self.dtype)
        position_bias = self.param("position_bias", zeros, (heads, head_dim))[None, None].astype(self.dtype)
        query, key, value = (project(x, name) for name in ("query", "key", "value"))
        position = project(table.astype(self.dtype), "position", bias=False)
        scores = jnp.einsum("bihd,bjhd->bhij", query + content_bias, key)
        scores += _shift(jnp.einsum("bihd,ohd->bhio", query + position_bias, position))
        scores = scores.astype(jnp.float32) * head_dim**-0.5
        mask = mask[:, None]
        weights = nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min)) * mask
        mixed = jnp.einsum("bhij,bjhd->bihd", weights.astype(self.dtype), value)
        return dense(x.shape[-1], ("heads", "embed"), dtype=self.dtype, name="out")(mixed.reshape(x.shape))


class EncoderLayer(nn.Module):
    """Pre-norm attention and SiLU feed-forward; a scan body (carry, mask, table) -> (carry, None)."""

    config: TokenEncoderConfig
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, table: jax.Array) -> tuple[jax.Array, None]:
        attended = layer_norm(self.dtype, "attention_norm")(x)
        x = x + RelativeAttention(self.config, self.dtype, name="attention")(attended, mask, table)
        hidden = layer_norm(self.dtype, "mlp_norm")(x)
        hidden = nn.silu(dense(self.config.hidden, ("embed", "mlp"), dtype=self.dtype, name="up")(hidden))
        return x + dense(x.shape[-1], ("mlp", "embed"), dtype=self.dtype, name="down")(hidden), None


class TokenEncoder(nn.Module):
    """Code embeddings [B, L, D] -> contextual vectors [B, L, D]."""

    config: TokenEncoderConfig
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:
        """Encodes x float [B, L, D], zero where padded, of which lengths int [B] codes are valid."""
        length, width = x.shape[1], self.config.width
        x = dense(width, ("embed", "mlp"), dtype=self.dtype, name="input")(x)
        x = layer_norm(self.dtype, "input_norm")(x) * width**0.5
        layers = nn.scan(
            EncoderLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.config.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(self.config, self.dtype, name="layers")
        mask = block_mask(lengths, length, self.config.block_size)
        x, _ = layers(x, mask, jnp.asarray(relative_positions(length, width)))
        return layer_norm(self.dtype, "output_norm")(x)
