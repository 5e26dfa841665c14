"""Critics of waveforms: one for every period (HiFi-GAN, arXiv 2010.05646 §2.3) and one for every resolution of the
spectrum (UnivNet, arXiv 2106.07889 §2.2), with least-squares losses and feature matching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from omnidiff_jax.config import Count
from omnidiff_jax.models.hift.spectral import stft

Opinion = tuple[jax.Array, list[jax.Array]]
"""What a critic says: scores [B, …], near 1 for real and 0 for made, and the features of its layers."""


@dataclass(frozen=True)
class CriticsConfig:
    """Sizes of the critics; the defaults are those of the papers, but without weight normalisation.

    Attributes:
      periods: samples between neighbours that a critic looks at.
      period_channels: widths of its strided convolutions.
      resolutions: (window, hop) of each spectrum; the hop divides the length that is judged, which is longer than half
        of the window.
      resolution_channels: width of the convolutions over it.
    """

    periods: tuple[Count, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[Count, ...] = (32, 128, 512, 1024)
    resolutions: tuple[tuple[Count, Count], ...] = ((1024, 256), (2048, 512), (512, 128))
    resolution_channels: Count = 32


class PeriodCritic(nn.Module):
    """Looks at every `period`-th sample, for all of their beginnings alike."""

    period: int
    channels: tuple[int, ...]

    @nn.compact
    def __call__(self, wave: jax.Array) -> Opinion:
        """float [B, S] -> its opinion."""
        batch, size = wave.shape
        x = jnp.pad(wave, ((0, 0), (0, -size % self.period)), mode="reflect").reshape(batch, -1, self.period)
        x = x.swapaxes(1, 2).reshape(batch * self.period, -1, 1)
        features = []
        for n, width in enumerate((*self.channels, self.channels[-1])):
            stride = 3 if n < len(self.channels) else 1
            x = nn.leaky_relu(nn.Conv(width, (5,), (stride,), padding=2, name=f"conv_{n}")(x), 0.1)
            features.append(x)
        return nn.Conv(1, (3,), padding=1, name="conv_out")(x).reshape(batch, -1), features


class ResolutionCritic(nn.Module):
    """Looks at the magnitudes of a short-time Fourier transform."""

    window: int
    hop: int
    channels: int

    @nn.compact
    def __call__(self, wave: jax.Array) -> Opinion:
        """float [B, S] -> its opinion."""
        x = magnitudes(wave, self.window, self.hop)[..., None]
        features = []
        for n, (kernel, stride) in enumerate((((3, 9), 1), ((3, 9), 2), ((3, 9), 2), ((3, 9), 2), ((3, 3), 1))):
            x = nn.leaky_relu(nn.Conv(self.channels, kernel, (1, stride), name=f"conv_{n}")(x), 0.1)
            features.append(x)
        return nn.Conv(1, (3, 3), name="conv_out")(x).reshape(len(wave), -1), features


class Critics(nn.Module):
    """All of them: float [B, S] -> an opinion each."""

    config: CriticsConfig

    @nn.compact
    def __call__(self, wave: jax.Array) -> list[Opinion]:
        config = self.config
        periods = [PeriodCritic(p, config.period_channels, name=f"period_{p}")(wave) for p in config.periods]
        spectra = [
            ResolutionCritic(window, hop, config.resolution_channels, name=f"resolution_{window}")(wave)
            for window, hop in config.resolutions
        ]
        return periods + spectra


def magnitudes(wave: jax.Array, window: int, hop: int) -> jax.Array:
    """float [B, S] -> magnitudes [B, S / hop + 1, window / 2 + 1]; S is a multiple of `hop`, above half a window."""
    real, imaginary = jnp.split(stft(wave, jnp.full(len(wave), wave.shape[1]), window, hop), 2, axis=-1)
    return jnp.sqrt(jnp.square(real) + jnp.square(imaginary) + 1e-9)


def critics_loss(real: Sequence[Opinion], made: Sequence[Opinion]) -> jax.Array:
    """What critics minimise: real is 1 and made is 0 (arXiv 2010.05646 eq. 1), summed over critics."""
    parts = [
        jnp.mean(jnp.square(1.0 - ours)) + jnp.mean(jnp.square(theirs))
        for (ours, _), (theirs, _) in zip(real, made, strict=True)
    ]
    return jnp.sum(jnp.stack(parts))


def vocoder_loss(made: Sequence[Opinion]) -> jax.Array:
    """What the vocoder minimises: made is 1 (eq. 2), summed over critics."""
    return jnp.sum(jnp.stack([jnp.mean(jnp.square(1.0 - scores)) for scores, _ in made]))


def matching_loss(real: Sequence[Opinion], made: Sequence[Opinion]) -> jax.Array:
    """Mean absolute difference of features (eq. 4), summed over layers and critics."""
    parts = [
        jnp.mean(jnp.abs(ours - theirs))
        for (_, layers), (_, others) in zip(real, made, strict=True)
        for ours, theirs in zip(layers, others, strict=True)
    ]
    return jnp.sum(jnp.stack(parts))
