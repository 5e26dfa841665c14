"""HiFT vocoder: 80-bin log-mel spectrogram -> waveform."""

from omnidiff_jax.models.hift.generator import Hift, HiftConfig
from omnidiff_jax.models.hift.source import SourceNoise, draw_source_noise

__all__ = ["Hift", "HiftConfig", "SourceNoise", "draw_source_noise"]
