"""Which masked positions are revealed first: confidence in a candidate, and the order that follows from it."""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from omnidiff_jax.config import Choice
from omnidiff_jax.errors import UserError
from omnidiff_jax.sampling.ranges import MOST, POSITIONS, within
from omnidiff_jax.sampling.rows import negative_entropy, top_k, weigh


@dataclasses.dataclass(frozen=True)
class Confidence(Choice, key="kind", word="entropy"):
    """The surer, the earlier. This kind, `entropy`, is sure where the entropy of the candidates is low.

    A rule of one's own is a subclass with another `score`, or another `order`.

    Attributes:
        temperature: scale of the Gumbel noise added to the confidence; 0 = none. Constant noise of scale T draws the
            positions without replacement from softmax(confidence / T), as the released `alg_temp` does.
        anneal: `linear` lets the noise fall to 0 over the steps (MaskGIT), `constant` does not.
        columns: of the grid of a picture's codes that `halton` orders; 0 = the grid is square.
    """

    kind: ClassVar[str]
    surest_first: ClassVar[bool] = True
    """Whether the order follows from the confidence."""
    temperature: float = 0.0
    anneal: Literal["constant", "linear"] = "constant"
    columns: int = 0

    def __post_init__(self) -> None:
        within(self, "temperature", 0, MOST)
        within(self, "columns", 0, POSITIONS, note="0 is a square grid")

    def score(self, logits: jax.Array, column: jax.Array) -> jax.Array:
        """Confidence in each row's candidate; larger = surer.

        Args:
            logits: float32 [n, W], final; removed tokens have the least float32.
            column: int32 [n], the candidate's.

        Returns:
            float32 [n].
        """
        return negative_entropy(logits)

    def share(self, confidence: jax.Array) -> jax.Array:
        """`confidence` on a scale from 0 to 1; of an entropy H it is e^-H, one over the perplexity."""
        return jnp.exp(confidence)

    def planned(self, generate: np.ndarray) -> np.ndarray | None:
        """An order that is known before the first step, in place of `order`'s; None where there is none.

        Args:
            generate: bool [L_i], positions to reveal, of the answer region.

        Returns:
            float32 [L_i], the largest first.

        Raises:
            UserError: the answer is of another form than the order is for.
        """
        return None

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
        return jnp.minimum(jnp.exp(jnp.take_along_axis(logits, column[:, None], axis=-1)[:, 0] - best) / total, 1.0)

    def share(self, confidence: jax.Array) -> jax.Array:
        return confidence


@dataclasses.dataclass(frozen=True)
class TopkMargin(Confidence, word="topk_margin"):
    """Sure where the most probable token is far ahead of the second."""

    def score(self, logits: jax.Array, column: jax.Array) -> jax.Array:
        best, total = weigh(logits)
        two, _ = top_k(logits, min(2, logits.shape[-1]))
        # At most 1, for all rows of one token alike: rounding must not order them.
        return jnp.minimum((1.0 - jnp.exp(two[:, 1:] - best[:, None]).sum(axis=-1)) / total, 1.0)

    def share(self, confidence: jax.Array) -> jax.Array:
        return confidence


@dataclasses.dataclass(frozen=True)
class RandomOrder(MaskgitPlus, word="origin"):
    """Positions in random order; the candidate's probability is only reported."""

    surest_first: ClassVar[bool] = False

    def order(self, confidence: jax.Array, uniforms: Callable[[], jax.Array], progress: jax.Array) -> jax.Array:
        return uniforms()


@dataclasses.dataclass(frozen=True)
class Halton(MaskgitPlus, word="halton"):
    """A picture's codes in the order of a Halton sequence, which spreads each step's over the whole picture.

    The Halton scheduler of arXiv 2503.17076; the candidate's probability is only reported.
    """

    surest_first: ClassVar[bool] = False

    def planned(self, generate: np.ndarray) -> np.ndarray | None:
        count = int(generate.sum())
        columns = self.columns or math.isqrt(count)
        rows = count // self.columns if self.columns else columns
        if rows * columns != count:
            grid = f"fill no grid of columns = {columns}" if self.columns else "are no square"
            raise UserError(
                f"confidence.kind = 'halton' orders whole pictures, and {count} positions to generate {grid}; set "
                "confidence.columns to those of the picture, or use another confidence.kind"
            )
        order = np.zeros(len(generate), np.float32)
        order[generate] = -halton_ranks(rows, columns)
        return order


def halton_ranks(rows: int, columns: int) -> np.ndarray:
    """int64 [rows * columns]: when each cell of a grid is visited, cells from the left to the right and row by row.

    Points of the sequence in bases 2 (down) and 3 (across) are rounded to cells; a cell counts where it is first hit.
    """
    cells = rows * columns
    first, points = np.zeros(0, np.int64), 4 * cells
    while len(first) < cells:
        index = np.arange(1, points + 1)
        visited = _radical_inverse(index, 2, rows) * columns + _radical_inverse(index, 3, columns)
        _, first = np.unique(visited, return_index=True)
        points *= 2
    return np.argsort(np.argsort(first))


def _radical_inverse(index: np.ndarray, base: int, size: int) -> np.ndarray:
    """int64 [n]: `size` times the digits of `index` mirrored at the point, rounded down; in whole numbers."""
    mirrored, unit = np.zeros_like(index), 1
    while index.any():
        index, digit = np.divmod(index, base)
        mirrored, unit = mirrored * base + digit, unit * base
    return mirrored * size // unit
