"""espeak-ng as a speaker: what is built in."""

import dataclasses
from collections.abc import Sequence

from data_pipelines.scenes.speech import ANSWER_VOICE, VOICE_COUNT, heard_voice, say
from data_pipelines.speakers.espeak_engine import RATE, Voice, synthesize
from data_pipelines.speakers.speaker import Line, pace
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import Waveform


class EspeakSpeaker:
    """The voices of the Scenes world: accent, variant, speed, pitch. See `speaker.Speaker`."""

    name = "espeak-ng"
    licence = "not restricted (espeak-ng itself is GPL-3.0-or-later)"

    def __init__(self, voices: int, by_word: bool = False):
        """Args:
            voices: that ask.
            by_word: whether answers are spoken a word at a time (`scenes.speech.say`).

        Raises:
            UserError: it has fewer voices.
        """
        if voices > VOICE_COUNT:
            raise UserError(f"speaker.voices = {voices}, but espeak has {VOICE_COUNT}; ask for fewer")
        self.voices, self._by_word = voices, by_word

    def say(self, lines: Sequence[Line]) -> list[Waveform]:
        """float32 at 16 kHz, without silence at the ends."""
        return [self._say(line) for line in lines]

    def _say(self, line: Line) -> Waveform:
        if line.voice is None and self._by_word and not line.seed:
            return say(line.text, ANSWER_VOICE)
        voice = self._voice(line.voice)
        paced = dataclasses.replace(voice, rate=round(voice.rate * pace(line.seed)))
        return Waveform(synthesize(line.text, paced, line.seed + 1), RATE)

    def described(self, voice: int | None) -> str:
        found = self._voice(voice)
        return f"{found.name}, pitch {found.pitch}, {found.rate} words a minute"

    def _voice(self, number: int | None) -> Voice:
        return ANSWER_VOICE if number is None else heard_voice(number)
