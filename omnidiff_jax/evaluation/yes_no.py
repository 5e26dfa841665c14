"""Questions of yes or no: how an answer is read under each benchmark's own rule, and what is counted.

The rules differ on answers that a model gives: "none" is no to MME and yes to POPE.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from omnidiff_jax.config import Choice
from omnidiff_jax.evaluation.intervals import Ratios

YES, NO, OTHER = "yes", "no", ""
# What VLMEvalKit takes out of an answer before it looks for words (VQA's own evaluation code).
_VQA_MARKS = ';/[]"{}()=+\\_-<>@`,?!'


@dataclasses.dataclass(frozen=True)
class YesNo(Choice, key="", word="pope"):
    """POPE's own reading (`evaluate.py` of arXiv 2305.10355): of the first sentence, without commas, no where "No",
    "no" or "not" is one of the words between spaces, else yes."""

    def read(self, answer: str) -> str:
        """`YES`, `NO`, or `OTHER` where it is neither."""
        words = answer.split(".")[0].replace(",", "").split(" ")
        return NO if {"No", "not", "no"} & set(words) else YES


@dataclasses.dataclass(frozen=True)
class FirstLetters(YesNo, word="mme"):
    """MME's own reading (`calculation.py` of arXiv 2306.13394): lower case, the word alone, else the one that the first
    four characters hold, yes before no."""

    def read(self, answer: str) -> str:
        said = answer.lower()
        if said in (YES, NO):
            return said
        return next((word for word in (YES, NO) if word in said[:4]), OTHER)


@dataclasses.dataclass(frozen=True)
class Words(YesNo, word="vlmevalkit"):
    """VLMEvalKit's: one of the words yes and no anywhere, and not the other."""

    def read(self, answer: str) -> str:
        said = set(_without_marks(answer.lower()).split())
        found = [word for word in (YES, NO) if word in said]
        return found[0] if len(found) == 1 else OTHER


@dataclasses.dataclass(frozen=True)
class Spoken(FirstLetters, word="mme_spoken"):
    """As MME's, of what was heard: what stands before the first letter is left out."""

    def read(self, answer: str) -> str:
        return super().read(re.sub(r"^\W+", "", answer))


def _without_marks(text: str) -> str:
    """Punctuation taken out, or a space where it joins two words, as VQA's evaluation code does."""
    joined = re.search(r"\d,\d", text) is not None
    out = text
    for mark in _VQA_MARKS:
        out = out.replace(mark, "" if mark + " " in text or " " + mark in text or joined else " ")
    return re.sub(r"(?!<=\d)(\.)(?!\d)", "", out)


def detections(said: Sequence[str], truths: Sequence[str]) -> dict[str, Ratios]:
    """Accuracy, precision, recall, F1 and the share of yes; yes is what is to be found, anything else said is not yes.

    Args:
        said: `YES`, `NO` or `OTHER` of each answer; `OTHER` is wrong, and counts as no in all but the accuracy.
        truths: `YES` or `NO`.
    """
    found, there = np.array([word == YES for word in said], float), np.array([word == YES for word in truths], float)
    hits = found * there
    right = np.array([word == truth for word, truth in zip(said, truths, strict=True)], float)
    return {
        "accuracy": Ratios.of(right),
        "precision": Ratios.of(hits, found),
        "recall": Ratios.of(hits, there),
        "F1": Ratios.of(2 * hits, found + there),
        "yes ratio": Ratios.of(found),
    }


def both_right(right: Sequence[bool], pictures: Sequence[str]) -> Ratios:
    """Share of pictures all of whose questions are answered right (MME's accuracy+)."""
    owner: dict[str, list[int]] = {}
    for i, picture in enumerate(pictures):
        owner.setdefault(picture, []).append(i)
    top, bottom = np.zeros(len(right)), np.zeros(len(right))
    for cases in owner.values():
        bottom[cases[0]] = 1.0
        top[cases[0]] = float(all(right[i] for i in cases))
    return Ratios.of(top, bottom)


def mme_task(right: Sequence[bool], pictures: Sequence[str], chosen: Sequence[bool]) -> Ratios:
    """MME's score of one task, up to 200: 100 times accuracy and accuracy+ together, over the cases of `chosen`."""
    parts = (Ratios.of(np.asarray(right, float)), both_right(right, pictures))
    return Ratios.joined([part.where(chosen) for part in parts], (100.0, 100.0))
