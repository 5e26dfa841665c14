"""What a token is drawn from: temperature, top-p, top-k. Nothing here sorts the vocabulary.

Top-k leaves a [n, k] remnant on which everything after it works; so does top-p alone where a remnant provably holds all
that it keeps. Where a row is too flat for that, its threshold is found by bisection.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from omnidiff_jax.config import Choice
from omnidiff_jax.sampling.ranges import LEAST, MOST, within
from omnidiff_jax.sampling.rows import LOWEST, top_k, weigh

# Tokens that top-p alone looks at before it looks at all of them.
REMNANT = 512


def nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """bool [n, V]: the smallest set of most likely tokens with a total probability above `top_p` (ties all kept).

    A token is kept when the tokens above it weigh at most `top_p`. The least weight kept is found by bisecting over
    the bit patterns of non-negative float32, which are ordered as the numbers are: exact, and 30 passes instead of a
    sort.
    """
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    budget = top_p * weights.sum(axis=-1)  # below the whole, so a threshold of 0 is always too low

    def narrow(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # the mass above `low` exceeds the budget, that above `high` does not
        middle = low + (high - low) // 2
        threshold = jax.lax.bitcast_convert_type(middle, jnp.float32)[:, None]
        over = jnp.where(weights > threshold, weights, 0.0).sum(axis=-1) > budget
        return jnp.where(over, middle, low), jnp.where(over, high, middle)

    one = jax.lax.bitcast_convert_type(jnp.float32(1.0), jnp.int32)
    bounds = jnp.zeros(logits.shape[:1], jnp.int32), jnp.full(logits.shape[:1], one)
    _, least = jax.lax.fori_loop(0, 30, narrow, bounds)
    return weights >= jax.lax.bitcast_convert_type(least, jnp.float32)[:, None]


@dataclasses.dataclass(frozen=True)
class Filters(Choice, key="kind", word=""):
    """In the released order: temperature, top-p, top-k. A rule of one's own overrides `keep`, and `draws`.

    Attributes:
        temperature: 0 takes the most likely token; above 0 draws from logits / temperature.
        top_p: keeps the smallest set of tokens whose probability exceeds it; 1 = off.
        top_k: keeps the k most likely tokens; 0 = off. (The released `generate` always has 50.)
    """

    kind: ClassVar[str]
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        within(self, "temperature", LEAST, MOST, off=0, note="0 takes the most likely token")
        within(self, "top_p", LEAST, 1, note="1 is off")
        within(self, "top_k", 0, 2**31 - 1, note="0 is off")

    @property
    def draws(self) -> bool:
        """Whether a token is drawn from what is kept; else the most likely is taken."""
        return self.temperature > 0

    def keep(self, logits: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Filters rows.

        Args:
            logits: float32 [n, V].

        Returns:
            Logits [n, W], `LOWEST` where removed, and the ids int32 [n, W] they belong to; without top-k, W = V and
            the ids are None (column = id).
        """
        logits = self._warmed(logits)
        if not 0 < self.top_k < logits.shape[-1]:
            if self.top_p < 1:
                logits = jnp.where(nucleus(logits, self.top_p), logits, LOWEST)
            return logits, None
        values, ids = top_k(logits, self.top_k)
        if self.top_p < 1:
            values, _ = self._heaviest(logits, values)
        return values, ids

    def remnant(self, logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array] | None:
        """What `keep` gives, of top-p alone, without looking at every token more than twice.

        Args:
            logits: float32 [n, V].

        Returns:
            Logits [n, REMNANT] and ids, as `keep`'s, and bool [n]: whether the row's tokens that are kept are all among
            them. None where `keep` is as quick, or another rule.
        """
        size = logits.shape[-1]
        if type(self).keep is not Filters.keep or self.top_p == 1 or 0 < self.top_k < size or size < 8 * REMNANT:
            return None
        logits = self._warmed(logits)
        values, ids = top_k(logits, REMNANT)
        values, held = self._heaviest(logits, values)
        return values, ids, held > self.top_p

    def _warmed(self, logits: jax.Array) -> jax.Array:
        return jnp.maximum(logits / self.temperature, LOWEST) if self.temperature > 0 else logits

    def _heaviest(self, logits: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`values` [n, k], the largest of each row in order, without those that top-p leaves out; and their share."""
        # The maximum is asked for again, though it is known: XLA's sum behind a sort takes five times as long on a CPU.
        best, total = weigh(logits)
        weights = jnp.exp(values - best[:, None]) / total[:, None]
        mass = jnp.cumsum(weights, axis=-1)
        return jnp.where(mass - weights <= self.top_p, values, LOWEST), mass[:, -1]
