"""The training programs of the speech tokenizer and decoder over the Scenes world's answering voice."""

import dataclasses

import numpy as np

from data_pipelines.scenes.listener import listen
from data_pipelines.scenes.tasks import make_record
from omnidiff_jax.codecs.tokenizers import tokenizer_folder
from omnidiff_jax.records import Waveform
from omnidiff_jax.tokenizers.speech import SpeechTokenizer
from omnidiff_jax.training.config import TrainingConfig
from omnidiff_jax.training.run import Run
from omnidiff_jax.training.tokenizers.speech_codec import SpeechCodecProgram, SpeechCodecTraining, Utterances
from omnidiff_jax.training.tokenizers.speech_decoder import SpeechDecoderProgram, SpeechDecoderTraining
from omnidiff_jax.words import edit_distance, normalize


def answers(split: str, joined: int = 1) -> Utterances:
    """Index -> what the answering voice says in text-to-speech records: `joined` of them, one after the other."""

    def utterance(index: int) -> tuple[Waveform, str]:
        records = [make_record("tts", joined * index + i, split) for i in range(joined)]
        samples = np.concatenate([record.audios[0].samples for record in records])
        return Waveform(samples, records[0].audios[0].rate), " ".join(record.meta["spoken"] for record in records)

    return utterance


def word_errors(speech: Waveform, text: str) -> tuple[int, int]:
    """Words that pocketsphinx gets wrong in speech, and words of its text."""
    words = normalize(text).split()
    return edit_distance(words, normalize(listen(speech)).split()), len(words)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechTokenizerRun(TrainingConfig):
    """The config of `experiments/configs/tokenizers/speech_tokenizer.py`.

    Attributes:
        training: what it minimises; batch size and dtype are the run's.
    """

    training: SpeechCodecTraining = SpeechCodecTraining()

    def open(self) -> Run:
        """The run; validation is on the test split."""
        model = dataclasses.replace(self.training.model, dtype=self.dtype)
        training = dataclasses.replace(self.training, model=model, batch_size=self.batch_size)
        return Run(self, SpeechCodecProgram(training, answers("train"), answers("test")), self.make_mesh())


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechDecoderRun(TrainingConfig):
    """The config of `experiments/configs/tokenizers/speech_decoder.py`.

    Attributes:
        speech_tokenizer: "nano" or a folder: whose codes are learned.
        training: what it minimises; batch size and dtype are the run's.
    """

    speech_tokenizer: str = "nano"
    training: SpeechDecoderTraining = SpeechDecoderTraining()

    def open(self) -> Run:
        """The run; validation is on the test split."""
        model = self.training.model
        model = dataclasses.replace(model, flow=dataclasses.replace(model.flow, dtype=self.dtype))
        training = dataclasses.replace(self.training, model=model, batch_size=self.batch_size)
        tokenizer = SpeechTokenizer.load(tokenizer_folder(self.speech_tokenizer, "speech_tokenizer"))
        # Single answers would leave half of the rows of a batch empty.
        program = SpeechDecoderProgram(training, tokenizer, answers("train", joined=3), answers("test"), word_errors)
        return Run(self, program, self.make_mesh())
