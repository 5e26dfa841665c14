"""Word errors by kind, of each utterance and of a corpus, and the file that sclite reads."""

import dataclasses
import re
from collections.abc import Iterable, Sequence

import numpy as np

from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.normalisers import Normaliser

_TRN = re.compile(r"^(.*)\((\S+)\)\s*$")


@dataclasses.dataclass(frozen=True)
class Edits:
    """What turns a reference into a hypothesis.

    Attributes:
        substitutions, deletions, insertions: words.
        words: of the reference.
    """

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    words: int = 0

    @property
    def errors(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors over reference words; without a reference word, infinite where anything was said, else 0."""
        return self.errors / self.words if self.words else (float("inf") if self.errors else 0.0)

    def __add__(self, other: "Edits") -> "Edits":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Edits(*(one + two for one, two in pairs))


def edits(reference: Sequence[str], hypothesis: Sequence[str]) -> Edits:
    """The fewest edits (Levenshtein), those of the released `compute-wer.py` among them where several are as few.

    At every pair of words a deletion is preferred to an insertion, and either to a substitution or a match that costs
    the same.
    """
    width = len(hypothesis) + 1
    kinds = np.zeros((len(reference) + 1, width), np.int8)  # 0 match, 1 substitution, 2 deletion, 3 insertion
    kinds[0], kinds[1:, 0] = 3, 2
    row = list(range(width))
    for i, expected in enumerate(reference, start=1):
        diagonal, row[0] = row[0], i
        kind = kinds[i]
        for j, found in enumerate(hypothesis, start=1):
            best, chosen = row[j] + 1, 2
            if row[j - 1] + 1 < best:
                best, chosen = row[j - 1] + 1, 3
            changed = expected != found
            if diagonal + changed < best:
                best, chosen = diagonal + changed, int(changed)
            diagonal, row[j] = row[j], best
            kind[j] = chosen
    counts = [0, 0, 0, 0]
    i, j = len(reference), len(hypothesis)
    while i or j:
        chosen = int(kinds[i, j])
        counts[chosen] += 1
        i, j = i - (chosen != 3), j - (chosen != 2)
    return Edits(counts[1], counts[2], counts[3], len(reference))


def word_edits(references: Sequence[str], hypotheses: Sequence[str], normaliser: Normaliser) -> list[Edits]:
    """The edits of each utterance, in words of `normaliser`.

    Raises:
        ValueError: different numbers of utterances.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses")
    pairs = zip(references, hypotheses, strict=True)
    return [edits(normaliser.words(reference), normaliser.words(hypothesis)) for reference, hypothesis in pairs]


def total(found: Iterable[Edits]) -> Edits:
    """The edits of a corpus."""
    return sum(found, Edits())


def one_line(text: str) -> str:
    """The text without the line breaks and tabs that would break a file of one utterance a line."""
    return " ".join(text.split())


def trn(texts: Sequence[str], names: Sequence[str]) -> str:
    """Transcripts as sclite reads them, `words (speaker-utterance)` a line.

    Raises:
        UserError: a name twice, or one with a space or a bracket.
    """
    for name in names:
        if not name or re.search(r"[\s()]", name):
            raise UserError(f"utterance {name!r}: a name in a trn file has no spaces and no brackets")
    if len(set(names)) != len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise UserError(f"utterance {twice!r} is there twice; a trn file tells utterances by their names")
    return "".join(f"{one_line(text)} ({name})\n" for text, name in zip(texts, names, strict=True))


def read_trn(content: str, where: str = "trn file") -> dict[str, str]:
    """Utterance -> text, of a trn file.

    Raises:
        UserError: a line without a name in brackets at its end, or a name twice.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        match = _TRN.match(line)
        if not match or match[2] in found:
            why = "is there twice" if match else "must end with its name in brackets: words (speaker-utterance)"
            raise UserError(f"{where}, line {number}: the utterance {why}")
        found[match[2]] = match[1].strip()
    return found
