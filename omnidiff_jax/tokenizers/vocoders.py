"""From log-mel spectrograms to waveforms: Griffin-Lim, which needs no training, or the HiFT network."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from omnidiff_jax.media.features import MelConfig, griffin_lim
from omnidiff_jax.models.hift import Hift, HiftConfig, SourceNoise
from omnidiff_jax.records import Waveform
from omnidiff_jax.tokenizers.buckets import Buckets


class Vocoder(Protocol):
    """Log-mel spectrograms float32 [T, M] -> waveforms of T * hop samples; each is a function of its mel alone."""

    def __call__(self, mels: Sequence[np.ndarray]) -> list[Waveform]: ...


@dataclasses.dataclass(frozen=True)
class GriffinLim:
    """Iterative phase reconstruction of the mel's least-squares spectrum.

    Attributes:
        mel: what the spectrograms are.
        iterations: more sound better and take longer.
    """

    mel: MelConfig
    iterations: int

    def __call__(self, mels: Sequence[np.ndarray]) -> list[Waveform]:
        return [Waveform(griffin_lim(mel, self.mel, self.iterations), self.mel.rate) for mel in mels]


class HiftVocoder:
    """The HiFT network on fixed batch shapes; the source's noise is the same for every utterance."""

    def __init__(self, config: HiftConfig, params: Any, buckets: Buckets, seed: int):
        self._config, self._params, self._buckets, self._seed = config, params, buckets, seed

    def __call__(self, mels: Sequence[np.ndarray]) -> list[Waveform]:
        waves: list[Waveform] = [Waveform(np.zeros(0, np.float32), self._config.sample_rate)] * len(mels)
        for group in self._buckets.groups([len(mel) for mel in mels]):
            batch = group.pad([mels[i] for i in group.members])
            noise = self.noise(group.rows, group.length)
            out = np.asarray(_hift(self._config, self._params, batch, group.lengths, noise))
            for row, i in enumerate(group.members):
                samples = out[row, : len(mels[i]) * self._config.frame_samples]
                waves[i] = Waveform(samples, self._config.sample_rate)
        return waves

    def noise(self, rows: int, frames: int) -> SourceNoise:
        """The source's noise for `rows` utterances of `frames` frames; a longer one begins like a shorter one."""
        generator = np.random.default_rng(self._seed)
        width = self._config.harmonics + 1
        phase = generator.uniform(-np.pi, np.pi, width).astype(np.float32)
        noise = generator.standard_normal((frames * self._config.frame_samples, width), np.float32)
        return SourceNoise(*(jnp.broadcast_to(part, (rows, *part.shape)) for part in (phase, noise)))


@functools.partial(jax.jit, static_argnums=0)
def _hift(config: HiftConfig, params: Any, mel: jax.Array, lengths: jax.Array, noise: SourceNoise) -> jax.Array:
    return Hift(config).apply({"params": params}, mel, lengths, noise)[0]
