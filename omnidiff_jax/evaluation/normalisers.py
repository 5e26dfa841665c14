"""How a transcript becomes words before word errors are counted: one strategy for each rule in use.

The number of errors depends on it more than on most models, so that every score names its normaliser.
"""

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from omnidiff_jax.config import Choice
from omnidiff_jax.errors import UserError
from omnidiff_jax.words import normalize

_EXTRA = "pip install 'omnidiff_jax[benchmarks]'"


@dataclasses.dataclass(frozen=True)
class Normaliser(Choice, key="", word="plain"):
    """Lower case, no punctuation but apostrophes, one spelling of what looks alike (`words.normalize`)."""

    def words(self, text: str) -> list[str]:
        """The words of a transcript."""
        return normalize(text).split()

    def written(self, text: str) -> str:
        """A transcript as files for other tools have it: as it is, unless a rule comes before the tool's own."""
        return text


@dataclasses.dataclass(frozen=True)
class Whisper(Normaliser, word="whisper"):
    """Whisper's for English (arXiv 2212.04356, appendix C): one spelling, numbers as digits, no fillers, no brackets.

    It undoes apostrophes itself, but knows one sign for them only: others become that one before.
    """

    def words(self, text: str) -> list[str]:
        """Raises UserError where the package is missing."""
        straight = re.sub("[’‘ʼ´＇‛]", "'", unicodedata.normalize("NFC", text))
        return _whisper()(straight).split()


@dataclasses.dataclass(frozen=True)
class Released(Normaliser, word="released"):
    """The released `compute-wer.py --char=1`: character classes, upper case, tags in < > left out.

    A letter without case (`Lo`, such as Chinese) is a word of its own; a listed punctuation mark vanishes where a word
    would begin and stays inside one, so that "word," and "word" differ; numbers and spelling are left alone.
    """

    def words(self, text: str) -> list[str]:
        return [word for token in _characterized(text) if (word := _without_tags(token.upper()))]


@dataclasses.dataclass(frozen=True)
class ReleasedSpeech(Released, word="released_speech"):
    r"""What the released script does to both sides of LibriTTS: English text normalisation (digits to words,
    WeTextProcessing), every run of `\W` a space, then `Released`; "don't" is two words."""

    def words(self, text: str) -> list[str]:
        """Raises UserError where the package is missing."""
        return super().words(self.written(text))

    def written(self, text: str) -> str:
        """Spelled out and without marks, as the released script writes both sides; raises as `words`."""
        return re.sub(r"\W+", " ", _spelled_out()(text))


@functools.cache
def _whisper() -> Callable[[str], str]:
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise UserError(f"Whisper's normaliser needs whisper-normalizer: {_EXTRA}") from error
    normaliser: Callable[[str], str] = EnglishTextNormalizer()
    return normaliser


@functools.cache
def _spelled_out() -> Callable[[str], str]:
    try:
        from tn.english.normalizer import Normalizer
    except ImportError as error:
        raise UserError(
            "released_speech needs WeTextProcessing: pip install WeTextProcessing; or --normaliser=whisper"
        ) from error
    spell: Any = Normalizer()
    # Milliseconds a text, and a score asks for each several times: value, ceiling, floor, exports.
    return functools.lru_cache(1 << 16)(lambda text: str(spell.normalize(text)))


_SPACES = " \t\r\n"
_MARKS = frozenset("!,?、。！，；？：「」︰『』《》")


def _characterized(text: str) -> list[str]:
    """Tokens by character classes (`characterize` of the released script)."""
    tokens: list[str] = []
    i = 0
    while i < len(text):
        category = unicodedata.category(text[i])
        if text[i] in _MARKS or category in ("Zs", "Cn") or text[i] in _SPACES:
            i += 1
            continue
        end = i + 1
        if category != "Lo":
            close = ">" if text[i] == "<" else " "
            while end < len(text) and ord(text[end]) < 128 and text[end] not in _SPACES and text[end] != close:
                end += 1
            end += end < len(text) and text[end] == ">"
        tokens.append(text[i:end])
        i = end
    return tokens


def _without_tags(token: str) -> str:
    """The token without what stands between < and >; an open < takes all that follows it."""
    return re.sub("<[^>]*(>|$)", "", token)
