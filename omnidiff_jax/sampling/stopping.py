"""When an answer is done before its steps are."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from omnidiff_jax.config import Choice
from omnidiff_jax.sampling.ranges import within


@dataclasses.dataclass(frozen=True)
class Stopping(Choice, key="kind", word=""):
    """An answer is always done once nothing is masked: a rule ends one by writing what is still masked.

    This rule waits for an end token. A rule of one's own overrides `settle`.

    Attributes:
        end_id: if set, an answer is also done once this token stands before its first mask; what is still masked
            after it becomes `end_id` too.
    """

    kind: ClassVar[str]
    end_id: int | None = None

    def __post_init__(self) -> None:
        if self.end_id is not None:
            within(self, "end_id", 0, 2**31 - 1, note="None waits for no token")

    def settle(
        self, tokens: jax.Array, generate: jax.Array, mask_id: int, candidates: jax.Array, confidence: jax.Array
    ) -> jax.Array:
        """The canvas after a step, answers that are done written out.

        Args:
            tokens: int32 [B, L], with what this step revealed.
            generate: bool [B, L], positions the sampler writes; no other may change.
            mask_id: the mask token.
            candidates: int32 [B, L], this step's tokens, of the positions that it looked at (others: 0).
            confidence: float32 [B, L], in them.

        Returns:
            int32 [B, L]; where it differs from `tokens`, a mask was written.
        """
        if self.end_id is None:
            return tokens
        masked = generate & (tokens == mask_id)
        settled = jnp.cumsum(masked, axis=1) == 0
        done = (settled & generate & (tokens == self.end_id)).any(axis=1, keepdims=True)
        return jnp.where(masked & done, self.end_id, tokens)
