"""Excitation of the vocoder: a harmonic source that follows the pitch (neural source-filter, arXiv 1904.12088)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class SourceNoise(NamedTuple):
    """The randomness of the source.

    Attributes:
      phase: start of each harmonic, float [B, H + 1] in [-pi, pi); the fundamental's is taken as 0.
      noise: standard normal, [B, S, H + 1].
    """

    phase: jax.Array
    noise: jax.Array


def draw_source_noise(key: jax.Array, batch: int, samples: int, harmonics: int) -> SourceNoise:
    """Draws the randomness of `batch` utterances of `samples` samples."""
    phase, noise = jax.random.split(key)
    return SourceNoise(
        jax.random.uniform(phase, (batch, harmonics + 1), minval=-jnp.pi, maxval=jnp.pi),
        jax.random.normal(noise, (batch, samples, harmonics + 1)),
    )


def harmonic_cycles(f0: jax.Array, harmonics: int, sample_rate: int, hop: int) -> jax.Array:
    """Running phase of the fundamental and its overtones, in cycles.

    The pitch is constant over a frame, so a running sum per frame, kept modulo 1, replaces one over samples: in float32
    that is as good as the released code's sum in float64, where a plain float32 sum drifts audibly.

    Args:
      f0: Hz, float32 [B, T].
      harmonics: overtones H.
      sample_rate: Hz.
      hop: samples per frame.

    Returns:
      float32 [B, T * hop, H + 1] in [0, 1) up to whole cycles within a frame.
    """
    orders = jnp.arange(1, harmonics + 2, dtype=jnp.float32)
    # XLA turns division by a constant into a product with its rounded inverse, a pitch off by 3e-8 or 0.006 cycles a
    # minute; the inverse in two parts does not have that error.
    inverse = np.float32(1 / sample_rate)
    rest = np.float32(1 / sample_rate - np.float64(inverse))
    pitch = f0[:, :, None] * orders[None, None]
    step = (pitch * inverse + pitch * rest) % 1.0
    per_frame = step * hop % 1.0
    ends = jax.lax.associative_scan(lambda a, b: (a + b) % 1.0, per_frame, axis=1)
    starts = jnp.pad(ends[:, :-1], ((0, 0), (1, 0), (0, 0)))
    within = jnp.arange(1, hop + 1, dtype=jnp.float32)[None, None, :, None] * step[:, :, None]
    return (starts[:, :, None] + within % 1.0).reshape(f0.shape[0], -1, harmonics + 1)


def harmonic_source(
    f0: jax.Array,
    noise: SourceNoise,
    *,
    sample_rate: int,
    hop: int,
    amplitude: float,
    noise_amplitude: float,
    voiced_above: float,
) -> jax.Array:
    """Sines with a little noise where voiced, noise alone elsewhere.

    Args:
      f0: Hz, float32 [B, T].
      noise: randomness for T * hop samples.
      sample_rate: Hz.
      hop: samples per frame.
      amplitude: of the sines; unvoiced noise has a third of it as its standard deviation.
      noise_amplitude: standard deviation of the noise under the sines.
      voiced_above: Hz.

    Returns:
      float32 [B, T * hop, H + 1].
    """
    harmonics = noise.phase.shape[1] - 1
    phase = noise.phase.at[:, 0].set(0.0)[:, None]
    sines = amplitude * jnp.sin(2 * jnp.pi * harmonic_cycles(f0, harmonics, sample_rate, hop) + phase)
    voiced = jnp.repeat(f0 > voiced_above, hop, axis=1)[:, :, None]
    return jnp.where(voiced, sines + noise_amplitude * noise.noise, amplitude / 3 * noise.noise)
