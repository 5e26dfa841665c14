"""The frozen speech encoder on disk, with the front-end it belongs with."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from omnidiff_jax.media import features
from omnidiff_jax.models.sanm import SpeechEncoder, SpeechEncoderConfig
from omnidiff_jax.speech_frames import padded_frames
from omnidiff_jax.tokenizers import assets
from omnidiff_jax.tokenizers.frontend import FrontendConfig, SpeechFrontend


@dataclasses.dataclass(frozen=True)
class HearingConfig:
    """A speech encoder and the front-end it belongs with.

    Attributes:
        frontend: makes its input.
        encoder: its sizes.
        units: the pieces of text that classes 1, 2, … of the CTC head stand for; none where they are not known.
    """

    frontend: FrontendConfig = FrontendConfig()
    encoder: SpeechEncoderConfig = SpeechEncoderConfig()
    units: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.frontend.fbank.width != self.encoder.features:
            raise ValueError(
                f"encoder.features = {self.encoder.features}, but the front-end's frames have "
                f"{self.frontend.fbank.width} values"
            )
        if self.units and len(self.units) != self.encoder.vocab_size - 1:
            raise ValueError(f"{len(self.units)} units do not fit encoder.vocab_size = {self.encoder.vocab_size}")


def save_speech_encoder(directory: str | os.PathLike[str], config: HearingConfig, params: Any) -> None:
    """Writes config and encoder parameters (float16), CTC head included."""
    assets.save(directory, config, params)


def load_speech_encoder(
    directory: str | os.PathLike[str],
) -> tuple[SpeechEncoderConfig, dict[str, Any], SpeechFrontend]:
    """Reads what `save_speech_encoder` wrote, or a converted SenseVoice whose `am.mvn` lay beside its weights.

    `assets.nano_dir("speech_encoder")` holds the shipped one.

    Returns:
        The encoder's sizes, the parameters of `SpeechEncoder` (numpy, float32), and the front-end before it.

    Raises:
        UserError: see `assets.load`.
    """
    if assets.is_converted(directory):
        encoder, params = assets.load(directory, SpeechEncoderConfig, encoder_shapes)
        shift, scale = features.read_cmvn(Path(directory) / "released_files" / "am.mvn")
        return encoder, params, SpeechFrontend(FrontendConfig(cmvn_shift=shift, cmvn_scale=scale))
    config, params = assets.load(directory, HearingConfig, lambda config: encoder_shapes(config.encoder))
    return config.encoder, params, SpeechFrontend(config.frontend)


def encoder_shapes(config: SpeechEncoderConfig) -> Any:
    """Abstract parameters of an encoder, boxed with their logical axis names."""
    frames = padded_frames(np.zeros((1, 1, config.features), np.float32), np.ones(1, np.int32), config.queries)
    return jax.eval_shape(SpeechEncoder(config).init, jax.random.key(0), frames)["params"]
