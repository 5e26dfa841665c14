"""Half-filled canvases for clients: the part of a text that is finished, and what the rest looks like."""

import base64
from typing import Any

import numpy as np

from omnidiff_jax.answering.film import cells, partly, pictures
from omnidiff_jax.codecs.media import Codecs
from omnidiff_jax.serving.pictures import file_of
from omnidiff_jax.serving.tickets import Partial
from omnidiff_jax.tasks.registry import AnswerKind

# What a decoder shows of a letter whose bytes are not all there.
_BROKEN = "\N{REPLACEMENT CHARACTER}"


class Prefix:
    """What was said of a text so far: its positions before the first mask.

    Args:
        codecs: of the model.
        steady: whether a revealed position stays as it is; else nothing is said before the end.
    """

    def __init__(self, codecs: Codecs, steady: bool):
        self._codecs, self._steady, self._said = codecs, steady, ""

    def grown(self, tokens: np.ndarray) -> str:
        """What can be said now and was not before.

        Args:
            tokens: int32 [n], the answer's part of the canvas.
        """
        if not self._steady:
            return ""
        vocabulary = self._codecs.layout.vocabulary
        closed = np.flatnonzero((tokens == vocabulary.mask) | (tokens == vocabulary.im_end))
        known = tokens[: closed[0]] if len(closed) else tokens
        text = self._codecs.layout.text.decode([int(t) for t in known[vocabulary.text.contains(known)]])
        # An answer is stripped: what ends in a space, or in half a letter, may go on or not.
        return self._add(text.lstrip().rstrip(_BROKEN).rstrip())

    def rest(self, text: str) -> str:
        """What is left to say of the whole text."""
        return self._add(text)

    def _add(self, text: str) -> str:
        if not text.startswith(self._said):
            return ""
        new, self._said = text[len(self._said) :], text
        return new


def canvas_of(partial: Partial, kind: AnswerKind, codecs: Codecs) -> dict[str, Any]:
    """A canvas as JSON: its step, and how it looks: `text` with a dot for each mask, or a picture as `b64_json`."""
    shown: dict[str, Any] = {"step": partial.step}
    if kind == "text":
        return shown | {"text": partly(partial.tokens, codecs)}
    if kind in ("image", "hole"):
        picture = pictures(partial.tokens[None], codecs)[0]
    else:
        picture = cells(partial.tokens[None], codecs.layout.vocabulary)
    return shown | {"b64_json": base64.b64encode(file_of(picture, "png")).decode()}
