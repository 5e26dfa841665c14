"""What was generated, and how: step by step, and why each answer ended."""

import jax
import numpy as np
from flax import struct

from omnidiff_jax.sampling.canvas import Canvas, answer_tokens


@struct.dataclass
class SampleResult:
    """What was generated, and how.

    Attributes:
        tokens: int32 [B, L], the filled canvas.
        steps: int32 [B], calls of the model in which the example committed something: its steps, or fewer where a call
            took several (`Drafting`).
        commit_step: int32 [B, L], step at which a position was revealed (the last time, where it was masked again); -1
            for given (and never revealed) ones.
        confidence: float32 [B, L], confidence at that step; 0 where `commit_step` is -1.
        committed: int32 [B, S], positions chosen at each step, again where they were masked again.
    """

    tokens: jax.Array
    steps: jax.Array
    commit_step: jax.Array
    confidence: jax.Array
    committed: jax.Array


def film(canvas: Canvas, result: SampleResult) -> np.ndarray:
    """The canvas after each step, int32 [S, B, L], for film strips; S steps until the last one's commit.

    A position that was masked again is shown as masked until it was revealed for good.
    """
    commit_step, tokens = np.asarray(result.commit_step), np.asarray(result.tokens)
    active = np.flatnonzero((np.asarray(result.committed) > 0).any(axis=0))
    steps = int(active.max(initial=-1)) + 1
    before = np.broadcast_to(np.asarray(canvas.inputs.tokens), (steps, *tokens.shape))
    revealed = (commit_step >= 0) & (commit_step <= np.arange(steps)[:, None, None])
    return np.where(revealed, tokens, before)


def finish_reasons(canvas: Canvas, result: SampleResult, *ends: int) -> list[str]:
    """Why each example's answer ended, one word per example (rows that only fill up the batch have none).

    Args:
        canvas: as it was sampled from.
        result: of it.
        ends: tokens that end an answer.

    Returns:
        "end": one of `ends` stands in the answer before any mask, generated or given; what follows it is no answer.
        "length": every position is filled, and none ends the answer: it may go on beyond its room.
        "steps": masks remain (blocks without steps, or the mask itself was predicted; released forms only).
    """
    reasons = []
    for answer in answer_tokens(canvas, result.tokens):
        masks = np.flatnonzero(answer == canvas.mask_id)
        known = answer[: masks[0]] if len(masks) else answer
        reasons.append("end" if np.isin(known, ends).any() else "steps" if len(masks) else "length")
    return reasons
