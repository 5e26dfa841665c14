"""Repetition and position penalties. Both change logits after the filters; neither knows about chunks."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from omnidiff_jax.config import Choice
from omnidiff_jax.sampling.ranges import LEAST, MOST, POSITIONS, within
from omnidiff_jax.sampling.rows import LOWEST


def repel(logits: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Makes logits less likely: positive ones / factor, negative ones * factor (factor >= 1)."""
    return jnp.where(logits < 0, logits * factor, logits / factor)


@dataclasses.dataclass(frozen=True)
class Repetition(Choice, key="scope", word="generated"):
    """Penalty of tokens that the answer already holds: positive logits / p, negative * p, once per token.

    This scope, `generated`, counts tokens that the sampler revealed.

    Attributes:
        penalty: p; 1 = off.
    """

    scope: ClassVar[str]
    penalty: float = 1.0

    def __post_init__(self) -> None:
        within(self, "penalty", LEAST, MOST, note="1 is off")

    def counted(self, tokens: jax.Array, generate: jax.Array, in_answer: jax.Array, step: jax.Array) -> jax.Array:
        """bool [B, L]: positions whose token counts as seen. Arguments as `seen`'s."""
        return generate

    def seen(
        self, tokens: jax.Array, generate: jax.Array, in_answer: jax.Array, mask_id: int, step: jax.Array,
        vocab_size: int,
    ) -> jax.Array | None:  # fmt: skip
        """bool [B, V]: tokens that are penalised at this step; None where none ever are.

        Args:
            tokens: int32 [B, L], before this step.
            generate: bool [B, L], positions the sampler writes.
            in_answer: bool [B, L], the answer region.
            mask_id: the mask token, never counted.
            step: int32 [B, 1], number of each answer's step.
            vocab_size: V.
        """
        if self.penalty == 1:
            return None
        counted = self.counted(tokens, generate, in_answer, step)
        column = jnp.where(counted & (tokens != mask_id), tokens, vocab_size)  # out of range, hence dropped
        rows = jnp.arange(tokens.shape[0])[:, None]
        return jnp.zeros((tokens.shape[0], vocab_size), bool).at[rows, column].set(True, mode="drop")

    def apply(self, logits: jax.Array, seen: jax.Array) -> jax.Array:
        """Logits [n, W] with the `seen` bool [n, W] ones less likely."""
        return jnp.where(seen, jnp.maximum(repel(logits, self.penalty), LOWEST), logits)


@dataclasses.dataclass(frozen=True)
class ReleasedRepetition(Repetition, word="released"):
    """Counts everything in the answer region except id 0, from the second step on (pre-filled tokens included)."""

    def counted(self, tokens: jax.Array, generate: jax.Array, in_answer: jax.Array, step: jax.Array) -> jax.Array:
        return in_answer & (tokens != 0) & (step > 0)


@dataclasses.dataclass(frozen=True)
class Position(Choice, key="form", word="off"):
    """Penalty of the tail of an answer, so that decoding does not start from both ends. This form is `off`.

    Attributes:
        free: leading positions (rows) left alone.
        gamma: smallest factor of the paper's form; 1 = off.
        maximum: largest factor of the released form; 1 = off.
        early: share of an answer's steps during which the paper's form holds.
    """

    form: ClassVar[str]
    free: int = 100
    gamma: float = 0.5
    maximum: float = 2.0
    early: float = 0.5

    def __post_init__(self) -> None:
        within(self, "free", 0, POSITIONS)
        within(self, "gamma", LEAST, 1, note="1 is off")
        within(self, "maximum", 1, MOST, note="1 is off")
        within(self, "early", 0, 1)

    def factor(self, offsets: jax.Array, answer_length: jax.Array, masked: jax.Array, progress: jax.Array) -> jax.Array:
        """float32 [B, L], handed to `apply`.

        Args:
            offsets: int32 [B, L], index within the answer.
            answer_length: int32 [B].
            masked: bool [B, L], positions still masked, of all blocks.
            progress: float32 [B], share of the steps already taken.
        """
        return jnp.ones(offsets.shape, jnp.float32)

    def apply(self, logits: jax.Array, factor: jax.Array) -> jax.Array:
        """Logits [n, W], penalised by their rows' `factor` float32 [n]."""
        return logits


@dataclasses.dataclass(frozen=True)
class PaperPosition(Position, word="paper"):
    """The paper's: logits of the last L - `free` positions times a factor that falls linearly to `gamma` at the last.

    It holds during the first `early` share of the steps.
    """

    def factor(self, offsets: jax.Array, answer_length: jax.Array, masked: jax.Array, progress: jax.Array) -> jax.Array:
        tail = jnp.maximum(answer_length - self.free, 1)[:, None]
        depth = jnp.clip((offsets - self.free + 1) / tail, 0.0, 1.0)
        return jnp.where(progress[:, None] < self.early, 1.0 - (1.0 - self.gamma) * depth, 1.0)

    def apply(self, logits: jax.Array, factor: jax.Array) -> jax.Array:
        return logits * factor[:, None]


@dataclasses.dataclass(frozen=True)
class ReleasedPosition(Position, word="released"):
    """The released code's, at every step: row i >= `free` of n > `free` is repelled by a factor that grows with i.

    Rows are counted among those *still masked*; positive logits are divided by
    1 + (i - free) / (n - free) * (maximum - 1), negative ones multiplied.
    """

    def factor(self, offsets: jax.Array, answer_length: jax.Array, masked: jax.Array, progress: jax.Array) -> jax.Array:
        row = jnp.cumsum(masked, axis=1) - 1
        count = masked.sum(axis=1, keepdims=True)
        depth = jnp.maximum(row - self.free, 0) / jnp.maximum(count - self.free, 1)
        return 1.0 + depth * (self.maximum - 1.0)

    def apply(self, logits: jax.Array, factor: jax.Array) -> jax.Array:
        return jnp.maximum(repel(logits, factor[:, None]), LOWEST)
