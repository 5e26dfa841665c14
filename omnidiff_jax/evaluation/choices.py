"""Multiple choice and open questions: how a letter, or a short answer, is read out of what a model says."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from omnidiff_jax.config import Choice

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_SAYS = re.compile(r"(?i)answer is \W*([A-Z])\b")


@dataclasses.dataclass(frozen=True)
class Letters(Choice, key="", word="vlmevalkit"):
    """VLMEvalKit's exact matching: the one option letter that is a word of its own among the last five, else the one
    after "answer is", else the one option whose text is in the answer."""

    def read(self, answer: str, options: Mapping[str, str]) -> str:
        """The letter of an option, or "" where the answer names none.

        Args:
            options: letter -> text.
        """
        if any(refusal in answer for refusal in _REFUSALS):
            return ""
        words = re.sub(r"[.()\[\],:;!*#{}]", " ", answer).split()
        named = [letter for letter in options if letter in words]
        if len(named) == 1 and words.index(named[0]) > len(words) - 5:
            return named[0]
        said = _SAYS.search(answer)
        if said and said[1].upper() in options:
            return said[1].upper()
        return self._told(answer, options)

    def _told(self, answer: str, options: Mapping[str, str]) -> str:
        if len(answer) > 2 * sum(len(text) for text in options.values()):
            return ""
        told = [letter for letter, text in options.items() if text and text.lower() in answer.lower()]
        return told[0] if len(told) == 1 else ""


@dataclasses.dataclass(frozen=True)
class Brackets(Letters, word="mmmu"):
    """MMMU's own (arXiv 2311.16502): (A), else A between spaces, else an option's text where there are more than five
    words; the last one named counts.

    Its script answers at random where nothing is named; that is a right answer in one of four, so that none is given
    here, and what cannot be read is counted.
    """

    def read(self, answer: str, options: Mapping[str, str]) -> str:
        said = answer
        for mark in ",.!?;:'":
            said = said.strip(mark)
        said = f" {said} "
        for form in ("({})", " {} "):
            places = {letter: said.rfind(form.format(letter)) for letter in options}
            if max(places.values(), default=-1) >= 0:
                return max(places, key=lambda letter: places[letter])
        if len(said.split()) <= 5:
            return ""
        places = {letter: said.lower().rfind(text.lower()) for letter, text in options.items()}
        return max(places, key=lambda letter: places[letter]) if max(places.values(), default=-1) >= 0 else ""


def lettered(options: Sequence[str]) -> dict[str, str]:
    """Options by letter."""
    return dict(zip(LETTERS, options, strict=False))


def open_right(answer: str, truths: Sequence[str]) -> bool:
    """Whether an open question of MMMU is answered right, by its own rule.

    Key phrases of the answer (what follows "is", "so", "answer", and "=" in its last sentence) and the numbers in them
    are compared: numbers are equal to two decimals, a phrase holds the truth's words.
    """
    right = [form for truth in truths for form in _forms(truth)]
    for said in _told(answer):
        if isinstance(said, float):
            if said in right:
                return True
        elif any(isinstance(truth, str) and truth in said for truth in right):
            return True
    return False


_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


def _told(answer: str) -> list[Any]:
    whole = answer.strip().strip(".").lower()
    sentences = re.split(r"\.\s(?=[A-Z])|\n", whole)
    phrases = []
    for number, sentence in enumerate(sentences):
        keys = (*_KEYS, "=") if number == len(sentences) - 1 else _KEYS
        tails = [sentence.split(key)[-1].strip() for key in keys if key in sentence]
        shortest = _shortest(tails)
        if shortest and shortest not in (":", ",", ".", "!", "?", ";", "'"):
            phrases.append(shortest)
    phrases = phrases or [whole]
    numbers = [found for phrase in phrases for form in _NUMBERS for found in re.findall(form, phrase)]
    return [form for phrase in (*phrases, *numbers) for form in _forms(phrase)]


def _shortest(tails: Sequence[str]) -> str:
    """The shortest, the first of those as short; an empty one counts only where nothing comes after it."""
    best = ""
    for tail in tails:
        if not best or len(tail) < len(best):
            best = tail
    return best


def _forms(text: str) -> list[Any]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        low = text.lower()
        # One letter would be found in every word.
        return [f" {low}", f"{low} "] if len(low) == 1 else [low]
