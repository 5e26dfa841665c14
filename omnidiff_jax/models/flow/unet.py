"""Velocity estimator of the flow decoder: a 1-d U-Net of residual convolutions and transformer blocks.

Source: CosyVoice `ConditionalDecoder` (after Matcha-TTS, arXiv 2309.03199, figure 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from omnidiff_jax.config import Count, Natural
from omnidiff_jax.models.flow.layers import Conv1d, ConvTranspose1d, GroupNorm, dense, layer_norm, mish


@dataclass(frozen=True)
class EstimatorConfig:
    """Numbers of the velocity estimator.

    Attributes:
      channels: width of each resolution level; every level but the last halves the frame rate.
      mid_blocks: residual + transformer blocks at the lowest rate.
      transformers: transformer blocks after each residual block.
      heads: H.
      head_dim: width of a head (H * head_dim need not be the channel width).
      expansion: feed-forward width and time-embedding width, in channel widths.
      groups: groups of the group norms.
    """

    channels: tuple[Count, ...] = (256, 256)
    mid_blocks: Natural = 12
    transformers: Natural = 4
    heads: Count = 8
    head_dim: Count = 64
    expansion: Count = 4
    groups: Count = 8

    def __post_init__(self) -> None:
        for width in self.channels:
            if width % self.groups:
                raise ValueError(f"groups {self.groups} does not divide the width {width}")
        if not self.channels:
            raise ValueError("channels must name at least one level")


@dataclass(frozen=True)
class _Context:
    """What every block needs besides its own width."""

    config: EstimatorConfig
    released: bool
    dtype: str


def time_sinusoid(t: jax.Array, width: int) -> jax.Array:
    """Flow time t in [0, 1], float [B] -> float32 [B, width]: sines, then cosines, of 1000 t."""
    half = width // 2
    rates = np.exp(np.arange(half) * (-np.log(10000.0) / (half - 1))).astype(np.float32)
    angles = 1000.0 * t.astype(jnp.float32)[:, None] * rates[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ConvBlock(nn.Module):
    """Conv 3, group norm, Mish on the valid frames."""

    width: int
    context: _Context

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        keep = mask[:, :, None]
        dtype = self.context.dtype
        x = Conv1d(self.width, 3, padding=1, dtype=dtype, name="conv")(x * keep)
        counted = None if self.context.released else mask
        return mish(GroupNorm(self.context.config.groups, dtype, name="norm")(x, counted)) * keep


class ResidualBlock(nn.Module):
    """Two convolution blocks with the time embedding added between them, around a 1x1 shortcut."""

    width: int
    context: _Context

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, time: jax.Array) -> jax.Array:
        """One block: x [B, T, D], mask bool [B, T], time [B, F] -> [B, T, width]."""
        dtype = self.context.dtype
        shift = dense(self.width, ("mlp", "embed"), dtype=dtype, name="time")(mish(time))
        hidden = ConvBlock(self.width, self.context, name="block_0")(x, mask) + shift[:, None]
        hidden = ConvBlock(self.width, self.context, name="block_1")(hidden, mask)
        return hidden + Conv1d(self.width, 1, dtype=dtype, name="shortcut")(x * mask[:, :, None])


class TransformerBlock(nn.Module):
    """Pre-norm attention over all frames and GELU feed-forward; a scan body (carry, bias) -> (carry, None)."""

    context: _Context

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> tuple[jax.Array, None]:
        config, dtype, width = self.context.config, self.context.dtype, x.shape[-1]
        inner = config.heads * config.head_dim

        def project(value: jax.Array, name: str) -> jax.Array:
            out = dense(inner, ("embed", "heads"), bias=False, dtype=dtype, name=name)(value)
            return out.reshape(*value.shape[:2], config.heads, config.head_dim)

        hidden = layer_norm(dtype, "attention_norm")(x)
        query, key, value = (project(hidden, name) for name in ("query", "key", "value"))
        scores = jnp.einsum("bihd,bjhd->bhij", query, key).astype(jnp.float32) * config.head_dim**-0.5
        weights = nn.softmax(scores + bias[:, None]).astype(dtype)
        mixed = jnp.einsum("bhij,bjhd->bihd", weights, value).reshape(*x.shape[:2], inner)
        x = x + dense(width, ("heads", "embed"), dtype=dtype, name="out")(mixed)
        hidden = layer_norm(dtype, "mlp_norm")(x)
        hidden = dense(config.expansion * width, ("embed", "mlp"), dtype=dtype, name="up")(hidden)
        hidden = nn.gelu(hidden, approximate=False)
        return x + dense(width, ("mlp", "embed"), dtype=dtype, name="down")(hidden), None


class Stage(nn.Module):
    """A residual block and its transformer blocks; also a scan body (x, mask, bias, time) -> (x, None)."""

    width: int
    context: _Context

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, bias: jax.Array, time: jax.Array) -> tuple[jax.Array, None]:
        x = ResidualBlock(self.width, self.context, name="residual")(x, mask, time)
        if not self.context.config.transformers:
            return x, None
        transformers = nn.scan(
            TransformerBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.context.config.transformers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(self.context, name="transformers")
        return transformers(x, bias)


def attention_bias(mask: jax.Array, released: bool) -> jax.Array:
    """Additive score bias float32 [B, T, T].

    By default padded keys are out of sight. `released`: the 0/1 matrix m m^T itself is added, so that pairs of valid
    frames gain 1 and padded frames leak into ragged batches (without effect where every frame is valid).
    """
    if released:
        return (mask[:, :, None] & mask[:, None, :]).astype(jnp.float32)
    hidden = jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min)
    return jnp.broadcast_to(hidden[:, None, :], (*mask.shape, mask.shape[1]))


class Estimator(nn.Module):
    """Velocity field v(x, t | mu, speaker, condition).

    Attributes:
      config: sizes.
      mels: M.
      released: treat padding as the released code does.
      dtype: compute dtype.
    """

    config: EstimatorConfig
    mels: int
    released: bool
    dtype: str

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, mu: jax.Array, t: jax.Array, speaker: jax.Array, condition: jax.Array
    ) -> jax.Array:
        """Estimates the velocity.

        Args:
          x: noisy mel [B, T, M].
          mask: bool [B, T], valid frames.
          mu: [B, T, M] from the length regulator.
          t: [B] in [0, 1].
          speaker: [B, M].
          condition: mel of the prompt in its frames, zero elsewhere: [B, T, M].

        Returns:
          float32 [B, T, M], zero where padded.
        """
        config, context = self.config, _Context(self.config, self.released, self.dtype)
        conv = {"dtype": self.dtype}
        speakers = jnp.broadcast_to(speaker[:, None], x.shape)
        x = jnp.concatenate([x, mu, speakers, condition], axis=-1).astype(self.dtype)

        time = time_sinusoid(t, x.shape[-1])
        width = config.expansion * config.channels[0]
        time = dense(width, ("embed", "mlp"), name="time_0", dtype=self.dtype)(time)
        time = dense(width, ("mlp", None), name="time_1", dtype=self.dtype)(nn.silu(time))

        levels = len(config.channels)
        masks, biases, skips = [mask], [attention_bias(mask, self.released)], []
        for n, width in enumerate(config.channels):
            x, _ = Stage(width, context, name=f"down_{n}")(x, masks[n], biases[n], time)
            skips.append(x)
            stride = 1 if n == levels - 1 else 2
            x = Conv1d(width, 3, stride, padding=1, name=f"down_conv_{n}", **conv)(x * masks[n][:, :, None])
            if stride == 2:
                masks.append(masks[n][:, ::2])
                biases.append(attention_bias(masks[-1], self.released))

        if config.mid_blocks:
            middle = nn.scan(
                Stage,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=config.mid_blocks,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(config.channels[-1], context, name="middle")
            x, _ = middle(x, masks[-1], biases[-1], time)

        for n, level in enumerate(reversed(range(levels))):
            width = config.channels[max(level - 1, 0)]
            x = jnp.concatenate([x[:, : skips[level].shape[1]], skips[level]], axis=-1)
            x, _ = Stage(width, context, name=f"up_{n}")(x, masks[level], biases[level], time)
            x = x * masks[level][:, :, None]
            if level:
                x = ConvTranspose1d(width, 4, 2, 1, name=f"up_conv_{n}", **conv)(x)
            else:
                x = Conv1d(width, 3, padding=1, name=f"up_conv_{n}", **conv)(x)

        x = ConvBlock(config.channels[0], context, name="final")(x, mask)
        x = Conv1d(self.mels, 1, name="out", **conv)(x)
        return x.astype(jnp.float32) * mask[:, :, None]
