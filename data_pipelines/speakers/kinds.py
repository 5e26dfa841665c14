"""Kinds of speakers that a config names; what one needs is imported when it is opened."""

import dataclasses

from data_pipelines.speakers.speaker import Speaker
from omnidiff_jax.config import Choice, Count


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

        return KokoroSpeaker(self.folder, self.voices, self.answer, self.languages, self.licence)


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

        return ClonedSpeaker(self.function, self.clips, self.answer, self.voices, self.batch, self.licence)
