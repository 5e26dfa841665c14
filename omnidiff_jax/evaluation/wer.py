"""Word error rate, and the normalisation of text under which answers are compared."""

import re
from collections.abc import Sequence

import numpy as np

_NOT_WORDS = re.compile(r"[^\w\s']|_")


def normalize(text: str) -> str:
    """Lower case, no punctuation but apostrophes, single spaces."""
    return " ".join(_NOT_WORDS.sub(" ", text.lower()).split())


def edit_distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Fewest substitutions, insertions and deletions that turn `reference` into `hypothesis` (Levenshtein)."""
    row = list(range(len(hypothesis) + 1))
    for i, expected in enumerate(reference, start=1):
        diagonal, row[0] = row[0], i
        for j, found in enumerate(hypothesis, start=1):
            diagonal, row[j] = row[j], min(diagonal + (expected != found), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Edit distance in words of each utterance and its number of reference words, int [n] both, after `normalize`.

    Raises:
        ValueError: different numbers of utterances.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses")
    expected = [normalize(reference).split() for reference in references]
    found = [normalize(hypothesis).split() for hypothesis in hypotheses]
    errors = [edit_distance(reference, hypothesis) for reference, hypothesis in zip(expected, found, strict=True)]
    return np.array(errors, int), np.array([len(reference) for reference in expected], int)


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Word errors of all utterances over the number of reference words.

    Raises:
        ValueError: different numbers of utterances, or no reference word at all.
    """
    errors, words = word_errors(references, hypotheses)
    if not words.sum():
        raise ValueError("word error rate of references without words")
    return float(errors.sum() / words.sum())
