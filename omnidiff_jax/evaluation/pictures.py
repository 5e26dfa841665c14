"""Measures of pictures by their features: is the named thing found again among others, and is it of its class."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omnidiff_jax.answering.queries import Response
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.exam import Case, Measure
from omnidiff_jax.evaluation.measures import Counts
from omnidiff_jax.records import stable_id

CANDIDATES = 100


@dataclasses.dataclass(frozen=True)
class Gallery:
    """One true picture of each concept, among which a drawn one's concept is looked for.

    A case's `meta["thing"]` is its concept. It stands among `candidates`; the others are drawn by its name, so that
    they are the same for every model, and do not depend on what else is asked.

    Attributes:
        judge: with `name` and `features`, such as `ImagenetJudge`.
        concepts: names, sorted.
        vectors: float32 [C, F], of length 1.
        candidates: how many.
    """

    judge: Any
    concepts: tuple[str, ...]
    vectors: np.ndarray
    candidates: int = CANDIDATES

    @classmethod
    def of(cls, judge: Any, pictures: Mapping[str, np.ndarray], candidates: int = CANDIDATES) -> "Gallery":
        """Of concept -> uint8 [H, W, 3].

        Raises:
            UserError: fewer concepts than candidates.
        """
        if len(pictures) < candidates:
            raise UserError(f"a gallery of {len(pictures)} concepts: retrieval among {candidates} needs as many")
        concepts = tuple(sorted(pictures))
        return cls(judge, concepts, unit(judge.features([pictures[name] for name in concepts])), candidates)

    def others(self, concept: str) -> np.ndarray:
        """int [candidates - 1], of concepts other than this."""
        own = self.concepts.index(concept)
        rng = np.random.default_rng(stable_id("candidates", concept))
        drawn = rng.choice(len(self.concepts) - 1, self.candidates - 1, replace=False)
        return drawn + (drawn >= own)

    def ranks(self, pictures: Sequence[np.ndarray], concepts: Sequence[str]) -> np.ndarray:
        """int [N], 1 = no other candidate is as close by cosine; a tie is lost."""
        seen, found = unit(self.judge.features(pictures)), []
        for vector, concept in zip(seen, concepts, strict=True):
            own = self.vectors[self.concepts.index(concept)] @ vector
            found.append(1 + int((self.vectors[self.others(concept)] @ vector >= own).sum()))
        return np.array(found, int)

    def measures(self, top: Sequence[int] = (5, 1)) -> tuple[Measure, ...]:
        """The named concept among the first 5, the first, and its mean rank."""
        among = f"of {self.candidates} by features"
        within = tuple(
            Measure(f"named concept in the top {most} {among}", self.judge.name, True, self._within(most))
            for most in top
        )
        return *within, Measure(f"mean rank {among}", self.judge.name, False, self._ranked)

    def _within(self, most: int) -> Any:
        def score(responses: Sequence[Response], cases: Sequence[Case]) -> Counts:
            ranks, ones = self._ranked(responses, cases)
            return (ranks <= most).astype(float), ones

        return score

    def _ranked(self, responses: Sequence[Response], cases: Sequence[Case]) -> Counts:
        """Ranks; no picture is as bad as the last."""
        ranks = np.full(len(cases), float(self.candidates))
        drawn, pictures = _drawn(responses)
        ranks[drawn] = self.ranks(pictures, [cases[number].meta["thing"] for number in drawn])
        return ranks, np.ones(len(cases))


@dataclasses.dataclass(frozen=True)
class Probe:
    """A linear reading of classes from features: ridge regression on one-of-many targets, taught by true pictures.

    Attributes:
        judge: with `name` and `features`.
        classes: names, sorted.
        shift, scale: float64 [F], of features.
        weights, bias: float64 [F, C] and [C].
    """

    judge: Any
    classes: tuple[str, ...]
    shift: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    @classmethod
    def of(cls, judge: Any, pictures: Sequence[np.ndarray], labels: Sequence[str], penalty: float = 0.1) -> "Probe":
        """Taught by pictures uint8 [H, W, 3] with their classes.

        Args:
            judge: whose features.
            pictures: true ones.
            labels: as many.
            penalty: on squared weights, as a share of the pictures and features.

        Raises:
            UserError: fewer than two classes.
        """
        classes = tuple(sorted(set(labels)))
        if len(classes) < 2:
            raise UserError(f"a probe of {len(classes)} classes: it needs two")
        features = np.asarray(judge.features(pictures), np.float64)
        shift, scale = features.mean(0), features.std(0) + 1e-6
        x = (features - shift) / scale
        y = np.equal.outer(np.array(labels), np.array(classes)).astype(np.float64)
        # As many unknowns as pictures or features, whichever are fewer.
        few, bias = x.shape[0] < x.shape[1], y.mean(0)
        ridge = penalty * x.shape[0] * np.eye(min(x.shape))
        if few:
            weights = x.T @ np.linalg.solve(x @ x.T + ridge, y - bias)
        else:
            weights = np.linalg.solve(x.T @ x + ridge, x.T @ (y - bias))
        return cls(judge, classes, shift, scale, weights, bias)

    def read(self, pictures: Sequence[np.ndarray]) -> list[str]:
        """The class of each."""
        x = (np.asarray(self.judge.features(pictures), np.float64) - self.shift) / self.scale
        return [self.classes[number] for number in (x @ self.weights + self.bias).argmax(1)]

    def measure(self) -> Measure:
        """Pictures that are read as `meta["category"]`."""
        return Measure("category right by a linear probe", self.judge.name, True, self._score)

    def _score(self, responses: Sequence[Response], cases: Sequence[Case]) -> Counts:
        hits = np.zeros(len(cases))
        drawn, pictures = _drawn(responses)
        read = zip(drawn, self.read(pictures), strict=True)
        hits[drawn] = [found == cases[number].meta["category"] for number, found in read]
        return hits, np.ones(len(cases))


def _drawn(responses: Sequence[Response]) -> tuple[list[int], list[np.ndarray]]:
    """Which answers have a picture, and those."""
    found = [(number, response.image) for number, response in enumerate(responses) if response.image is not None]
    return [number for number, _ in found], [picture for _, picture in found]


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32 [N, F], each scaled to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
