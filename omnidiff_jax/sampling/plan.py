"""Which share of the masks each step reveals, and in which block: the plan of every answer, made on the host.

k of a step = max(int(m * (1 - t[i+1] / t[i])), 1) of the m positions still masked in the block, all of them at the
block's last step (released `_sample`).
"""

import functools
from typing import NamedTuple

import numpy as np

from omnidiff_jax.sampling.config import SamplerConfig


class Plan(NamedTuple):
    """One column per step, S columns; row b is answer b's plan and is idle from column `steps[b]` on.

    Attributes:
        ratio: float32 [B, S], share of the block's masks to reveal; 1 at a block's last step.
        start: int32 [B, S], first position of the block.
        stop: int32 [B, S], end of the block (exclusive); 0 where idle.
        steps: int32 [B].
        order: float32 [B, L], what positions are ranked by, the largest first; None where every step decides.
    """

    ratio: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    steps: np.ndarray
    order: np.ndarray | None


def total_steps(config: SamplerConfig, tokens: int) -> int:
    """T for an answer with `tokens` tokens to reveal: at least 1 and at most `tokens` (0 for none)."""
    if config.steps is not None:
        return min(config.steps, tokens)
    return min(max(round(config.steps_per_token * tokens), 1), tokens)


def make_plan(config: SamplerConfig, generate: np.ndarray, answer_start: np.ndarray, answer_length: np.ndarray) -> Plan:
    """The steps of every answer; the number of columns is a power of two, so that plans of similar size share code.

    Args:
        config: steps, schedule, blocks and an order of the confidence's own are read.
        generate: bool [B, L], positions to reveal.
        answer_start: int [B], first position of the answer region.
        answer_length: int [B], its length; blocks are counted in it.
    """
    plans: list[list[tuple[float, int, int]]] = []
    total = functools.partial(total_steps, config)
    for row, start, length in zip(generate, answer_start, answer_length, strict=True):
        columns: list[tuple[float, int, int]] = []
        for first, last, count in config.blocks.split(row[start : start + length], total) if length else ():
            columns += [(r, start + first, start + last) for r in config.schedule.ratios(count)]
        plans.append(columns)
    steps = np.array([len(columns) for columns in plans], np.int32)
    width = 1 << (max(int(steps.max(initial=1)), 1) - 1).bit_length()
    shape = (len(plans), width)
    order = _order(config, generate, answer_start, answer_length)
    plan = Plan(np.zeros(shape, np.float32), np.zeros(shape, np.int32), np.zeros(shape, np.int32), steps, order)
    for b, columns in enumerate(plans):
        for i, column in enumerate(columns):
            plan.ratio[b, i], plan.start[b, i], plan.stop[b, i] = column
    return plan


def _order(
    config: SamplerConfig, generate: np.ndarray, answer_start: np.ndarray, answer_length: np.ndarray
) -> np.ndarray | None:
    """`Plan.order`."""
    order = np.zeros(generate.shape, np.float32)
    for b, (start, length) in enumerate(zip(answer_start, answer_length, strict=True)):
        planned = config.confidence.planned(generate[b, start : start + length])
        if planned is None:
            return None
        order[b, start : start + length] = planned
    return order
