"""Which tokens can be predicted at all."""

import dataclasses

import jax

from omnidiff_jax.config import Choice
from omnidiff_jax.sampling.rows import LOWEST


@dataclasses.dataclass(frozen=True)
class Candidates(Choice, key="", word="real"):
    """Every token but the mask."""

    def allow(self, logits: jax.Array, mask_id: int) -> jax.Array:
        """Logits [n, V], `LOWEST` where a token is never predicted."""
        return logits.at[:, mask_id].set(LOWEST)


@dataclasses.dataclass(frozen=True)
class ReleasedCandidates(Candidates, word="released"):
    """The mask too, as in the released code: a position whose candidate it is stays masked."""

    def allow(self, logits: jax.Array, mask_id: int) -> jax.Array:
        return logits
