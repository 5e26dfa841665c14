"""In which order a source is walked over: each epoch visits every sample once, in an order of its own."""

import functools
from collections.abc import Sequence

import numpy as np

from omnidiff_jax.records import stable_id

# Windows of a stream reach this share of an epoch ahead of the slowest stream, at most.
_AHEAD = 4
_EPOCHS_HELD = 4


def shuffled(position: int, size: int, seed: int, source: str) -> tuple[int, int]:
    """Where an endless walk over a source stands: each epoch visits every index once, in an order of its own.

    Args:
        position: steps taken before this one, over all streams.
        size: number of samples in the source.
        seed: of the run.
        source: name of the source.

    Returns:
        (index, epoch).
    """
    epoch, place = divmod(position, size)
    return permuted(place, size, _epoch_seed(seed, source, epoch)), epoch


class Windows:
    """Samples that are read in groups, of which a reader holds few: a walk over them that stays near what is held.

    The groups are shuffled anew each epoch; along that order lie windows of `rows` samples, each shuffled in itself. A
    stream goes through whole windows, every V-th, so that hosts with other streams read other groups.
    """

    def __init__(self, ends: Sequence[int], rows: int):
        """Args: number of samples up to the end of each group; samples of a window, fewer where an epoch has few."""
        self._ends, self._rows = np.array(ends, np.int64), rows
        self._orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def walk(self, draw: int, stream: int, streams: int, seed: int, source: str) -> tuple[int, int]:
        """Where a stream stands.

        Args:
            draw: samples that the stream drew from the source before.
            stream: its number in 0 .. `streams` - 1.
            streams: how many walk over the source.
            seed: of the run.
            source: name of the source.

        Returns:
            (index, epoch). Draws 0 .. n - 1 of all streams, n a multiple of the window's rows, are the first
            n * `streams` steps of an endless walk that `shuffled` describes.
        """
        size = int(self._ends[-1])
        rows = max(1, min(self._rows, size // (_AHEAD * streams)))
        window, at = divmod(draw, rows)
        first = (window * streams + stream) * rows
        epoch = (first + at) // size
        # A window that an epoch ends in is two.
        low, high = max(first, epoch * size), min(first + rows, (epoch + 1) * size)
        key = _epoch_seed(seed, source, epoch)
        place = low + permuted(first + at - low, high - low, key ^ low & 0xFFFFFFFF) - epoch * size
        firsts, ends = self._order(key)
        number = int(np.searchsorted(ends, place, side="right"))
        return int(firsts[number]) + place - (int(ends[number - 1]) if number else 0), epoch

    def _order(self, key: int) -> tuple[np.ndarray, np.ndarray]:
        """First sample of each group, and samples up to the end of each, in the order of an epoch."""
        if key not in self._orders:
            firsts = np.concatenate([[0], self._ends[:-1]])
            groups = np.array([permuted(number, len(firsts), key) for number in range(len(firsts))])
            while len(self._orders) >= _EPOCHS_HELD:
                del self._orders[next(iter(self._orders))]
            self._orders[key] = firsts[groups], np.cumsum((self._ends - firsts)[groups])
        return self._orders[key]


def permuted(index: int, size: int, seed: int) -> int:
    """Where `index` lands in the pseudo-random permutation `seed` of 0 .. size - 1.

    A four-round Feistel network over the next even power of two, walked until it lands inside. grain's `index_shuffle`
    works over at least 65,536 indices, which costs a small source hundreds of steps.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for turn in range(4):
            mixed = (right + seed + turn * 0x9E3779B9) * 0x85EBCA6B & 0xFFFFFFFF
            mixed = (mixed ^ mixed >> 15) * 0xC2B2AE35 & 0xFFFFFFFF
            left, right = right, left ^ (mixed >> 13 & low)
        index = left << half | right
        if index < size:
            return index


@functools.lru_cache(maxsize=1024)
def _epoch_seed(seed: int, source: str, epoch: int) -> int:
    return stable_id("epoch", seed, source, epoch)
