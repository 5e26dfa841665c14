"""MAGVIT-v2 image autoencoder (arXiv 2310.05737; layout of showlab/magvitv2), channels last.

Images [B, H, W, 3] in [-1, 1]; features and codes on a grid [B, H/f, W/f, ...], f = `MagvitConfig.downsampling`.
"""

import dataclasses
import functools
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from omnidiff_jax.config import Count, Natural, Range
from omnidiff_jax.models import lfq


@dataclasses.dataclass(frozen=True)
class MagvitConfig:
    """Sizes of the autoencoder; the defaults are showlab/magvitv2.

    Attributes:
        channels: width unit.
        encoder_multipliers, decoder_multipliers: width of each level in units of `channels`, finest level first.
        encoder_blocks, decoder_blocks: residual blocks of each level, finest level first.
        encoder_kernels: kernel of the encoder's convolutions on each level, finest first (the input, the middle and the
            output convolution use their level's). 1 keeps a code from looking past its own patch.
        downsample_kernel: 3 reaches one pixel right and below (released), 2 stays inside the patch.
        encoder_middle, decoder_middle: residual block, attention, residual block on the coarsest level; attention is
            global.
        patch: pixels folded into channels before the encoder and unfolded after the decoder, per side.
        code_bits: K, so 2**K codes.
        norm_groups: channel groups of the normalisation.
        norm_scope: "image" takes a group's statistics over the whole image (released), "position" over one position, so
            that far objects cannot change a code.
        dtype: compute dtype; normalisation is in float32.
    """

    channels: Count = 128
    encoder_multipliers: tuple[Count, ...] = (1, 2, 2, 4, 4)
    encoder_blocks: tuple[Natural, ...] = (4, 3, 4, 3, 4)
    encoder_kernels: tuple[Count, ...] = (3, 3, 3, 3, 3)
    downsample_kernel: Count = 3
    decoder_multipliers: tuple[Count, ...] = (1, 1, 2, 2, 4)
    decoder_blocks: tuple[Natural, ...] = (4, 4, 3, 4, 3)
    encoder_middle: bool = True
    decoder_middle: bool = True
    patch: Count = 1
    code_bits: Annotated[int, Range(1, 30)] = 13
    norm_groups: Count = 32
    norm_scope: Literal["image", "position"] = "image"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        levels = len(self.encoder_multipliers)
        if not levels:
            raise ValueError("encoder_multipliers must name at least one level")
        for name in ("encoder_blocks", "encoder_kernels", "decoder_multipliers", "decoder_blocks"):
            if len(getattr(self, name)) != levels:
                raise ValueError(f"{name} has {len(getattr(self, name))} levels, encoder_multipliers has {levels}")
        for multiplier in (*self.encoder_multipliers, *self.decoder_multipliers):
            if self.channels * multiplier % self.norm_groups:
                width = self.channels * multiplier
                raise ValueError(f"norm_groups {self.norm_groups} does not divide the width {width}")

    @property
    def downsampling(self) -> int:
        """f: pixels per code, per side."""
        return self.patch * 2 ** (len(self.encoder_multipliers) - 1)

    @property
    def codebook_size(self) -> int:
        return 2**self.code_bits


class Norm(nn.Module):
    """Group normalisation, eps 1e-6, statistics in float32. [B, H, W, C] -> same."""

    config: MagvitConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("norm",)), (channels,))
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)), (channels,))
        groups = x.astype(jnp.float32).reshape(*x.shape[:-1], self.config.norm_groups, -1)
        axes = (1, 2, 4) if self.config.norm_scope == "image" else (4,)
        mean = jnp.mean(groups, axis=axes, keepdims=True)
        variance = jnp.mean(jnp.square(groups - mean), axis=axes, keepdims=True)
        y = ((groups - mean) * jax.lax.rsqrt(variance + 1e-6)).reshape(x.shape)
        along_channels = (1,) * (x.ndim - 1) + (channels,)
        return (y * scale.reshape(along_channels) + bias.reshape(along_channels)).astype(x.dtype)


def _conv(config: MagvitConfig, width: int, kernel: int, name: str, stride: int = 1, padding="SAME") -> nn.Conv:
    return nn.Conv(
        width,
        (kernel, kernel),
        strides=stride,
        padding=padding,
        dtype=jnp.dtype(config.dtype),
        kernel_init=nn.with_logical_partitioning(
            nn.initializers.lecun_normal(), ("kernel", "kernel", "conv_in", "conv_out")
        ),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",)),
        name=name,
    )


