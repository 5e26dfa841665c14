"""Pitch of speech, frame by frame, from its autocorrelation: what the vocoder's pitch predictor is taught."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

# Of several periods that fit, the shortest whose correlation is that near to the best: the others are its multiples.
_NEAR_BEST = 0.9
_QUIET = 1e-3  # root mean square below which nothing is voiced


def pitch(
    samples: np.ndarray, rate: int, hop: int, low: float = 60.0, high: float = 500.0, voiced: float = 0.6
) -> np.ndarray:
    """The fundamental frequency by normalised cross-correlation (Talkin 1995, without its search over time).

    Args:
        samples: float32 [n].
        rate: Hz.
        hop: samples between frames; frame t is the pitch in the middle of samples t * hop … (t + 1) * hop.
        low, high: Hz, of what is looked for.
        voiced: least correlation of a period with the next.

    Returns:
        float32 [n // hop], Hz; 0 where there is no voice.
    """
    longest, shortest = int(np.ceil(rate / low)), int(rate / high)
    window = longest  # a period at least
    frames = len(samples) // hop
    if frames == 0:
        return np.zeros(0, np.float32)
    before = (window + longest - hop) // 2
    padded = np.pad(np.asarray(samples, np.float64), (max(before, 0), window + longest))
    parts = sliding_window_view(padded, window + longest)[::hop][:frames]
    parts = parts - parts.mean(axis=1, keepdims=True)
    size = 1 << (window + longest - 1).bit_length()
    first = np.fft.rfft(parts[:, :window], size)
    products = np.fft.irfft(np.conj(first) * np.fft.rfft(parts, size), size)[:, : longest + 1]
    sums = np.pad(np.cumsum(np.square(parts), axis=1), ((0, 0), (1, 0)))
    energies = sums[:, window:] - sums[:, : longest + 1]
    correlation = products / np.sqrt(np.maximum(energies[:, :1] * energies, 1e-20))
    inner = correlation[:, shortest:longest]
    peaks = (inner >= correlation[:, shortest - 1 : longest - 1]) & (inner >= correlation[:, shortest + 1 :])
    heights = np.where(peaks, inner, -1.0)
    best = heights.max(axis=1)
    at = np.argmax(heights >= _NEAR_BEST * np.maximum(best, 1e-9)[:, None], axis=1) + shortest
    rows = np.arange(frames)
    left, middle, right = (correlation[rows, at + shift] for shift in (-1, 0, 1))
    bend = left - 2.0 * middle + right
    shift = np.where(bend < 0, 0.5 * (left - right) / np.minimum(bend, -1e-12), 0.0)
    loud = energies[:, 0] > window * _QUIET**2
    return np.where(loud & (best >= voiced), rate / (at + shift), 0.0).astype(np.float32)
