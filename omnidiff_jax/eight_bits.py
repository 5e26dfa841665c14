"""Matrices in files as eight-bit integers with a scale for each output channel: a quarter of float32's bytes.

The form of `compressed-tensors` (format "int-quantized", symmetric, a scale a channel): beside tensor `NAME` of int8
lies `NAME_scale`, and what is meant is their product.
"""

import numpy as np

SCALE = "_scale"
_MOST = 127  # -128 is left out, so that a number and its negative are held alike


def in_eight_bits(value: np.ndarray, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(int8 of the same shape, float32 scales with 1 along every axis but `axis`); off by half a scale at most.

    Args:
        value: finite floats, at least one axis.
        axis: of the output channels.
    """
    wide = value.astype(np.float32)
    others = tuple(n for n in range(wide.ndim) if n != axis % wide.ndim)
    scales = np.abs(wide).max(axis=others, keepdims=True, initial=0.0) / np.float32(_MOST)
    steps = np.divide(wide, scales, out=np.zeros_like(wide), where=scales > 0)
    return np.clip(np.rint(steps), -_MOST, _MOST).astype(np.int8), scales


def from_eight_bits(value: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32, what `in_eight_bits` stands for."""
    return value.astype(np.float32) * scales.astype(np.float32)
