"""Answers on a canvas: what is blank, what is given, which ids may stand where, and how a filled canvas is read."""

import dataclasses

import numpy as np

from omnidiff_jax.errors import UserError
from omnidiff_jax.sampling.canvas import AllowedSets, Answer, Prefill, blank, infill, known
from omnidiff_jax.tasks.chat import ChatLayout
from omnidiff_jax.tasks.registry import AnswerKind, Decoding


@dataclasses.dataclass(frozen=True)
class Parsed:
    """A generated answer, by modality.

    Attributes:
        text: decoded text, stripped; "" if the answer has none.
        image: int32 [k] codes, or None.
        speech: int32 [n] codes, or None.
    """

    text: str = ""
    image: np.ndarray | None = None
    speech: np.ndarray | None = None


class AnswerForms:
    """Builds and reads answers over one vocabulary.

    Images are a template: begin, codes, end and the turn's end are given, only codes are generated. Text may hold text,
    its end and pads; speech starts after a given begin-of-audio and may hold codes, its end and pads.
    """

    def __init__(self, layout: ChatLayout, image_codes: int):
        """Forms for prompts of `layout` and generated images of `image_codes` codes."""
        v = layout.vocabulary
        self._layout, self._vocabulary, self._image_codes = layout, v, image_codes
        self._newline = layout.encode_text("\n")
        closing = [v.im_end, v.pad, *self._newline]
        self.sets = AllowedSets(
            v,
            text=[v.text, *closing],
            image=[v.image],
            speech=[v.speech, v.end_audio, *closing],
            # The turn does not end before its speech: an end there would end the speech too (`Decoding.stop`).
            text_before_speech=[v.text, v.pad, *self._newline],
            text_and_speech=[v.text, v.speech, v.begin_audio, v.end_audio, *closing],
        )

    def build(
        self,
        kind: AnswerKind,
        decoding: Decoding,
        units: int,
        codes: np.ndarray | None = None,
        hole: np.ndarray | None = None,
        prompt: int = 0,
    ) -> Answer:
        """The answer to be filled.

        Args:
            kind: what it is made of.
            decoding: length and pre-infilling.
            units: size of the request, for `decoding.adaptive`.
            codes: int [k], codes of the picture to inpaint.
            hole: bool [k], its codes that are to be drawn.
            prompt: positions of the whole prompt, for `decoding.adaptive`.

        Raises:
            UserError: an answer without positions.
        """
        v, mask = self._vocabulary, self._vocabulary.mask
        if kind in ("image", "hole"):
            if kind == "hole":
                assert codes is not None and hole is not None
                inner = infill(v.image.encode(np.asarray(codes, np.int32)), hole, mask, self.sets["image"])
            else:
                inner = blank(self._image_codes, mask, self.sets["image"])
            return known([v.begin_image]) + inner + known([v.end_image, v.im_end, *self._newline])
        length = decoding.length if decoding.adaptive is None else decoding.adaptive.length(units, prompt)
        if length < 1:
            raise UserError(f"decoding length = {length} must be at least 1: the answer is {kind}")
        if kind == "text":
            return blank(length, mask, self.sets["text"])
        if kind == "speech":
            return known([v.begin_audio]) + blank(max(length - 1, 1), mask, self.sets["speech"])
        answer = blank(length, mask, self.sets["text_and_speech"])
        if decoding.prefill is not None:
            prefill = Prefill(v.begin_audio, decoding.prefill)
            answer = prefill.apply(answer, self.sets["text_before_speech"], self.sets["speech"])
        return answer

    def parse(self, tokens: np.ndarray) -> Parsed:
        """Reads a filled answer, int32 [n]. What follows the turn's end is dropped, as are stray specials."""
        v = self._vocabulary
        tokens = np.asarray(tokens)
        audio_at = np.flatnonzero(tokens == v.begin_audio)
        spoken = audio_at[0] if len(audio_at) else len(tokens)
        head, tail = _until(tokens[:spoken], v.im_end), _until(tokens[spoken:], v.im_end)
        text = self._layout.text.decode([int(t) for t in head[v.text.contains(head)]]).strip()
        image = v.image.decode(tokens[v.image.contains(tokens)])
        speech = _until(tail, v.end_audio)
        speech = v.speech.decode(speech[v.speech.contains(speech)])
        return Parsed(text, image if len(image) else None, speech if len(audio_at) else None)


def _until(tokens: np.ndarray, stop: int) -> np.ndarray:
    found = np.flatnonzero(tokens == stop)
    return tokens[: found[0]] if len(found) else tokens
