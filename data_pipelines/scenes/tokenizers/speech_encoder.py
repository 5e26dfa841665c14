"""The speech encoder's training program: CTC over what is heard in the Scenes world."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.scenes.language import KNOWLEDGE, caption, draw_question, heard_words
from data_pipelines.scenes.scene import MAX_INDEX, generator, sample_scene
from data_pipelines.scenes.speech import heard_voice, say
from data_pipelines.scenes.tasks import SHORT_COUNTS, SPOKEN_COUNTS
from data_pipelines.sdvi.records import VOICES
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import Waveform
from omnidiff_jax.tokenizers.text import TextTokenizer
from omnidiff_jax.training.tokenizers.runs import HearingRun
from omnidiff_jax.training.tokenizers.spoken import Spoken, Utterances
from omnidiff_jax.words import normalize

# Every tenth voice is kept for validation, whose sentences are of the test split too.
HELD_OUT_VOICES = tuple(range(9, VOICES, 10))
TRAINING_VOICES = tuple(voice for voice in range(VOICES) if voice not in HELD_OUT_VOICES)


@dataclasses.dataclass(frozen=True)
class WordUnits:
    """Whole words as the pieces of text, a `TextTokenizer` for a closed vocabulary."""

    words: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """Ids of the words of `text`, punctuation left out.

        Raises:
            UserError: a word that is not in the vocabulary.
        """
        try:
            return [self.words.index(word) for word in normalize(text).split()]
        except ValueError as error:
            raise UserError(f"{text!r} has a word outside the {self.size} heard words ({error})") from error

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.words[i] for i in ids)

    def untaught(self, text: str) -> list[str]:
        """Characters of no word."""
        known = set(" ".join(self.words))
        return [character for character in dict.fromkeys(normalize(text)) if character not in known]


def heard_text(rng: np.random.Generator, split: str) -> str:
    """What a user may say, of every kind that the tasks have: captions, questions, descriptions with a question."""
    kind = rng.random()
    if kind < 0.1:
        return KNOWLEDGE[rng.integers(len(KNOWLEDGE))].text
    short = kind < 0.3
    scene = sample_scene(int(rng.integers(MAX_INDEX)), split, SHORT_COUNTS if short else SPOKEN_COUNTS)
    question = draw_question(scene, rng).text
    if kind >= 0.5:
        return caption(scene, background=bool(rng.random() < 0.6))
    return f"{caption(scene, background=False)}. {question}" if short else question


def scenes_utterances(split: str, voices: Sequence[int]) -> Utterances:
    """Utterances of a split's sentences in some of the heard voices."""

    def utterance(index: int) -> tuple[Waveform, str]:
        rng = generator("speech encoder", split, index)
        text = heard_text(rng, split)
        return say(text, heard_voice(voices[int(rng.integers(len(voices)))])), text

    return utterance


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechEncoderRun(HearingRun):
    """The config of `experiments/configs/tokenizers/speech_encoder.py`."""

    def text(self) -> TextTokenizer:
        return WordUnits(heard_words())

    def spoken(self) -> Spoken:
        """Sentences of the test split in voices never trained on are held out."""
        return Spoken(scenes_utterances("train", TRAINING_VOICES), scenes_utterances("test", HELD_OUT_VOICES))
