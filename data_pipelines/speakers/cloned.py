"""A cloning model as a speaker: a clip is a voice, and a function of one's own speaks.

    def speak(requests: list[Request]) -> list[Waveform]: ...

is named `package.module:speak` in the config; the package must be importable. It loads its model when it is first
called, draws its noise from `Request.seed`, and speaks a request alike whatever stands beside it.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.speakers.speaker import Line
from omnidiff_jax.config import suggest
from omnidiff_jax.errors import UserError
from omnidiff_jax.fetching import local_copy
from omnidiff_jax.media.audio import read_audio
from omnidiff_jax.records import Waveform
from omnidiff_jax.tokenizers.assets import fingerprint

_SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
_MOST_TEXT = 10_000  # bytes of a clip's words


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be said once.

    Attributes:
        text: to say.
        clip: whose voice it is said in, at the clip's own rate.
        words: of the clip.
        seed: of the noise.
    """

    text: str
    clip: Waveform
    words: str
    seed: int


class ClonedSpeaker:
    """The voices of a folder of clips. See `speaker.Speaker`; there are no more voices than clips that ask."""

    def __init__(self, function: str, clips: str, answer: str, voices: int, batch: int, licence: str):
        """Args:
            function, clips, answer, voices, batch, licence: as `kinds.Cloned` says.

        Raises:
            UserError: the function cannot be imported, or the folder holds no such clips.
        """
        self._called, self._batch, self.licence = function, batch, licence
        self._function = _imported(function)
        folder = local_copy(clips)
        if not folder.is_dir():
            raise UserError(f"speaker.clips = {clips!r} is no folder; it must hold recordings with .txt beside")
        found = {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() in _SOUNDS}
        if answer not in found:
            raise UserError(f"speaker.answer = {answer!r} is no clip of {folder}; {suggest(answer, found)}")
        self._answer = found.pop(answer)
        self._clips = list(found.values())[:voices]
        if not self._clips:
            raise UserError(f"{folder} has no clip beside {answer!r}; questions need voices of their own")
        if missing := [file for file in (self._answer, *self._clips) if not file.with_suffix(".txt").is_file()]:
            raise UserError(
                f"{missing[0]} has no {missing[0].with_suffix('.txt').name} beside it; write its words there"
            )
        self.voices = len(self._clips)
        self.name = f"{function} with clips {fingerprint([folder])[:8]}"

    def say(self, lines: Sequence[Line]) -> list[Waveform]:
        """What the function gives, checked.

        Raises:
            UserError: the function gives something else than a mono `Waveform` a request.
        """
        said: list[Waveform] = []
        for first in range(0, len(lines), self._batch):
            requests = [self._request(line) for line in lines[first : first + self._batch]]
            answers = self._function(requests)
            if len(answers) != len(requests):
                raise UserError(f"{self._called} gave {len(answers)} waveforms for {len(requests)} requests")
            said += [self._checked(answer) for answer in answers]
        return said

    def described(self, voice: int | None) -> str:
        return f"clip {self._file(voice).name}"

    def _file(self, voice: int | None) -> Path:
        return self._answer if voice is None else self._clips[voice]

    def _request(self, line: Line) -> Request:
        clip, words = _clip(self._file(line.voice))
        return Request(line.text, clip, words, line.seed)

    def _checked(self, answer: Any) -> Waveform:
        samples = getattr(answer, "samples", None)
        if not isinstance(samples, np.ndarray) or samples.ndim != 1 or getattr(answer, "rate", 0) <= 0:
            raise UserError(f"{self._called} gave {type(answer).__name__}; it must give mono Waveforms")
        return Waveform(samples.astype(np.float32), int(answer.rate))


@functools.lru_cache(maxsize=64)
def _clip(file: Path) -> tuple[Waveform, str]:
    with open(file.with_suffix(".txt"), encoding="utf-8", errors="replace") as words:
        return read_audio(str(file)), " ".join(words.read(_MOST_TEXT).split())


def _imported(name: str) -> Callable[[list[Request]], Sequence[Any]]:
    module, _, attribute = name.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"speaker.function = {name!r} cannot be imported ({error}); name package.module:function"
        ) from error
    if not callable(function):
        raise UserError(f"speaker.function = {name!r} is no function; name package.module:function")
    return function
