"""The curriculum as data: stages of weighted sources, interleaved so that proportions hold over short windows."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from omnidiff_jax.config import suggest
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import stable_id

_GOLDEN = 0.6180339887498949


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of the curriculum.

    Attributes:
        name: how metrics and checkpoints call it.
        steps: optimizer steps.
        weights: source name -> share of the samples; need not sum to 1.
    """

    name: str
    steps: int
    weights: Mapping[str, float]

    def __post_init__(self):
        if self.steps < 1:
            raise UserError(f"stage {self.name!r} has {self.steps} steps; give it at least one")
        if not self.weights or min(self.weights.values()) < 0 or not any(self.weights.values()):
            raise UserError(f"stage {self.name!r} needs a positive weight for at least one source, and no negative one")

    def check(self, sources: Sequence[str]) -> None:
        """Raises UserError if a weighted source is not among `sources`."""
        for name in self.weights:
            if name not in sources:
                raise UserError(f"stage {self.name!r} weighs the unknown source {name!r}; {suggest(name, sources)}")


def stage_at(stages: Sequence[Stage], step: int) -> int:
    """Index of the stage that step `step` (from 0) belongs to; the last stage has no end."""
    end = 0
    for number, stage in enumerate(stages):
        end += stage.steps
        if step < end:
            return number
    return len(stages) - 1


class Interleave:
    """Chooses a source for each sample: always the one furthest behind its share.

    After n choices every source has been chosen within one or two of n times its share, from any start; a phase per
    (stream, source) keeps the streams from choosing in step. `taken` is the whole state.
    """

    def __init__(self, weights: Sequence[float], stream: int = 0):
        """Args: weights, one per source, not all zero; stream, number of the virtual stream."""
        total = sum(weights)
        self._shares = [weight / total for weight in weights]
        self._phases = [(stream + 1) * (source + 1) * _GOLDEN % 1.0 for source in range(len(weights))]
        self.taken = [0] * len(weights)

    def choose(self) -> int:
        """The index of the next source."""
        n = sum(self.taken) + 1
        best, most = 0, float("-inf")
        for source, (share, phase, taken) in enumerate(zip(self._shares, self._phases, self.taken, strict=True)):
            if share:
                behind = share * (n + phase) - taken
                if behind > most:
                    best, most = source, behind
        self.taken[best] += 1
        return best


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
    return _permuted(place, size, _epoch_seed(seed, source, epoch)), epoch


def _permuted(index: int, size: int, seed: int) -> int:
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
