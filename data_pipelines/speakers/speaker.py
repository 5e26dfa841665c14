"""Text to speech with many voices: what an opened speaker does, and the kinds that a config names."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from omnidiff_jax.config import Choice, Count
from omnidiff_jax.records import Waveform, stable_id


@dataclasses.dataclass(frozen=True)
class Line:
    """What is to be said once.

    Attributes:
        text: any text.
        voice: of those that ask, 0 .. `Speaker.voices` - 1; None = the one that answers.
        seed: 0 = as the voice speaks; another one says the same otherwise.
    """

    text: str
    voice: int | None
    seed: int = 0


class Speaker(Protocol):
    """An opened speaker: many voices that ask, and one that answers.

    Attributes:
        name: engine and version, or a digest of its files.
        licence: of what it says.
        voices: number of those that ask; no two are alike.
    """

    name: str
    licence: str
    voices: int

    def say(self, lines: Sequence[Line]) -> list[Waveform]:
        """Each line spoken, whatever lines are beside it: the same samples in every process."""

    def described(self, voice: int | None) -> str:
        """A voice in words, for people."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeakerConfig(Choice, key="kind", word="espeak"):
    """Who speaks. This kind, `espeak`, needs nothing else: 1,024 voices of accent, variant, speed and pitch.

    A speaker of one's own is a subclass with another `open`.

    Attributes:
        voices: that ask.
    """

    voices: Count = 1000

    def open(self) -> Speaker:
        """Raises UserError where it has fewer voices, or something that it needs is missing."""
        from data_pipelines.speakers.espeak import EspeakSpeaker

        return EspeakSpeaker(self.voices)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesSpeaker(SpeakerConfig, word="scenes"):
    """`espeak`, but for answers in the way that nano's speech codes know: a word at a time, on a grid of 80 ms."""

    def open(self) -> Speaker:
        from data_pipelines.speakers.espeak import EspeakSpeaker

        return EspeakSpeaker(self.voices, by_word=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kokoro(SpeakerConfig, word="kokoro"):
    """Kokoro-82M from a folder: voices of its packs, blends of two, speed and pitch. Needs the extra `kokoro`.

    Attributes:
        folder: `*.onnx`, a JSON file with its `vocab`, and `voices/NAME.bin`.
        answer: the pack that answers.
        languages: first letters of the packs that ask: a is American, b British English.
        licence: of the packs.
    """

    folder: str
    answer: str = "af_heart"
    languages: str = "ab"
    licence: str = "Apache-2.0"

    def open(self) -> Speaker:
        from data_pipelines.speakers.kokoro import KokoroSpeaker

        return KokoroSpeaker(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cloned(SpeakerConfig, word="cloned"):
    """A model that speaks as a clip does (zero-shot cloning), by a function of one's own.

    Attributes:
        function: `package.module:name`; called as `name(requests)` with a list of `cloned.Request`, it gives a list of
            `Waveform`, one each, the same ones for the same requests.
        clips: folder of recordings, each with its words in a `.txt` of the same name beside it; a clip is a voice.
        answer: name of the clip, without its ending, whose voice answers; it asks nothing.
        batch: most requests at a time.
        licence: of the clips, and of what the model says.
    """

    function: str
    clips: str
    answer: str
    batch: Count = 16
    licence: str = "not said"

    def open(self) -> Speaker:
        from data_pipelines.speakers.cloned import ClonedSpeaker

        return ClonedSpeaker(self)


def drawn(low: float, high: float, *parts: object) -> float:
    """A number from `low` to `high` that depends only on `parts`."""
    return low + (high - low) * stable_id(*parts) / 2**32


def pace(seed: int) -> float:
    """How fast a further attempt speaks, as a share of the voice's own speed: slower words are better understood."""
    return drawn(0.82, 0.97, "pace", seed) if seed else 1.0
