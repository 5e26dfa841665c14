"""Which question-answer pairs can be spoken, and how (arXiv 2603.06577, section on SDVI).

Pairs with mathematics or programming and answers over 100 words are dropped; a multiple-choice question becomes an
open one, and the words of its choice replace the letter. The rules read text and know nothing of any data set.
"""

import dataclasses
import re

from omnidiff_jax.records import RejectedRecord

MAX_ANSWER_WORDS = 100

MATHEMATICS = "mathematics"
PROGRAMMING = "programming"
LONG_ANSWER = "answer over 100 words"
UNRESOLVED_CHOICE = "multiple choice without the chosen words"
NEEDS_CHOICES = "question makes no sense without its choices"
NOTHING_TO_SAY = "question or answer without words"
REASONS = (MATHEMATICS, PROGRAMMING, LONG_ANSWER, UNRESOLVED_CHOICE, NEEDS_CHOICES, NOTHING_TO_SAY)

_MATHEMATICS = re.compile(
    r"""
      \\(?:frac|sqrt|sum|int|cdot|times|div|pi|theta|alpha|left|begin|angle|triangle|boxed|text)\b   # LaTeX
    | \$[^$\n]*[\\^_=+*<>][^$\n]*\$
    | \d\s*[+*×÷^=]\s*\(?-?\d                            # 3 + 4
    | \b\d*[a-z]\s*[=^]\s*\(?-?\w                        # 2x = 6, r^2
    | (?<!\d)\d{1,3}\s+[-−/]\s+\d{1,3}(?!\d)             # 7 - 2, but neither 24/7 nor 1990 - 1995
    | \b(?:sin|cos|tan|log|ln|lim|sqrt)\s*\(
    | √ | ∑ | ∫ | ≤ | ≥ | π
    | \b(?:equations?|calculate[sd]?|calculation|comput(?:e|es|ed|ing)|derivatives?|integrals?|theorem|algebra(?:ic)?
        |geometr(?:y|ic)|logarithms?|polynomials?|hypotenuse|perimeter|circumference|square\ root|quotient|arithmetic
        |trigonometr(?:y|ic)|multipl(?:y|ied)|divided\ by|math(?:s|ematics|ematical)?)\b
    | \bsolve\ (?:for|the)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
_PROGRAMMING = re.compile(
    r"""
      ```
    | ^\s*(?:def|class)\s+\w+\s*[(:]
    | ^\s*(?:import\s+\w+(?:\s+as\s+\w+)?|from\s+[\w.]+\s+import\s.*|\#include\s*<.*)\s*$
    | \b(?:print|printf|println|console\.log|System\.out\.\w+|len|range)\s*\(
    | </?(?:html|body|div|span|table|tr|td|head|script|style|ul|li|img|p)\b[^>]*>
    | \b(?:python|javascript|typescript|java|html|css|sql|matlab|verilog|bash|json|xml)\b
    | \bc(?:\+\+|\#)
    | \b(?:source\ code|pseudo-?code|code\ snippet|lines?\ of\ code|write\ (?:a\ |the\ |some\ )?(?:code|script|program)
        |programm(?:ing|er|ers)|algorithms?|compilers?|subroutines?)\b
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)

_MEDIA_TAG = re.compile(r"<\|?(?:image|audio|video)\|?>")
_MARKER = re.compile(r"(?:(?<=\s)|^)(?:\(([A-Ha-h])\)|([A-Ha-h])[.):])\s+")
_INSTRUCTION = re.compile(
    r"(?:^|(?<=[.?!:;,\n])\s*)(?:hint:\s*)?(?:please\s+)?"
    r"(?:answer|choose|select|pick|reply|respond|provide|give|indicate)\b[^.?!\n]*\b(?:letters?|options?|choices?)\b[^\n]*",
    re.IGNORECASE | re.MULTILINE,
)
_HEADING = re.compile(r"\b(?:the\s+)?(?:options|choices|answers|possible answers)(?:\s+are)?\s*:\s*$", re.IGNORECASE)
_LABEL = re.compile(r"^\s*question\s*:\s*", re.IGNORECASE)
_OF_THE_FOLLOWING = re.compile(
    r"(?:\s*,)?\s*\b(?:(?:one\s+)?of|from|among)\s+(?:the\s+following|these|the\s+below)(?:\s+(?:options|choices))?",
    re.IGNORECASE,
)
_ABOUT_CHOICES = re.compile(
    r"\b(?:which|what)\b[^?]*\b(?:statements?|sentences?|options?|choices?|descriptions?)\b"
    r"|\bwhich\s+(?:is|are)\s+(?:\w+\s+)?(?:true|false|correct|incorrect)\b"
    r"|\b(?:all|none|any|both)\s+of\s+the\s+above\b",
    re.IGNORECASE,
)
_LEADING_LETTER = re.compile(r"\(?([A-Ha-h])(?:[.):]+(?:\s|$)|$)")
_LETTER_IN_TEXT = re.compile(
    r"((?i:answer|option|choice)(?:\s+is)?\s*:?\s*)\(?([A-H])\)?(?=\s*(?:[.,;:!]|$|because|since|as\b|which))"
)


@dataclasses.dataclass(frozen=True)
class SpeakablePair:
    """A question that can be asked aloud and its answer; `rewritten` if it was multiple choice."""

    question: str
    answer: str
    rewritten: bool


def speakable(question: str, answer: str) -> SpeakablePair:
    """Filters and rewrites one pair.

    Args:
      question: as in the data set; media tags are ignored.
      answer: as in the data set.

    Raises:
      RejectedRecord: the pair must be dropped, for one of `REASONS`.
    """
    question, answer = (_MEDIA_TAG.sub(" ", text).strip() for text in (question, answer))
    both = f"{question}\n{answer}"
    if _PROGRAMMING.search(both):
        raise RejectedRecord(PROGRAMMING, question)
    if _MATHEMATICS.search(both):
        raise RejectedRecord(MATHEMATICS, question)
    pair = _opened(question, answer)
    if len(pair.answer.split()) > MAX_ANSWER_WORDS:
        raise RejectedRecord(LONG_ANSWER, question)
    if not all(re.search(r"[^\W_]", text) for text in (pair.question, pair.answer)):
        raise RejectedRecord(NOTHING_TO_SAY, question)
    return pair


def choices(question: str) -> tuple[str, dict[str, str], str]:
    """Takes a multiple-choice question apart.

    Returns:
      What stands before the choices, the words of each choice by capital letter (empty if there are not at least A
      and B), and what stands on the lines after the last choice.
    """
    run: list[re.Match[str]] = []
    for marker in _MARKER.finditer(question):
        if _letter(marker) == "A":
            run = [marker]
        elif run and _letter(marker) == "ABCDEFGH"[len(run) % 8]:
            run.append(marker)
    if len(run) < 2:
        return question, {}, ""
    words: dict[str, str] = {}
    ends = [marker.start() for marker in run[1:]] + [len(question)]
    after = ""
    for marker, end in zip(run, ends, strict=True):
        text = question[marker.end() : end]
        if marker is run[-1]:
            text, _, after = _INSTRUCTION.sub("", text).partition("\n")
        words[_letter(marker)] = " ".join(text.split()).rstrip(" ,;.")
    return question[: run[0].start()], words, after


def _letter(marker: re.Match[str]) -> str:
    return (marker[1] or marker[2]).upper()


def _opened(question: str, answer: str) -> SpeakablePair:
    """The pair with its choices, if it has any, replaced by an open question."""
    before, words, after = choices(question)
    if not words:
        if _INSTRUCTION.search(question) and _LEADING_LETTER.match(answer):
            raise RejectedRecord(UNRESOLVED_CHOICE, question)
        return SpeakablePair(" ".join(question.split()), " ".join(answer.split()), False)
    chosen = _chosen(answer, words)
    if chosen is None:
        raise RejectedRecord(UNRESOLVED_CHOICE, question)
    stem = _HEADING.sub("", _INSTRUCTION.sub("", before).rstrip())
    stem = " ".join(_LABEL.sub("", f"{stem} {_INSTRUCTION.sub('', after)}").split())
    if _ABOUT_CHOICES.search(stem) or _ABOUT_CHOICES.search(chosen):
        raise RejectedRecord(NEEDS_CHOICES, question)
    return SpeakablePair(_OF_THE_FOLLOWING.sub("", stem), chosen, True)


def _chosen(answer: str, words: dict[str, str]) -> str | None:
    """The answer with words for letters, or None if it picks no choice."""
    answer = " ".join(answer.split())
    for text in words.values():
        if answer.rstrip(".").lower() == text.lower():
            return text
    if leading := _LEADING_LETTER.match(answer):
        return words.get(leading[1].upper())
    named = _LETTER_IN_TEXT.search(answer)
    if named is None or named[2] not in words:
        return None
    if answer.lower().startswith(("answer", "the answer", "option", "choice")) and not answer[named.end() :].strip(
        " .:;!"
    ):
        return words[named[2]]
    return answer[: named.start(2)].rstrip("(") + words[named[2]] + answer[named.end() :]
