"""Ragged sequences in few fixed batch shapes, so that jitted functions compile once for each and never again."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Group:
    """Sequences that travel in one batch.

    Attributes:
        members: their indices.
        rows: rows of the batch, not fewer than members.
        length: places of a row.
        lengths: int32 [rows], valid places of each row, 0 in surplus rows.
    """

    members: tuple[int, ...]
    rows: int
    length: int
    lengths: np.ndarray

    def pad(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """The members' arrays [n, ...] -> [rows, length, ...], zeros behind and below."""
        first = sequences[0]
        batch = np.zeros((self.rows, self.length, *first.shape[1:]), first.dtype)
        for row, sequence in enumerate(sequences):
            batch[row, : len(sequence)] = sequence
        return batch


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Which batch shapes there are.

    Attributes:
        shortest: length of the smallest bucket; the others are its doubles.
        rows: rows that a batch may have, rising, from 1 on.
        places: no batch has more rows * length than this, unless it has one row.
        longest: no bucket is longer, nor any sequence; None = no limit.
    """

    shortest: int
    rows: tuple[int, ...]
    places: int
    longest: int | None = None

    def length(self, size: int) -> int:
        """Length of the bucket of a sequence."""
        bucket = self.shortest
        while bucket < size:
            bucket *= 2
        return bucket if self.longest is None else min(bucket, self.longest)

    def groups(self, sizes: Sequence[int]) -> Iterator[Group]:
        """Splits sequences of these sizes into batches; empty ones are left out."""
        waiting: dict[int, list[int]] = {}
        for index, size in enumerate(sizes):
            if size:
                waiting.setdefault(self.length(size), []).append(index)
        for length, indices in sorted(waiting.items()):
            while indices:
                rows = self._fit(len(indices), length)
                members, indices = indices[:rows], indices[rows:]
                lengths = np.zeros(rows, np.int32)
                lengths[: len(members)] = [sizes[i] for i in members]
                yield Group(tuple(members), rows, length, lengths)

    def _fit(self, count: int, length: int) -> int:
        """The smallest batch that holds `count` rows, the largest there is for more; none that is mostly empty."""
        allowed = [rows for rows in self.rows if rows == 1 or rows * length <= self.places]
        for smaller, rows in zip([0, *allowed], allowed, strict=False):
            if rows >= count:
                return rows if 4 * count > rows or not smaller else smaller
        return allowed[-1]
