"""Lanes: what requests that share an engine have in common, so that those of all tasks find theirs at any time."""

import dataclasses

from omnidiff_jax.sampling.canvas import bucket
from omnidiff_jax.sampling.step import Compiled

# Shorter canvases than this are not worth a program of their own.
_SHORTEST = 48


@dataclasses.dataclass(frozen=True)
class Lane:
    """One shape of canvas and one compiled step.

    Attributes:
        code: of the step.
        length: positions of a canvas.
        frames: vectors of heard speech that it has room for, 0 where nothing is heard.
    """

    code: Compiled
    length: int
    frames: int

    @property
    def columns(self) -> int:
        """Steps that a request may take: as many as there are positions, rounded up to a power of two."""
        return 1 << (self.length - 1).bit_length()


def lane_lengths(limit: int, multiple: int) -> list[int]:
    """Lengths of canvases, from the shortest to the longest: each half of the next, rounded up, so that no more than
    half of a canvas is padding but of the shortest, and few programs are compiled.

    Args:
        limit: longest prompt + answer.
        multiple: what they are rounded up to.
    """
    lengths = [bucket(limit, multiple)]
    while lengths[0] // 2 >= _SHORTEST and (half := bucket(lengths[0] // 2, multiple)) < lengths[0]:
        lengths.insert(0, half)
    return lengths
