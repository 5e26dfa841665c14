"""How sure a score is: bootstrap intervals of sums of ratios, and of differences, paired and unpaired.

Cases that hang together (the two questions about one picture, the utterances of one speaker) are drawn together.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_AT_ONCE = 1 << 22  # drawn numbers that exist at once


@dataclasses.dataclass(frozen=True)
class Ratios:
    """A number over cases: sum over k of weights[k] * (sum of top[:, k]) / (sum of bottom[:, k]).

    A share is one column of hits over ones, a word error rate one of errors over words, F1 one of 2 TP over
    2 TP + FP + FN; the mean of three F1s has three columns. A column whose denominator is 0 counts 0.

    Attributes:
        top, bottom: float64 [n, k].
        weights: float64 [k].
    """

    top: np.ndarray
    bottom: np.ndarray
    weights: np.ndarray

    def __post_init__(self) -> None:
        if self.top.shape != self.bottom.shape or self.top.shape[1:] != self.weights.shape:
            shapes = f"{self.top.shape}, {self.bottom.shape} and {self.weights.shape}"
            raise ValueError(f"top, bottom and weights must be [n, k], [n, k] and [k], not {shapes}")

    @classmethod
    def of(cls, top: Any, bottom: Any = 1.0, scale: float = 1.0) -> "Ratios":
        """One ratio of numbers [n], times `scale`."""
        tops = np.asarray(top, float)
        bottoms = np.broadcast_to(np.asarray(bottom, float), tops.shape)
        return cls(tops[:, None], bottoms[:, None], np.array([scale]))

    @classmethod
    def joined(cls, parts: Sequence["Ratios"], weights: Sequence[float] | None = None) -> "Ratios":
        """The weighted sum of numbers over the same cases; without weights their mean."""
        factors = [1 / len(parts)] * len(parts) if weights is None else weights
        return cls(
            np.concatenate([part.top for part in parts], axis=1),
            np.concatenate([part.bottom for part in parts], axis=1),
            np.concatenate([factor * part.weights for factor, part in zip(factors, parts, strict=True)]),
        )

    def where(self, chosen: Any) -> "Ratios":
        """The number over the cases of `chosen`, bool [n]."""
        kept = np.asarray(chosen, bool)[:, None]
        return dataclasses.replace(self, top=self.top * kept, bottom=self.bottom * kept)

    @property
    def value(self) -> float:
        """The number."""
        return float(self._valued(self.top.sum(0), self.bottom.sum(0)))

    def _valued(self, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
        return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), 0.0) @ self.weights

    def drawn(self, clusters: Sequence[Any] | None, samples: int, seed: int) -> np.ndarray:
        """float64 [samples], the number over cases drawn with replacement; the same for the same numbers."""
        top, bottom = _summed(self.top, clusters), _summed(self.bottom, clusters)
        values = [self._valued(counts @ top, counts @ bottom) for counts in _counts(len(top), samples, seed)]
        return np.concatenate(values)


@dataclasses.dataclass(frozen=True)
class Difference:
    """One score less another.

    Attributes:
        value: the difference.
        interval: of 95 % unless another level was asked for.
        probability: share of the bootstrap samples in which its sign is the other one or it is 0.
    """

    value: float
    interval: tuple[float, float]
    probability: float


def bootstrap(
    ratios: Ratios, clusters: Sequence[Any] | None = None, *, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of a number over cases (Efron & Tibshirani 1993, chapter 13).

    Args:
        ratios: the number.
        clusters: [n] of anything hashable; cases of one are drawn together. None = every case for itself.
        samples: how often the cases are drawn.
        level: share of the samples within.
    """
    if not len(ratios.top):
        return 0.0, 0.0
    return _percentiles(ratios.drawn(clusters, samples, seed), level)


def paired(
    one: Ratios,
    other: Ratios,
    clusters: Sequence[Any] | None = None,
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """`one` less `other` over the same cases: each draw takes the same cases of both, so that what is hard for both
    does not count as chance. Arguments as `bootstrap`'s.

    Raises:
        ValueError: different numbers of cases.
    """
    if len(one.top) != len(other.top):
        raise ValueError(f"{len(one.top)} and {len(other.top)} cases: a paired difference is over the same ones")
    return _difference(one, other, one.drawn(clusters, samples, seed) - other.drawn(clusters, samples, seed), level)


def unpaired(
    one: Ratios,
    other: Ratios,
    clusters: tuple[Sequence[Any] | None, Sequence[Any] | None] = (None, None),
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """`one` less `other` over cases that have nothing to do with each other. Arguments as `bootstrap`'s."""
    drawn = one.drawn(clusters[0], samples, seed) - other.drawn(clusters[1], samples, seed + 1)
    return _difference(one, other, drawn, level)


def _difference(one: Ratios, other: Ratios, drawn: np.ndarray, level: float) -> Difference:
    value = one.value - other.value
    against = float(np.mean(drawn * np.sign(value) <= 0)) if value else 1.0
    return Difference(value, _percentiles(drawn, level), against)


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    tail = 50 * (1 - level)
    low, high = np.percentile(values, (tail, 100 - tail))
    return float(low), float(high)


def _summed(values: np.ndarray, clusters: Sequence[Any] | None) -> np.ndarray:
    """Sums [c, k] of the cases of each cluster, in the order in which clusters appear."""
    if clusters is None:
        return values
    numbers: dict[Any, int] = {}
    owner = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
    sums = np.zeros((len(numbers), values.shape[1]))
    np.add.at(sums, owner, values)
    return sums


def _counts(clusters: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each cluster is drawn, float64 [m, clusters], for `samples` draws in all."""
    rng = np.random.default_rng(seed)
    step = max(_AT_ONCE // max(clusters, 1), 1)
    for start in range(0, samples, step):
        drawn = rng.integers(clusters, size=(min(step, samples - start), clusters))
        yield np.stack([np.bincount(row, minlength=clusters) for row in drawn]).astype(float)
