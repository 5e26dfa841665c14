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
from omnidiff_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Tokenizers:
    """Attributes:
    vocabulary: the ids that follow from the tokenizers.
    codecs: media to codes.
    voices: codes to media.
    image_grid: codes of a drawn image, (rows, columns).
    speech_encoder: sizes of the encoder of what is heard; `speech_encoder_params` are its parameters.
    fingerprint: of the vocabulary and every file that encoding depends on; encoded sets carry it.
    """

    vocabulary: Vocabulary
    codecs: Codecs
    voices: Voices
    image_grid: tuple[int, int]
    speech_encoder: SpeechEncoderConfig
    speech_encoder_params: Any
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
    vocabulary = Vocabulary.compact(text.size, speech.codebook_size, image.config.codebook_size)
    size = names.assistant_image_size
    grid = image.grid(size, size)

    def draw(codes: np.ndarray) -> np.ndarray:
        return image.decode(codes, grid)

    def speak(codes: list[np.ndarray]) -> list[Waveform]:
        return voice.decode(codes)

    codecs = Codecs(
        layout=ChatLayout(vocabulary, text),
        images=image.encode,
        speech=speech.encode,
        features=frontend,
        user_image_size=names.user_image_size,
        assistant_image_size=size,
    )
    fingerprint = f"{vocabulary.fingerprint}:{assets.fingerprint(encoders)}"
    return Tokenizers(vocabulary, codecs, Voices(draw, speak), grid, encoder, params, fingerprint)
