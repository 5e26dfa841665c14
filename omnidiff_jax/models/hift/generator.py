"""HiFT vocoder: log-mel spectrogram -> waveform, by a harmonic source and an inverse short-time Fourier transform.

Source: CosyVoice `HiFTGenerator` as released with GLM-4-Voice (HiFTNet, arXiv 2309.09493).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from omnidiff_jax.config import Count, Natural, NonNegative, Positive
from omnidiff_jax.models.hift.source import SourceNoise, harmonic_source
from omnidiff_jax.models.hift.spectral import istft, stft


@dataclass(frozen=True)
class HiftConfig:
    """Numbers of the vocoder; the defaults are the released ones.

    Attributes:
      mels: M.
      sample_rate: Hz of the waveform.
      base_channels: width before the first upsampling; each upsampling halves it.
      pitch_channels: width of the pitch predictor.
      pitch_layers: its convolutions.
      upsample_rates, upsample_kernels: of the transposed convolutions.
      resblock_kernels: residual blocks averaged after each upsampling.
      resblock_dilations: dilations inside each of them.
      source_kernels, source_dilations: of the source's residual block at each rate.
      harmonics: overtones of the source.
      n_fft, hop: of the inverse transform at the end.
      slope: of the leaky rectifiers between stages.
      limit: the waveform is clipped to +-limit.
      sine_amplitude, noise_amplitude: of the source.
      voiced_above: Hz.
      dtype: compute dtype of the convolutions; source and transforms are float32.
    """

    mels: Count = 80
    sample_rate: Count = 22050
    base_channels: Count = 512
    pitch_channels: Count = 512
    pitch_layers: Count = 5
    upsample_rates: tuple[Count, ...] = (8, 8)
    upsample_kernels: tuple[Count, ...] = (16, 16)
    resblock_kernels: tuple[Count, ...] = (3, 7, 11)
    resblock_dilations: tuple[tuple[Count, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    source_kernels: tuple[Count, ...] = (7, 11)
    source_dilations: tuple[tuple[Count, ...], ...] = ((1, 3, 5), (1, 3, 5))
    harmonics: Natural = 8
    n_fft: Count = 16
    hop: Count = 4
    slope: NonNegative = 0.1
    limit: Positive = 0.99
    sine_amplitude: NonNegative = 0.1
    noise_amplitude: NonNegative = 0.003
    voiced_above: NonNegative = 10.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for kind, count in (
            ("upsample_kernels", len(self.upsample_rates)),
            ("source_kernels", len(self.upsample_rates)),
            ("source_dilations", len(self.upsample_rates)),
            ("resblock_dilations", len(self.resblock_kernels)),
        ):
            if len(getattr(self, kind)) != count:
                raise ValueError(f"{kind} has {len(getattr(self, kind))} entries where {count} are needed")
        if self.base_channels % 2 ** len(self.upsample_rates):
            raise ValueError(f"base_channels {self.base_channels} cannot be halved {len(self.upsample_rates)} times")

    @property
    def frame_samples(self) -> int:
        """Samples per mel frame."""
        return math.prod(self.upsample_rates) * self.hop


class NormedConv1d(nn.Module):
    """Weight-normalised convolution over time, kernel = scale * direction / |direction| (arXiv 1602.07868).

    Attributes:
      features: output channels.
      kernel: kernel width.
      dilation: step between taps; output length equals input length (odd kernels).
      upsample: 1, or the stride of a transposed convolution (length times `upsample`), whose norm is per input channel.
      dtype: compute dtype.
    """

    features: int
    kernel: int
    dilation: int = 1
    upsample: int = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, in] -> [B, T * upsample, features]."""
        names, shape = ("kernel", "conv_in", "conv_out"), (self.kernel, x.shape[-1], self.features)
        reduced = (0, 1) if self.upsample == 1 else (0, 2)
        scales = tuple(1 if axis in reduced else size for axis, size in enumerate(shape))
        direction = self.param(
            "direction", nn.with_logical_partitioning(nn.initializers.lecun_normal(), names), shape, jnp.float32
        )
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones_init(), (None,) * 3), scales)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("conv_out",))
        bias = self.param("bias", zeros, (self.features,), jnp.float32)
        norm = jnp.sqrt(jnp.sum(jnp.square(direction), axis=reduced, keepdims=True))
        if self.upsample == 1:
            edge = self.dilation * (self.kernel - 1) // 2
        else:
            edge = self.kernel - 1 - (self.kernel - self.upsample) // 2
        out = lax.conv_general_dilated(
            x.astype(self.dtype),
            (scale * direction / norm).astype(self.dtype),
            window_strides=(1,),
            padding=[(edge, edge)],
            lhs_dilation=(self.upsample,),
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return out + bias[None, None].astype(self.dtype)


class PitchPredictor(nn.Module):
    """Log-mel [B, T, M] -> pitch in Hz, float32 [B, T]."""

    config: HiftConfig

    @nn.compact
    def __call__(self, mel: jax.Array, mask: jax.Array) -> jax.Array:
        x = mel
        for n in range(self.config.pitch_layers):
            conv = NormedConv1d(self.config.pitch_channels, 3, dtype=self.config.dtype, name=f"conv_{n}")
            x = nn.elu(conv(x * mask))
        return jnp.abs(_dense(1, "out", self.config.dtype)(x)[..., 0].astype(jnp.float32))


class Snake(nn.Module):
    """x + sin^2(alpha x) / alpha, alpha per channel (arXiv 2006.08195)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones = nn.with_logical_partitioning(nn.initializers.ones_init(), ("norm",))
        alpha = self.param("alpha", ones, (x.shape[-1],))[None, None].astype(x.dtype)
        return x + jnp.square(jnp.sin(alpha * x)) / (alpha + 1e-9)


class ResidualBlock(nn.Module):
    """Per dilation: x + conv(snake(dilated conv(snake(x))))."""

    kernel: int
    dilations: tuple[int, ...]
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        for n, dilation in enumerate(self.dilations):
            hidden = Snake(name=f"snake_a_{n}")(x) * mask
            hidden = NormedConv1d(x.shape[-1], self.kernel, dilation, dtype=self.dtype, name=f"conv_a_{n}")(hidden)
            hidden = Snake(name=f"snake_b_{n}")(hidden) * mask
            x = x + NormedConv1d(x.shape[-1], self.kernel, dtype=self.dtype, name=f"conv_b_{n}")(hidden)
        return x


class Hift(nn.Module):
    """The vocoder. Padded frames have no influence: every convolution sees zeros there, as beyond an edge."""

    config: HiftConfig

    @nn.compact
    def __call__(
        self, mel: jax.Array, lengths: jax.Array, noise: SourceNoise, cached_source: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Synthesises waveforms.

        Args:
          mel: log-mel float [B, T, M].
          lengths: int [B], valid frames.
          noise: randomness for T * frame_samples samples.
          cached_source: source samples [B, n] of the previous chunk, which replace the first n (streaming).

        Returns:
          float32 [B, T * frame_samples], zero past each row's end, and {"f0" [B, T] Hz, "source" [B, S]}.
        """
        config = self.config
        mask = _mask(lengths, mel.shape[1])
        f0 = PitchPredictor(config, name="pitch")(mel, mask)
        sines = harmonic_source(
            f0,
            noise,
            sample_rate=config.sample_rate,
            hop=config.frame_samples,
            amplitude=config.sine_amplitude,
            noise_amplitude=config.noise_amplitude,
            voiced_above=config.voiced_above,
        )
        # The pitch is taught by itself: its gradient through the running phase grows with every sample.
        source = jnp.tanh(_dense(1, "source_mix", "float32")(lax.stop_gradient(sines)))[..., 0]
        if cached_source is not None:
            source = source.at[:, : cached_source.shape[1]].set(cached_source)
        spectrum = stft(source, lengths * config.frame_samples, config.n_fft, config.hop)

        x = NormedConv1d(config.base_channels, 7, dtype=config.dtype, name="conv_in")(mel * mask)
        stages = len(config.upsample_rates)
        for n, (rate, kernel) in enumerate(zip(config.upsample_rates, config.upsample_kernels, strict=True)):
            width = config.base_channels // 2 ** (n + 1)
            x = nn.leaky_relu(x, config.slope) * mask
            x = NormedConv1d(width, kernel, upsample=rate, dtype=config.dtype, name=f"up_{n}")(x)
            lengths = lengths * rate
            if n == stages - 1:
                # One frame more than samples / hop: the inverse transform is centred.
                x, lengths = jnp.pad(x, ((0, 0), (1, 0), (0, 0)), mode="reflect"), lengths + 1
            mask = _mask(lengths, x.shape[1])
            x = x + self._source_branch(spectrum, n, width, mask)
            blocks = [
                ResidualBlock(size, config.resblock_dilations[i], config.dtype, name=f"resblock_{n}_{i}")(x, mask)
                for i, size in enumerate(config.resblock_kernels)
            ]
            x = sum(blocks[1:], blocks[0]) / len(blocks)
        # The released head uses the default slope here, not the config's.
        x = nn.leaky_relu(x, 0.01) * mask
        x = NormedConv1d(config.n_fft + 2, 7, dtype=config.dtype, name="conv_out")(x).astype(jnp.float32)
        magnitude, phase = jnp.split(x, 2, axis=-1)
        magnitude = jnp.minimum(jnp.exp(magnitude), 100.0)
        wave = istft(magnitude, jnp.sin(phase), (lengths - 1) * config.hop, config.hop)
        return jnp.clip(wave, -config.limit, config.limit), {"f0": f0, "source": source}

    def _source_branch(self, spectrum: jax.Array, n: int, width: int, mask: jax.Array) -> jax.Array:
        """Source spectrum [B, frames, n_fft + 2] brought to the rate and width of stage n."""
        config = self.config
        rate = math.prod(config.upsample_rates[n + 1 :])
        kernel, padding = (1, 0) if rate == 1 else (2 * rate, rate // 2)
        # The spectrum has one frame more than the finest stage has frames before its padding.
        finest = (mask.sum(axis=(1, 2)) - (n == len(config.upsample_rates) - 1)) * rate + 1
        conv = nn.Conv(
            width,
            (kernel,),
            (rate,),
            padding=[(padding, padding)],
            dtype=config.dtype,
            kernel_init=nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("kernel", "conv_in", "conv_out")),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), ("conv_out",)),
            name=f"source_down_{n}",
        )
        branch = conv(spectrum * _mask(finest, spectrum.shape[1]))
        block = ResidualBlock(
            config.source_kernels[n], config.source_dilations[n], config.dtype, name=f"source_block_{n}"
        )
        return block(branch, mask)


def _mask(lengths: jax.Array, size: int) -> jax.Array:
    """bool [B, size, 1]."""
    return (jnp.arange(size)[None] < lengths[:, None])[:, :, None]


def _dense(width: int, name: str, dtype: str) -> nn.Dense:
    return nn.Dense(
        width,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", None)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), (None,)),
        name=name,
    )
