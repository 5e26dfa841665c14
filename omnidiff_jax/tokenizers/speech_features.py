"""What the model hears: waveform -> normalised frames; and the frozen speech encoder on disk, with its front-end."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from omnidiff_jax.media import features
from omnidiff_jax.media.features import FbankConfig
from omnidiff_jax.models.sanm import SpeechEncoder, SpeechEncoderConfig
from omnidiff_jax.records import Waveform
from omnidiff_jax.speech_frames import padded_frames
from omnidiff_jax.tokenizers import assets


@dataclasses.dataclass(frozen=True)
class FrontendConfig:
    """Attributes:
    fbank: the filter bank and how its frames are stacked.
    cmvn_shift, cmvn_scale: (feature + shift) * scale; one value for each mel bin or for each stacked feature,
        or none at all. `features.read_cmvn` reads a released file.
    """

    fbank: FbankConfig = FbankConfig()
    cmvn_shift: tuple[float, ...] = ()
    cmvn_scale: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("cmvn_shift", "cmvn_scale"):
            if len(getattr(self, name)) not in (0, self.fbank.num_mels, self.fbank.width):
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} values, not {self.fbank.num_mels} (one for each mel bin) "
                    f"or {self.fbank.width} (one for each stacked feature)"
                )
        if len(self.cmvn_shift) != len(self.cmvn_scale):
            raise ValueError(f"cmvn_shift has {len(self.cmvn_shift)} values, cmvn_scale {len(self.cmvn_scale)}")

    @property
    def normaliser(self) -> tuple[np.ndarray, np.ndarray]:
        """Shift and scale of stacked features, float32 [fbank.width] each."""
        if not self.cmvn_shift:
            return np.zeros(self.fbank.width, np.float32), np.ones(self.fbank.width, np.float32)
        repeats = self.fbank.width // len(self.cmvn_shift)
        shift, scale = (np.tile(np.asarray(v, np.float32), repeats) for v in (self.cmvn_shift, self.cmvn_scale))
        return shift, scale


class SpeechFrontend:
    """Waveform -> stacked, normalised filter-bank frames, as the speech encoder was trained on them."""

    def __init__(self, config: FrontendConfig = FrontendConfig()):
        self.config = config
        self._shift, self._scale = config.normaliser

    def __call__(self, waveform: Waveform) -> np.ndarray:
        """Features, float32 [n, fbank.width], one row every 60 ms.

        Args:
            waveform: at any rate, at least two samples after resampling.

        Raises:
            UserError: the waveform is too short.
        """
        fbank = self.config.fbank
        samples = features.resample(waveform.samples, waveform.rate, fbank.rate)
        stacked = features.stack_frames(features.fbank(samples, fbank), fbank)
        return features.normalise(stacked, self._shift, self._scale)

    def count(self, waveform: Waveform) -> int:
        """Rows that a call would give, from the length alone."""
        fbank = self.config.fbank
        samples = -(-len(waveform.samples) * fbank.rate // waveform.rate)
        return features.num_stacked(features.num_frames(samples, fbank), fbank)


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
