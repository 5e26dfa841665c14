"""Word error rate, and the normalisation of text under which answers are compared."""

import re
from collections.abc import Sequence

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


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Edit distance in words over all utterances divided by the number of reference words, after `normalize`.

    Raises:
        ValueError: different numbers of utterances, or no reference word at all.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses")
    errors = words = 0
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        expected = normalize(reference).split()
        errors += edit_distance(expected, normalize(hypothesis).split())
        words += len(expected)
    if not words:
        raise ValueError("word error rate of references without words")
    return errors / words
