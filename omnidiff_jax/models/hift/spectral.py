"""Short-time Fourier transform of ragged batches and its inverse, as products with small Fourier bases.

Windows are periodic Hann, frames are centred: frame n of a signal covers samples n * hop - n_fft / 2 … + n_fft / 2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def _window(size: int) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)


def _angles(n_fft: int) -> np.ndarray:
    """2 pi n f / n_fft, [n_fft, n_fft / 2 + 1]."""
    return 2 * np.pi / n_fft * np.outer(np.arange(n_fft), np.arange(n_fft // 2 + 1))


def stft(signal: jax.Array, lengths: jax.Array, n_fft: int, hop: int) -> jax.Array:
    """Transforms each row as if it ended at its length, edges reflected.

    Args:
      signal: float [B, S].
      lengths: int [B], > n_fft / 2 and a multiple of `hop`.
      n_fft: samples of a frame.
      hop: samples between frames.

    Returns:
      float32 [B, S / hop + 1, n_fft + 2]: real parts, then imaginary parts; frames past a row's end are meaningless.
    """
    size = signal.shape[1]
    starts = np.arange(size // hop + 1) * hop - n_fft // 2
    index = jnp.abs(jnp.asarray(starts[:, None] + np.arange(n_fft)[None]))[None]
    last = lengths[:, None, None] - 1
    index = jnp.clip(last - jnp.abs(last - index), 0, size - 1)
    frames = jnp.take_along_axis(signal, index.reshape(len(signal), -1), axis=1).reshape(index.shape)
    angles = _angles(n_fft)
    basis = _window(n_fft)[:, None] * np.concatenate([np.cos(angles), -np.sin(angles)], axis=1)
    return jnp.matmul(frames, jnp.asarray(basis, jnp.float32), precision="highest")


def istft(magnitude: jax.Array, phase: jax.Array, lengths: jax.Array, hop: int) -> jax.Array:
    """Overlap-adds frames, normalised by the sum of squared windows (imaginary parts of DC and Nyquist are ignored).

    Args:
      magnitude: [B, N, n_fft / 2 + 1].
      phase: radians, same shape.
      lengths: int [B], samples of each row, (its frames - 1) * hop; frames past a row's end do not count.
      hop: samples between frames, dividing n_fft / 2.

    Returns:
      float32 [B, (N - 1) * hop], zero past each row's length.
    """
    batch, frames, bins = magnitude.shape
    n_fft = 2 * (bins - 1)
    angles, weight = _angles(n_fft).T, np.full((bins, 1), 2.0)
    weight[[0, -1]] = 1.0
    window = _window(n_fft)
    real, imaginary = (weight * wave * window[None] / n_fft for wave in (np.cos(angles), -np.sin(angles)))
    spectrum = jnp.concatenate([magnitude * jnp.cos(phase), magnitude * jnp.sin(phase)], axis=-1)
    basis = jnp.asarray(np.concatenate([real, imaginary]), jnp.float32)
    counted = (jnp.arange(frames)[None] <= lengths[:, None] // hop)[:, :, None].astype(jnp.float32)
    pieces = jnp.matmul(spectrum * counted, basis, precision="highest")
    squares = counted * jnp.asarray(window**2, jnp.float32)[None, None]
    total, envelope = (
        _overlap_add(part, hop)[:, n_fft // 2 : n_fft // 2 + (frames - 1) * hop] for part in (pieces, squares)
    )
    inside = jnp.arange(total.shape[1])[None] < lengths[:, None]
    return jnp.where(inside, total / jnp.where(inside, envelope, 1.0), 0.0)


def _overlap_add(pieces: jax.Array, hop: int) -> jax.Array:
    """[B, N, n_fft] -> [B, (N - 1) * hop + n_fft]."""
    batch, frames, n_fft = pieces.shape
    shifts = n_fft // hop
    parts = pieces.reshape(batch, frames, shifts, hop)
    total = sum(jnp.pad(parts[:, :, n], ((0, 0), (n, shifts - 1 - n), (0, 0))) for n in range(shifts))
    return total.reshape(batch, -1)  # type: ignore[union-attr]
