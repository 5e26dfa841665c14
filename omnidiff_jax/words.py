"""Words and text: what a request holds, what is the same when answers are compared, and the word error rate."""

import itertools
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

# ‘quoted’: the mark that closes is no apostrophe, which looks the same.
_QUOTED = re.compile("‘(.*?)’(?!\\w)", re.DOTALL)
# Letters and signs that are drawn as nothing: of Hangul, and Braille's.
_FILLERS = "\u115f\u1160\u3164\uffa0\u2800"
_APOSTROPHES = "'’‘ʼ´＇‛"


def normalize(text: str) -> str:
    """Lower case, no punctuation but apostrophes, single spaces; one spelling of what looks alike.

    Letters of compatibility (full width, ligatures, superscripts) become plain ones, accents are composed (Unicode's
    NFKC), every apostrophe is ', and characters without a look of their own (soft hyphens, joiners) are left out.
    Accents and vowel signs belong to their letters: words that differ in them are different words.
    """
    # Signs go first: NFKC would spell some of them out, such as ™.
    composed = unicodedata.normalize("NFC", text)
    spelled = "".join(map(_plain, _QUOTED.sub(r" \1 ", composed)))
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", spelled).casefold())
    words = "".join(map(_plain, folded)).split()
    # A mark without a letter before it is what is left of a sign.
    return " ".join(word for found in words if (word := "".join(itertools.dropwhile(_is_mark, found))))


def _plain(character: str) -> str:
    """The character, or what stands for it between words: an apostrophe, a space, or nothing."""
    if character in _APOSTROPHES:
        return "'"
    if unicodedata.category(character) != "Cc" and _is_unseen(character):
        return ""
    if character.isalnum() or _is_mark(character):
        return character
    return " "


def _is_unseen(character: str) -> bool:
    """Control and format characters, the joiner of graphemes, and what picks a variant of the letter before it."""
    unseen = unicodedata.category(character) in ("Cc", "Cf")
    return unseen or character == "\u034f" or "\ufe00" <= character <= "\ufe0f"


def _is_mark(character: str) -> bool:
    """Accents and vowel signs, which stand on the letter before them."""
    return unicodedata.category(character) in ("Mn", "Mc")


def is_blank(text: str) -> bool:
    """Whether nothing in `text` can be seen: spaces, line breaks, control characters, joiners and fillers."""
    return all(character.isspace() or character in _FILLERS or _is_unseen(character) for character in text)


def clean(text: str) -> str:
    """`text` as a request holds it: accents composed (Unicode's NFC), line breaks as \\n."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))


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
