"""Which masked positions are revealed first: confidence in a candidate, and the order that follows from it."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from omnidiff_jax.config import Choice
from omnidiff_jax.sampling.ranges import MOST, within
from omnidiff_jax.sampling.rows import negative_entropy, top_k, weigh


@dataclasses.dataclass(frozen=True)
class Confidence(Choice, key="kind", word="entropy"):
    """The surer, the earlier. This kind, `entropy`, is sure where the entropy of the candidates is low.

    A rule of one's own is a subclass with another `score`, or another `order`.

    Attributes:
        temperature: scale of the Gumbel noise added to the confidence; 0 = none. Constant noise of scale T draws the
            positions without replacement from softmax(confidence / T), as the released `alg_temp` does.
        anneal: `linear` lets the noise fall to 0 over the steps (MaskGIT), `constant` does not.
    """

    kind: ClassVar[str]
    temperature: float = 0.0
    anneal: Literal["constant", "linear"] = "constant"

    def __post_init__(self) -> None:
        within(self, "temperature", 0, MOST)

    def score(self, logits: jax.Array, column: jax.Array) -> jax.Array:
        """Confidence in each row's candidate; larger = surer.

        Args:
            logits: float32 [n, W], final; removed tokens have the least float32.
            column: int32 [n], the candidate's.

        Returns:
            float32 [n].
        """
        return negative_entropy(logits)

    def order(self, confidence: jax.Array, uniforms: Callable[[], jax.Array], progress: jax.Array) -> jax.Array:
        """What positions are ranked by, the largest first: the confidence, with noise where there is a temperature.

        Args:
            confidence: float32 [B, L], of this step.
            uniforms: draws float32 [B, L] in [0, 1), other numbers at every step.
            progress: float32 [B], share of the steps already taken.

        Returns:
            float32 [B, L].
        """
        if self.temperature == 0:
            return confidence
        tiny = jnp.finfo(jnp.float32).tiny
        gumbel = -jnp.log(-jnp.log(jnp.maximum(uniforms(), tiny)))
        fade = 1.0 - progress[:, None] if self.anneal == "linear" else 1.0
        return confidence + self.temperature * fade * gumbel


@dataclasses.dataclass(frozen=True)
class MaskgitPlus(Confidence, word="maskgit_plus"):
    """Sure where the candidate is probable."""

    def score(self, logits: jax.Array, column: jax.Array) -> jax.Array:
        best, total = weigh(logits)
        return jnp.exp(jnp.take_along_axis(logits, column[:, None], axis=-1)[:, 0] - best) / total


@dataclasses.dataclass(frozen=True)
class TopkMargin(Confidence, word="topk_margin"):
    """Sure where the most probable token is far ahead of the second."""

    def score(self, logits: jax.Array, column: jax.Array) -> jax.Array:
        best, total = weigh(logits)
        two, _ = top_k(logits, min(2, logits.shape[-1]))
        return (1.0 - jnp.exp(two[:, 1:] - best[:, None]).sum(axis=-1)) / total


@dataclasses.dataclass(frozen=True)
class RandomOrder(MaskgitPlus, word="origin"):
    """Positions in random order; the candidate's probability is only reported."""

    def order(self, confidence: jax.Array, uniforms: Callable[[], jax.Array], progress: jax.Array) -> jax.Array:
        return uniforms()
