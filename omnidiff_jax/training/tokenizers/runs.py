"""Runs that train the programs of speech, whatever world speaks: a world's subclass says what is spoken in it."""

import abc
import dataclasses

from omnidiff_jax.codecs.tokenizers import tokenizer_folder
from omnidiff_jax.config import Count
from omnidiff_jax.errors import UserError
from omnidiff_jax.tokenizers.speech import SpeechDecoder, SpeechTokenizer
from omnidiff_jax.tokenizers.text import TextTokenizer
from omnidiff_jax.training.config import TrainingConfig
from omnidiff_jax.training.run import Run
from omnidiff_jax.training.tokenizers.ctc import CtcProgram, CtcTraining
from omnidiff_jax.training.tokenizers.speech_codec import SpeechCodecProgram, SpeechCodecTraining
from omnidiff_jax.training.tokenizers.speech_decoder import SpeechDecoderProgram, SpeechDecoderTraining
from omnidiff_jax.training.tokenizers.spoken import Spoken, joined
from omnidiff_jax.training.tokenizers.vocoder import VocoderProgram, VocoderTraining
from omnidiff_jax.words import word_error_rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpokenRun(TrainingConfig, abc.ABC):
    """A run that learns from speech."""

    @abc.abstractmethod
    def spoken(self) -> Spoken:
        """Speech of the world: in voices that ask for `HearingRun`, in the one that answers for the others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HearingRun(SpokenRun):
    """Trains the speech encoder.

    Attributes:
        training: what it minimises; the batch size is the run's, the classes of the CTC head follow from the pieces.
    """

    training: CtcTraining

    @abc.abstractmethod
    def text(self) -> TextTokenizer:
        """The pieces that CTC predicts."""

    def open(self) -> Run:
        """The run; validation is on what is held out."""
        if self.accumulate != 1:
            raise UserError(f"config.accumulate = {self.accumulate}; a packed batch of speech cannot be divided, use 1")
        text, spoken = self.text(), self.spoken()
        encoder = dataclasses.replace(self.training.encoder, vocab_size=text.size + 1)
        training = dataclasses.replace(self.training, encoder=encoder, batch_size=self.batch_size)
        program = CtcProgram(training, spoken.training, spoken.held_out, text, word_error_rate)
        return Run(self, program, self.make_mesh())


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecRun(SpokenRun):
    """Trains the speech tokenizer.

    Attributes:
        training: what it minimises; batch size and dtype are the run's.
    """

    training: SpeechCodecTraining = SpeechCodecTraining()

    def open(self) -> Run:
        """The run; validation is on what is held out."""
        model = dataclasses.replace(self.training.model, dtype=self.dtype)
        training = dataclasses.replace(self.training, model=model, batch_size=self.batch_size)
        spoken = self.spoken()
        return Run(self, SpeechCodecProgram(training, spoken.training, spoken.held_out), self.make_mesh())


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderRun(SpokenRun):
    """Trains the flow decoder from codes to log-mel.

    Attributes:
        speech_tokenizer: "nano" or a folder: whose codes are learned.
        joined: utterances of a training row; single ones that are short would leave half of a batch empty.
        training: what it minimises; batch size and dtype are the run's.
    """

    speech_tokenizer: str = "nano"
    joined: Count = 3
    training: SpeechDecoderTraining = SpeechDecoderTraining()

    def open(self) -> Run:
        """The run; validation is on what is held out."""
        model = self.training.model
        model = dataclasses.replace(model, flow=dataclasses.replace(model.flow, dtype=self.dtype))
        training = dataclasses.replace(self.training, model=model, batch_size=self.batch_size)
        tokenizer = SpeechTokenizer.load(tokenizer_folder(self.speech_tokenizer, "speech_tokenizer"))
        spoken = self.spoken()
        learned = joined(spoken.training, self.joined)
        program = SpeechDecoderProgram(training, tokenizer, learned, spoken.held_out, spoken.judge)
        return Run(self, program, self.make_mesh())


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocoderRun(SpokenRun):
    """Trains the HiFT vocoder.

    Attributes:
        speech_decoder: "nano" or a folder: whose spectrograms are made audible, and which is exported with it.
        training: what it minimises; batch size and dtype are the run's.
    """

    speech_decoder: str = "nano"
    training: VocoderTraining = VocoderTraining()

    def open(self) -> Run:
        """The run; validation is on what is held out, beside Griffin-Lim."""
        model = dataclasses.replace(self.training.model, dtype=self.dtype)
        training = dataclasses.replace(self.training, model=model, batch_size=self.batch_size)
        decoder = SpeechDecoder.load(tokenizer_folder(self.speech_decoder, "speech_decoder"))
        return Run(self, VocoderProgram(training, decoder, self.spoken()), self.make_mesh())
