"""Building blocks of the flow decoder: partitioned dense and 1-d convolution layers, norms that know padding."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

NORM_EPSILON = 1e-5


def dense(
    width: int, names: tuple[str | None, str | None], *, bias: bool = True, dtype: str, name: str | None = None
) -> nn.Dense:
    """Linear layer with logical axis `names` = (input, output)."""
    return nn.Dense(
        width,
        use_bias=bias,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(nn.initializers.lecun_normal(), names),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), names[1:]),
        name=name,
    )


def layer_norm(dtype: str, name: str) -> nn.LayerNorm:
    """LayerNorm over the last axis, statistics in float32."""
    return nn.LayerNorm(
        epsilon=NORM_EPSILON,
        dtype=dtype,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones_init(), ("norm",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), ("norm",)),
        name=name,
    )


class Conv1d(nn.Module):
    """Convolution over time, [B, T, in] -> [B, T', features].

    Attributes:
      features: output channels.
      kernel: kernel width k.
      stride: step; T' = (T + 2 * padding - k) // stride + 1.
      padding: zeros on either side.
      dtype: compute dtype.
    """

    features: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = _kernel_and_bias(self, (self.kernel, x.shape[-1], self.features))
        out = lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel,
            window_strides=(self.stride,),
            padding=[(self.padding, self.padding)],
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return out + bias[None, None]


class ConvTranspose1d(nn.Module):
    """Transposed convolution over time, [B, T, in] -> [B, (T - 1) * stride - 2 * padding + k, features].

    The kernel [k, in, out] is the time-reversed torch kernel: it is correlated with the stretched input.
    """

    features: int
    kernel: int
    stride: int
    padding: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = _kernel_and_bias(self, (self.kernel, x.shape[-1], self.features))
        edge = self.kernel - 1 - self.padding
        out = lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel,
            window_strides=(1,),
            padding=[(edge, edge)],
            lhs_dilation=(self.stride,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return out + bias[None, None]


def _kernel_and_bias(module: nn.Module, shape: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """Parameters "kernel" (`shape`) and "bias" of a convolution, in the module's compute dtype."""
    init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("kernel", "conv_in", "conv_out"))
    zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("conv_out",))
    kernel = module.param("kernel", init, tuple(shape), jnp.float32)
    bias = module.param("bias", zeros, (shape[-1],), jnp.float32)
    return kernel.astype(module.dtype), bias.astype(module.dtype)


class GroupNorm(nn.Module):
    """Group normalisation over (time, channels of a group), statistics in float32.

    Attributes:
      groups: number of channel groups.
      dtype: dtype of the result.
    """

    groups: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Normalises x [B, T, D] over the frames that count: mask bool [B, T], None = all of them."""
        width = x.shape[-1]
        names = ("norm",)
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones_init(), names), (width,))
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros_init(), names), (width,))
        grouped = x.astype(jnp.float32).reshape(*x.shape[:2], self.groups, width // self.groups)
        where = None if mask is None else mask[:, :, None, None]
        mean = jnp.mean(grouped, axis=(1, 3), keepdims=True, where=where)
        variance = jnp.mean(jnp.square(grouped - mean), axis=(1, 3), keepdims=True, where=where)
        # A row without a single frame (batch filler) has no statistics: keep it finite.
        mean, variance = jnp.nan_to_num(mean), jnp.nan_to_num(variance)
        normed = (grouped - mean) * lax.rsqrt(variance + NORM_EPSILON)
        return (normed.reshape(x.shape) * scale[None, None] + bias[None, None]).astype(self.dtype)


def length_mask(lengths: jax.Array, size: int) -> jax.Array:
    """Valid places of rows of `lengths` int [B] in a buffer of `size`: bool [B, size]."""
    return jnp.arange(size)[None] < lengths[:, None]


def mish(x: jax.Array) -> jax.Array:
    """x * tanh(softplus(x))."""
    return x * jnp.tanh(nn.softplus(x))
