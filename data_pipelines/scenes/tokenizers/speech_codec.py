"""The training programs of the speech tokenizer, decoder and vocoder over the Scenes world's answering voice."""

import dataclasses

from data_pipelines.scenes.listener import listen
from data_pipelines.scenes.tasks import make_record
from omnidiff_jax.records import Waveform
from omnidiff_jax.training.tokenizers.runs import CodecRun, DecoderRun, VocoderRun
from omnidiff_jax.training.tokenizers.spoken import Spoken, Utterances
from omnidiff_jax.words import edit_distance, normalize


def answers(split: str) -> Utterances:
    """Index -> what the answering voice says in a text-to-speech record."""

    def utterance(index: int) -> tuple[Waveform, str]:
        record = make_record("tts", index, split)
        return record.audios[0], record.meta["spoken"]

    return utterance


def word_errors(speech: Waveform, text: str) -> tuple[int, int]:
    """Words that pocketsphinx gets wrong in speech, and words of its text."""
    words = normalize(text).split()
    return edit_distance(words, normalize(listen(speech)).split()), len(words)


def answering_voice() -> Spoken:
    """What the answering voice says; the test split is held out."""
    return Spoken(answers("train"), answers("test"), word_errors)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechTokenizerRun(CodecRun):
    """The config of `experiments/configs/tokenizers/speech_tokenizer.py`."""

    def spoken(self) -> Spoken:
        return answering_voice()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechDecoderRun(DecoderRun):
    """The config of `experiments/configs/tokenizers/speech_decoder.py`."""

    def spoken(self) -> Spoken:
        return answering_voice()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesVocoderRun(VocoderRun):
    """The config of `experiments/configs/tokenizers/vocoder.py`."""

    def spoken(self) -> Spoken:
        return answering_voice()
