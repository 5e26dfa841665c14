"""What the speech encoder hears: waveform -> stacked, normalised filter-bank frames."""

import dataclasses

import numpy as np

from omnidiff_jax.media import features
from omnidiff_jax.media.features import FbankConfig
from omnidiff_jax.records import Waveform


@dataclasses.dataclass(frozen=True)
class FrontendConfig:
    """How a waveform becomes what the speech encoder was trained on; the defaults are SenseVoice's, without its CMVN.

    Attributes:
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
