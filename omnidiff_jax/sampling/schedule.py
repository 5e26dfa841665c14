"""How fast masks fall, and in which blocks: both decided on the host, before the loop.

Ratios are float32 from numpy, so that they do not depend on the device.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from omnidiff_jax.config import Choice
from omnidiff_jax.sampling.ranges import POSITIONS, within

Block = tuple[int, int, int]
"""(start, stop, steps), positions counted within the answer."""


@dataclasses.dataclass(frozen=True)
class Schedule(Choice, key="kind", word="linear"):
    """The falling share of masks t, from 1 at the start to `eps` at the end of the steps; here in equal strides.

    Attributes:
        eps: t after the last step.
    """

    kind: ClassVar[str]
    eps: float = 1e-3

    def __post_init__(self) -> None:
        within(self, "eps", 0, 1)

    def timesteps(self, steps: int) -> np.ndarray:
        """float32 [steps + 1]: t before step 0, 1, ... and after the last; falls from 1 to eps.

        It is `torch.linspace` to the bit (a float32 step, counted from the nearer end), because the counts truncate.
        """
        index = np.arange(steps + 1, dtype=np.float64)
        step = np.float64(np.float32(np.float32(self.eps) - np.float32(1.0)) / np.float32(max(steps, 1)))
        from_end = np.float32(self.eps) - step * (steps - index)
        return np.where(index < (steps + 1) // 2, 1.0 + step * index, from_end).astype(np.float32)

    def ratios(self, steps: int) -> np.ndarray:
        """float32 [steps]: share of the masks to reveal at each step, 1 at the last."""
        t = self.timesteps(steps)
        ratios = np.float32(1.0) - t[1:] / t[:-1]
        ratios[-1:] = 1.0
        return ratios


@dataclasses.dataclass(frozen=True)
class CosineSchedule(Schedule, word="cosine"):
    """Few tokens first, many last."""

    def timesteps(self, steps: int) -> np.ndarray:
        index = np.arange(steps + 1, dtype=np.float64)
        t = self.eps + (1.0 - self.eps) * np.cos(0.5 * math.pi * index / max(steps, 1))
        return t.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Blocks(Choice, key="form", word="even"):
    """Semi-autoregressive decoding: the answer is finished block by block, from the left.

    This form, `even`, shares the steps out in proportion to each block's masks, at least one each.

    Attributes:
        size: positions of a block; 0 = the whole answer at once.
    """

    form: ClassVar[str]
    size: int = 0

    def __post_init__(self) -> None:
        within(self, "size", 0, POSITIONS, note="0 is one block")

    def split(self, generate: np.ndarray, total: Callable[[int], int]) -> list[Block]:
        """The blocks of one answer in order.

        Args:
            generate: bool [L_i], positions to reveal, of the answer region.
            total: steps of an answer with so many tokens.
        """
        size = self.size or len(generate)
        spans = [(i, min(i + size, len(generate))) for i in range(0, len(generate), size)]
        masks = np.array([generate[a:b].sum() for a, b in spans])
        ends = total(int(masks.sum())) * np.cumsum(masks) // max(masks.sum(), 1)
        shares = np.clip(np.diff(ends, prepend=0), 1, None)
        return [(a, b, int(s)) for (a, b), m, s in zip(spans, masks, shares, strict=True) if m]


@dataclasses.dataclass(frozen=True)
class ReleasedBlocks(Blocks, word="released"):
    """As the released code counts them: each block's share rounded down (to 0: the block stays masked).

    Blocks are counted by masks, so that a pre-filled answer can lose its last block.
    """

    def split(self, generate: np.ndarray, total: Callable[[int], int]) -> list[Block]:
        """As `Blocks.split`; blocks of 0 steps included."""
        length = len(generate)
        size, steps = self.size or length, total(length)
        blocks = []
        for index in range(math.ceil(int(generate.sum()) / size)):
            start, stop = index * size, min((index + 1) * size, length)
            share = int(np.float32(stop - start) / np.float32(length) * np.float32(steps))
            blocks.append((start, stop, share))
        return blocks
