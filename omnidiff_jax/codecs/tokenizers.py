"""The tokenizers and the speech encoder of a model: the shipped nano ones by name, or folders in the same form."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from omnidiff_jax.codecs.media import Codecs
from omnidiff_jax.config import Count, free
from omnidiff_jax.fetching import fetch_ahead, local_copy
from omnidiff_jax.models.sanm import SpeechEncoderConfig
from omnidiff_jax.records import Waveform
from omnidiff_jax.tasks.chat import ChatLayout
from omnidiff_jax.tokenizers import assets
from omnidiff_jax.tokenizers import text as text_tokenizers
from omnidiff_jax.tokenizers.image import BATCH_SIZES, ImageTokenizer
from omnidiff_jax.tokenizers.speech import ENCODER_ROWS, SpeechDecoder, SpeechTokenizer
from omnidiff_jax.tokenizers.speech_encoder import load_speech_encoder
from omnidiff_jax.vocabulary import RELEASED_SPECIALS, Vocabulary

# Those whose files ids and frames depend on; the decoder only turns codes into sound.
ENCODING = ("text", "image", "speech_tokenizer", "speech_encoder")


@dataclasses.dataclass(frozen=True)
class TokenizersConfig:
    """Where a model's tokenizers lie: "nano" is the shipped one, anything else a folder.

    Attributes:
        text: SentencePiece or byte-level BPE.
        image: the image tokenizer.
        speech_encoder: of what is heard.
        speech_tokenizer: speech to codes.
        speech_decoder: codes to speech.
        user_image_size: side in pixels of an image that is looked at.
        assistant_image_size: side in pixels of an image that is drawn.
        fingerprint: of what was opened, in the configs that checkpoints hold: folders may move, their contents may not
            change.
    """

    text: str = free("nano")
    image: str = free("nano")
    speech_encoder: str = free("nano")
    speech_tokenizer: str = free("nano")
    speech_decoder: str = free("nano")
    user_image_size: Count = 512
    assistant_image_size: Count = 256
    fingerprint: str = ""

    def folder(self, name: str) -> Path:
        """Where the tokenizer of the field `name` lies."""
        return tokenizer_folder(getattr(self, name), {"image": "image_tokenizer"}.get(name, name))

    @property
    def missing(self) -> bool:
        """Whether a folder is not there yet."""
        return not all(self.folder(name).exists() for name in (*ENCODING, "speech_decoder"))


def tokenizer_folder(value: str, name: str) -> Path:
    """Where a tokenizer lies: "nano" is the shipped one called `name`, anything else a path."""
    return assets.nano_dir(name) if value == "nano" else local_copy(value)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the model must know of the tokenizers. The defaults are the released ones, without their weights.

    Attributes:
        vocabulary: the ids that follow from the tokenizers.
        speech_encoder: sizes of the encoder of what is heard.
        speech_encoder_params: its parameters; None where the program is only compiled.
    """

    vocabulary: Vocabulary = dataclasses.field(default_factory=Vocabulary.released)
    speech_encoder: SpeechEncoderConfig = SpeechEncoderConfig()
    speech_encoder_params: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizers(Sizes):
    """A model's tokenizers, opened.

    Attributes:
        codecs: media to codes and back.
        fingerprint: of the vocabulary and every file that encoding depends on; encoded sets and checkpoints carry it.
    """

    codecs: Codecs
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Batches:
    """Rows of the batches that media are encoded in, one of which is compiled for each size of an image and each bucket
    of an utterance.

    The defaults serve one medium as well as many. Of a single number every batch is filled up to it: what a medium
    becomes then cannot depend on how many came with it.
    """

    images: tuple[int, ...] = BATCH_SIZES
    utterances: tuple[int, ...] = ENCODER_ROWS


FIXED = Batches((16,), (8,))


def open_tokenizers(config: TokenizersConfig, batches: Batches = Batches()) -> Tokenizers:
    """Opens what a config names; what only speaks is opened when something is first to be said.

    Raises:
        UserError: a folder is missing or does not hold what it should.
    """
    for name in ENCODING:
        fetch_ahead(getattr(config, name))
    text = text_tokenizers.load(config.folder("text"))
    image = ImageTokenizer.load(config.folder("image"), batches.images)
    speech = SpeechTokenizer.load(config.folder("speech_tokenizer"), batches.utterances)
    encoder, params, frontend = load_speech_encoder(config.folder("speech_encoder"))
    if isinstance(text, text_tokenizers.ByteLevelBPETokenizer):
        vocabulary = Vocabulary(text.size, RELEASED_SPECIALS, speech.codebook_size, image.config.codebook_size)
        text.check(vocabulary)
    else:
        vocabulary = Vocabulary.compact(text.size, speech.codebook_size, image.config.codebook_size)
    size = config.assistant_image_size
    grid = image.grid(size, size)

    @functools.cache
    def voice() -> SpeechDecoder:
        return SpeechDecoder.load(config.folder("speech_decoder"))

    def draw(codes: np.ndarray) -> np.ndarray:
        return image.decode(codes, grid)

    def speak(codes: list[np.ndarray]) -> list[Waveform]:
        return voice().decode(codes)

    codecs = Codecs(
        layout=ChatLayout(vocabulary, text, speech=encoder.layout),
        images=image.encode,
        speech=speech.encode,
        features=frontend,
        draw=draw,
        speak=speak,
        image_grid=grid,
        user_image_size=config.user_image_size,
        assistant_image_size=size,
    )
    folders = [config.folder(name) for name in ENCODING]
    return Tokenizers(
        vocabulary,
        encoder,
        params,
        codecs=codecs,
        fingerprint=f"{vocabulary.fingerprint}:{assets.fingerprint(folders)}",
    )


def sizes(config: TokenizersConfig) -> Sizes:
    """Sizes alone, for programs that are compiled and not run: released ones where the folders are not there yet."""
    return Sizes() if config.missing else open_tokenizers(config)
