"""Packed rows in the released code's form."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from omnidiff_jax.data.packing import Packer, PackingConfig


@dataclasses.dataclass(frozen=True)
class ReleasedRow:
    """A row as the released collator gives it.

    Attributes:
        input_ids: int32 [L], padded with the pad id.
        labels: int32 [L], padded with -100.
        position_ids: int32 [L], restarting per sample, continuing through the padding.
        attention_mask: int32 [L], 1 where a sample is.
        cu_seq_lens: int32 [samples + 1], starts of the samples, then L.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    attention_mask: np.ndarray
    cu_seq_lens: np.ndarray


def pack_released(samples: Sequence[tuple[np.ndarray, np.ndarray]], length: int, pad: int) -> list[ReleasedRow]:
    """The released code's packing of (ids, labels) samples, int [n] each, into complete rows.

    Samples longer than a row are dropped, and the unfinished last row is never emitted.
    """
    packer: Packer[int] = Packer(PackingConfig(length=length, frames=0, samples=length + 1, strategy="released"))
    rows: list[list[int]] = []
    for number, (ids, _) in enumerate(samples):
        if packer.fits(len(ids), 0):
            rows += packer.add(number, len(ids), 0)
    return [_released_row([samples[i] for i in row], length, pad) for row in rows]


def _released_row(samples: Sequence[tuple[np.ndarray, np.ndarray]], length: int, pad: int) -> ReleasedRow:
    lengths = np.array([len(ids) for ids, _ in samples])
    used = int(lengths.sum())
    input_ids = np.full(length, pad, np.int32)
    labels = np.full(length, -100, np.int32)
    input_ids[:used] = np.concatenate([ids for ids, _ in samples])
    labels[:used] = np.concatenate([label for _, label in samples])
    starts = np.cumsum(lengths) - lengths
    lengths[-1] += length - used
    return ReleasedRow(
        input_ids,
        labels,
        (np.arange(length) - np.repeat(starts, lengths)).astype(np.int32),
        (np.arange(length) < used).astype(np.int32),
        np.append(starts, length).astype(np.int32),
    )
