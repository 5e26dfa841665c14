"""Tokenizers and the speech encoder of a config: the shipped nano ones by name, or folders in the same form."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from omnidiff_jax.data.encode import Codecs
from omnidiff_jax.evaluation.generate import Voices
from omnidiff_jax.models.sanm import SpeechEncoderConfig
from omnidiff_jax.records import Waveform
from omnidiff_jax.tasks.chat import ChatLayout
from omnidiff_jax.tokenizers import assets
from omnidiff_jax.tokenizers import text as text_tokenizers
from omnidiff_jax.tokenizers.image import ImageTokenizer
from omnidiff_jax.tokenizers.speech import SpeechDecoder, SpeechTokenizer
from omnidiff_jax.tokenizers.speech_features import load_speech_encoder
from omnidiff_jax.vocabulary import RELEASED_SPECIALS, Vocabulary


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the model must know of the tokenizers. The defaults are the released ones, without their weights.

    Attributes:
        vocabulary: the ids that follow from the tokenizers.
        speech_encoder: sizes of the encoder of what is heard; `speech_encoder_params` are its parameters, None where
            the program is only compiled.
    """

    vocabulary: Vocabulary = dataclasses.field(default_factory=Vocabulary.released)
    speech_encoder: SpeechEncoderConfig = SpeechEncoderConfig()
    speech_encoder_params: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizers(Sizes):
    """Attributes:
    codecs: media to codes.
    voices: codes to media.
    image_grid: codes of a drawn image, (rows, columns).
    fingerprint: of the vocabulary and every file that encoding depends on; encoded sets carry it.
    """

    codecs: Codecs
    voices: Voices
    image_grid: tuple[int, int]
    fingerprint: str


def tokenizer_folder(value: str, name: str) -> Path:
    """Where a tokenizer lies: "nano" is the shipped one, anything else a path."""
    return assets.nano_dir(name) if value == "nano" else Path(value)


def load_tokenizers(config: ConfigDict) -> Tokenizers:
    """Opens what `config.tokenizers` names.

    Raises:
        UserError: a folder is missing or does not hold what it should.
    """
    names = config.tokenizers
    encoders = [
        tokenizer_folder(names.text, "text"),
        tokenizer_folder(names.image, "image_tokenizer"),
        tokenizer_folder(names.speech_tokenizer, "speech_tokenizer"),
        tokenizer_folder(names.speech_encoder, "speech_encoder"),
    ]
    text = text_tokenizers.load(encoders[0])
    image, speech = ImageTokenizer.load(encoders[1]), SpeechTokenizer.load(encoders[2])
    encoder, params, frontend = load_speech_encoder(encoders[3])
    voice = SpeechDecoder.load(tokenizer_folder(names.speech_decoder, "speech_decoder"))
    if isinstance(text, text_tokenizers.ByteLevelBPETokenizer):
        vocabulary = Vocabulary(text.size, RELEASED_SPECIALS, speech.codebook_size, image.config.codebook_size)
        text.check(vocabulary)
    else:
        vocabulary = Vocabulary.compact(text.size, speech.codebook_size, image.config.codebook_size)
    size = names.assistant_image_size
    grid = image.grid(size, size)

    def draw(codes: np.ndarray) -> np.ndarray:
        return image.decode(codes, grid)

    def speak(codes: list[np.ndarray]) -> list[Waveform]:
        return voice.decode(codes)

    codecs = Codecs(
        layout=ChatLayout(vocabulary, text, speech=encoder.layout),
        images=image.encode,
        speech=speech.encode,
        features=frontend,
        user_image_size=names.user_image_size,
        assistant_image_size=size,
    )
    return Tokenizers(
        vocabulary,
        encoder,
        params,
        codecs=codecs,
        voices=Voices(draw, speak),
        image_grid=grid,
        fingerprint=f"{vocabulary.fingerprint}:{assets.fingerprint(encoders)}",
    )


def config_sizes(config: ConfigDict) -> Sizes:
    """Sizes alone, for programs that are compiled and not run: released ones where the folders are not there yet."""
    names = config.tokenizers
    for name in ("text", "image", "speech_tokenizer", "speech_decoder", "speech_encoder"):
        if names[name] != "nano" and not Path(names[name]).exists():
            return Sizes()
    return load_tokenizers(config)