class ResidualBlock(nn.Module):
    """Norm, swish, conv, twice; a 1x1 shortcut where the width changes."""

    config: MagvitConfig
    width: int
    kernel: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(_conv, self.config, self.width)
        y = conv(self.kernel, "conv1")(nn.swish(Norm(self.config, name="norm1")(x)))
        y = conv(self.kernel, "conv2")(nn.swish(Norm(self.config, name="norm2")(y)))
        return y + (x if x.shape[-1] == self.width else conv(1, "nin_shortcut")(x))


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions; softmax in float32."""

    config: MagvitConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        conv = functools.partial(_conv, self.config, channels, 1)
        y = Norm(self.config, name="norm")(x)
        q, k, v = (conv(name)(y).reshape(batch, height * width, channels) for name in ("q", "k", "v"))
        scores = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32) * channels**-0.5
        mixed = jnp.einsum("bqk,bkc->bqc", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)
        return x + conv("proj_out")(mixed.reshape(x.shape))


class Middle(nn.Module):
    """Residual block, attention, residual block at constant width."""

    config: MagvitConfig
    kernel: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ResidualBlock(self.config, x.shape[-1], self.kernel, name="block_1")(x)
        x = AttentionBlock(self.config, name="attn_1")(x)
        return ResidualBlock(self.config, x.shape[-1], self.kernel, name="block_2")(x)


class Encoder(nn.Module):
    """Images [B, H, W, 3] -> features [B, H/f, W/f, K]."""

    config: MagvitConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        cfg = self.config
        x = fold(images.astype(jnp.dtype(cfg.dtype)), cfg.patch)
        x = _conv(cfg, cfg.channels, cfg.encoder_kernels[0], "conv_in")(x)
        last = len(cfg.encoder_multipliers) - 1
        for level, (multiplier, kernel) in enumerate(zip(cfg.encoder_multipliers, cfg.encoder_kernels, strict=True)):
            for block in range(cfg.encoder_blocks[level]):
                x = ResidualBlock(cfg, cfg.channels * multiplier, kernel, name=f"down_{level}_block_{block}")(x)
            if level < last:
                reach = ((0, cfg.downsample_kernel - 2),) * 2
                name = f"down_{level}_downsample"
                x = _conv(cfg, x.shape[-1], cfg.downsample_kernel, name, stride=2, padding=reach)(x)
        kernel = cfg.encoder_kernels[last]
        if cfg.encoder_middle:
            x = Middle(cfg, kernel, name="mid")(x)
        x = nn.swish(Norm(cfg, name="norm_out")(x))
        x = _conv(cfg, cfg.code_bits, kernel, "conv_out")(x)
        return _conv(cfg, cfg.code_bits, 1, "quant_conv")(x)


class Decoder(nn.Module):
    """Codebook entries ±1 [B, h, w, K] -> images [B, h*f, w*f, 3], about [-1, 1] (unclamped)."""

    config: MagvitConfig

    @nn.compact
    def __call__(self, entries: jax.Array) -> jax.Array:
        cfg = self.config
        x = _conv(cfg, cfg.code_bits, 1, "post_quant_conv")(entries.astype(jnp.dtype(cfg.dtype)))
        x = _conv(cfg, cfg.channels * cfg.decoder_multipliers[-1], 3, "conv_in")(x)
        if cfg.decoder_middle:
            x = Middle(cfg, name="mid")(x)
        for level in reversed(range(len(cfg.decoder_multipliers))):
            for block in range(cfg.decoder_blocks[level]):
                width = cfg.channels * cfg.decoder_multipliers[level]
                x = ResidualBlock(cfg, width, name=f"up_{level}_block_{block}")(x)
            if level > 0:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = _conv(cfg, x.shape[-1], 3, f"up_{level}_upsample")(x)
        x = nn.swish(Norm(cfg, name="norm_out")(x))
        return unfold(_conv(cfg, 3 * cfg.patch**2, 3, "conv_out")(x), cfg.patch)


class Magvit(nn.Module):
    """Encoder, look-up-free quantizer and decoder."""

    config: MagvitConfig

    def setup(self) -> None:
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images [B, H, W, 3] -> (reconstruction [B, H, W, 3] float32, features before quantization [B, h, w, K])."""
        z = self.features(images)
        return self.decoder(lfq.quantize(z)).astype(jnp.float32), z

    def features(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] -> float32 [B, h, w, K]; their signs are the code."""
        return self.encoder(images).astype(jnp.float32)

    def encode(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] -> codes int32 [B, h, w]."""
        return lfq.bits_to_codes(self.features(images))

    def decode(self, codes: jax.Array) -> jax.Array:
        """Codes int [B, h, w] in 0 .. 2**K - 1 -> images float32 [B, h*f, w*f, 3], unclamped."""
        return self.decoder(lfq.codes_to_bits(codes, self.config.code_bits)).astype(jnp.float32)


def fold(images: jax.Array, patch: int) -> jax.Array:
    """[B, H, W, C] -> [B, H/patch, W/patch, patch*patch*C]."""
    batch, height, width, channels = images.shape
    x = images.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // patch, width // patch, -1)


def unfold(x: jax.Array, patch: int) -> jax.Array:
    """The inverse of `fold`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, patch, patch, channels // patch**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * patch, width * patch, -1)
