"""How heard speech is kept in an encoded set: as features, which the encoder takes, or as the sound behind them."""

import dataclasses

import numpy as np

from omnidiff_jax.config import Choice
from omnidiff_jax.media.features import resample
from omnidiff_jax.media.speech import WIDE_BAND_RATE
from omnidiff_jax.records import AUDIO_TAG, EncodedExample, Record, Waveform
from omnidiff_jax.tasks.chat import media_roles

_STEPS = 2**15


@dataclasses.dataclass(frozen=True)
class Heard(Choice, key="", word="features"):
    """Features, float16: 18.7 kB a second of speech (at the released width), read as they are trained on."""

    def before(self, record: Record) -> Record:
        """The record, media in memory, as it is encoded."""
        return record

    def after(self, record: Record, example: EncodedExample) -> EncodedExample:
        """What is kept of the example that `before(record)` became."""
        return example


class Waveforms(Heard, word="waveforms"):
    """16-bit samples at 16 kHz: 32 kB a second. Features are made when they are read, from the very samples kept."""

    def before(self, record: Record) -> Record:
        roles = media_roles(record.messages, AUDIO_TAG)
        audios = [
            wave if role == "assistant" else sound(samples(wave))
            for wave, role in zip(record.audios, roles, strict=True)
        ]
        return dataclasses.replace(record, audios=tuple(audios))

    def after(self, record: Record, example: EncodedExample) -> EncodedExample:
        roles = media_roles(record.messages, AUDIO_TAG)
        kept = [samples(wave) for wave, role in zip(record.audios, roles, strict=True) if role != "assistant"]
        return dataclasses.replace(example, waves=tuple(kept), frames=example.frames[:0])


FEATURES = Heard()


def samples(wave: Waveform) -> np.ndarray:
    """int16 [n] at 16 kHz; those that `sound` made come back as they were."""
    scaled = np.rint(resample(wave.samples, wave.rate, WIDE_BAND_RATE) * _STEPS)
    return np.clip(scaled, -_STEPS, _STEPS - 1).astype("<i2")


def sound(kept: np.ndarray) -> Waveform:
    """The waveform of int16 [n] samples at 16 kHz."""
    return Waveform(kept.astype(np.float32) / _STEPS, WIDE_BAND_RATE)
