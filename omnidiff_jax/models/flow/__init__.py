"""Flow-matching speech decoder: speech codes -> 80-bin log-mel spectrogram."""

from omnidiff_jax.models.flow.decoder import FlowConfig, FlowDecoder
from omnidiff_jax.models.flow.encoder import TokenEncoderConfig
from omnidiff_jax.models.flow.unet import EstimatorConfig

__all__ = ["EstimatorConfig", "FlowConfig", "FlowDecoder", "TokenEncoderConfig"]
