"""Which share of the masks each step reveals, and in which block: the plan of every answer, made on the host.

k of a step = max(int(m * (1 - t[i+1] / t[i])), 1) of the m positions still masked in the block, all of them at the
block's last step (released `_sample`). Ratios are float32 from numpy, so that they do not depend on the device.
"""

import math
from typing import NamedTuple

import numpy as np

from omnidiff_jax.sampling.config import SamplerConfig, Schedule


class Plan(NamedTuple):
    """One column per step, S columns; row b is answer b's plan and is idle from column `steps[b]` on.

    Attributes:
        ratio: float32 [B, S], share of the block's masks to reveal; 1 at a block's last step.
        start: int32 [B, S], first position of the block.
        stop: int32 [B, S], end of the block (exclusive); 0 where idle.
        steps: int32 [B].
    """

    ratio: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    steps: np.ndarray


def timesteps(schedule: Schedule, steps: int) -> np.ndarray:
    """float32 [steps + 1]: t before step 0, 1, ... and after the last; falls from 1 to eps.

    The linear one is `torch.linspace` to the bit (a float32 step, counted from the nearer end), because the counts
    truncate.
    """
    index = np.arange(steps + 1, dtype=np.float64)
    if schedule.kind == "cosine":
        t = schedule.eps + (1.0 - schedule.eps) * np.cos(0.5 * math.pi * index / max(steps, 1))
        return t.astype(np.float32)
    step = np.float64(np.float32(np.float32(schedule.eps) - np.float32(1.0)) / np.float32(max(steps, 1)))
    from_end = np.float32(schedule.eps) - step * (steps - index)
    return np.where(index < (steps + 1) // 2, 1.0 + step * index, from_end).astype(np.float32)


def reveal_ratios(schedule: Schedule, steps: int) -> np.ndarray:
    """float32 [steps]: share of the masks to reveal at each step, 1 at the last."""
    t = timesteps(schedule, steps)
    ratios = np.float32(1.0) - t[1:] / t[:-1]
    ratios[-1:] = 1.0
    return ratios


def total_steps(config: SamplerConfig, tokens: int) -> int:
    """T for an answer with `tokens` tokens to reveal: at least 1 and at most `tokens` (0 for none)."""
    if config.steps is not None:
        return min(config.steps, tokens)
    return min(max(round(config.steps_per_token * tokens), 1), tokens)


def _even_blocks(config: SamplerConfig, generate: np.ndarray) -> list[tuple[int, int, int]]:
    """(start, stop, steps) of each block with masks, for the answer region `generate` bool [L_i]."""
    size = config.blocks.size or len(generate)
    spans = [(i, min(i + size, len(generate))) for i in range(0, len(generate), size)]
    masks = np.array([generate[a:b].sum() for a, b in spans])
    total = total_steps(config, int(masks.sum()))
    ends = total * np.cumsum(masks) // max(masks.sum(), 1)
    shares = np.clip(np.diff(ends, prepend=0), 1, None)
    return [(a, b, int(s)) for (a, b), m, s in zip(spans, masks, shares, strict=True) if m]


def released_blocks(config: SamplerConfig, generate: np.ndarray) -> list[tuple[int, int, int]]:
    """(start, stop, steps) of each block as the released code counts them, blocks of 0 steps included."""
    length = len(generate)
    size = config.blocks.size or length
    total = total_steps(config, length)
    blocks = []
    for index in range(math.ceil(int(generate.sum()) / size)):
        start, stop = index * size, min((index + 1) * size, length)
        steps = int(np.float32(stop - start) / np.float32(length) * np.float32(total))
        blocks.append((start, stop, steps))
    return blocks


def make_plan(config: SamplerConfig, generate: np.ndarray, answer_start: np.ndarray, answer_length: np.ndarray) -> Plan:
    """The steps of every answer; the number of columns is a power of two, so that plans of similar size share code.

    Args:
        config: steps, schedule and blocks are read.
        generate: bool [B, L], positions to reveal.
        answer_start: int [B], first position of the answer region.
        answer_length: int [B], its length; blocks are counted in it.
    """
    split = released_blocks if config.blocks.form == "released" else _even_blocks
    plans: list[list[tuple[float, int, int]]] = []
    for row, start, length in zip(generate, answer_start, answer_length, strict=True):
        columns: list[tuple[float, int, int]] = []
        answer = row[start : start + length]
        for first, last, count in split(config, answer) if length else ():
            columns += [(r, start + first, start + last) for r in reveal_ratios(config.schedule, count)]
        plans.append(columns)
    steps = np.array([len(columns) for columns in plans], np.int32)
    width = 1 << (max(int(steps.max(initial=1)), 1) - 1).bit_length()
    shape = (len(plans), width)
    plan = Plan(np.zeros(shape, np.float32), np.zeros(shape, np.int32), np.zeros(shape, np.int32), steps)
    for b, columns in enumerate(plans):
        for i, column in enumerate(columns):
            plan.ratio[b, i], plan.start[b, i], plan.stop[b, i] = column
    return plan
