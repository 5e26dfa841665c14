"""Measures that no world is needed for: exact match, and word errors of text. A score is as `exam.Score` says."""

from collections.abc import Callable, Sequence

import numpy as np

from omnidiff_jax.answering.queries import Response
from omnidiff_jax.evaluation.exam import Case, Measure
from omnidiff_jax.words import normalize, word_errors

Counts = tuple[np.ndarray, np.ndarray]


def share(right: Callable[[Response, Case], bool], responses: Sequence[Response], cases: Sequence[Case]) -> Counts:
    """Cases whose answer is right."""
    hits = [right(response, case) for response, case in zip(responses, cases, strict=True)]
    return np.array(hits, float), np.ones(len(hits))


def exact(responses: Sequence[Response], cases: Sequence[Case]) -> Counts:
    """Answers whose words are the right ones."""
    return share(lambda r, case: normalize(r.text) == normalize(case.meta["answer"]), responses, cases)


def transcribed(responses: Sequence[Response], cases: Sequence[Case]) -> Counts:
    """Word errors of the text."""
    return word_errors([case.meta["answer"] for case in cases], [response.text for response in responses])


EXACT = Measure("exact match", "normalised text", True, exact)
TRANSCRIBED = Measure("word error rate", "edit distance", False, transcribed)
