"""Rules of text, each a switch: what corpora write that nobody says."""

import re
from collections.abc import Callable, Mapping

from omnidiff_jax.records import RejectedRecord

_MARKS = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
_GARBAGE = re.compile("<(?:SIL|MUSIC|NOISE|OTHER)>", re.IGNORECASE)


def lower(text: str) -> str:
    """Text in capitals in small letters; what has small letters stays."""
    return text.lower() if text == text.upper() else text


def marks(text: str) -> str:
    """GigaSpeech's `<COMMA>` and the like as the marks they name, without the blank before."""
    for tag, mark in _MARKS.items():
        text = re.sub(rf"\s*{tag}", mark, text, flags=re.IGNORECASE)
    return text


def no_garbage(text: str) -> str:
    """Refuses a text that says a stretch is no speech.

    Raises:
        RejectedRecord: it holds `<SIL>`, `<MUSIC>`, `<NOISE>` or `<OTHER>`.
    """
    if tag := _GARBAGE.search(text):
        raise RejectedRecord("not speech", tag[0])
    return text


def trimmed(text: str) -> str:
    """Without blanks around, and one between words of a line."""
    return re.sub(r"[ \t]+", " ", text).strip()


# In the order in which they are applied.
RULES: Mapping[str, Callable[[str], str]] = {
    "no_garbage": no_garbage,
    "marks": marks,
    "lower": lower,
    "trimmed": trimmed,
}
