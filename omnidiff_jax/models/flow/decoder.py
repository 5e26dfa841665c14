"""Flow-matching speech decoder: speech codes -> log-mel spectrogram.

Source: CosyVoice `MaskedDiffWithXvec` as released with GLM-4-Voice (arXiv 2407.05407, section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from omnidiff_jax.config import Count, DecayRate, Natural, NonNegative, Positive, Share
from omnidiff_jax.models.flow.encoder import TokenEncoder, TokenEncoderConfig
from omnidiff_jax.models.flow.layers import dense, length_mask
from omnidiff_jax.models.flow.regulator import LengthRegulator, frames_per_code
from omnidiff_jax.models.flow.unet import Estimator, EstimatorConfig


@dataclass(frozen=True)
class FlowConfig:
    """Numbers of the flow decoder; the defaults are the released ones.

    Attributes:
      codes: codebook size.
      code_rate: codes a second.
      sample_rate: Hz of the audio the mel spectrogram describes.
      hop: samples between mel frames.
      mels: M.
      speaker_dim: width of a speaker vector.
      code_width: width of a code's vector; None = that of the encoder.
      encoder: token encoder.
      regulator_layers: convolution blocks of the length regulator.
      estimator: velocity estimator.
      padding: "masked": padded frames have no influence, a batch equals its rows alone; "released": they enter norms
        and attention (as +0 beside the valid pairs' +1) as in the released code.
      mel_mean, mel_std: the flow works on (log-mel - mean) / std.
      sigma_min: noise left at t = 1.
      drop_rate: probability of training without conditions.
      guidance: w in v = (1 + w) v_cond - w v_uncond.
      steps: Euler steps.
      temperature: standard deviation of the noise that sampling starts from; below 1, a small estimator, which cannot
        take all of the noise out again, gives a clean mean instead.
      dtype: compute dtype; parameters, norms and the integration are float32.
    """

    codes: Count = 16384
    code_rate: Positive = 12.5
    sample_rate: Count = 22050
    hop: Count = 256
    mels: Count = 80
    speaker_dim: Count = 192
    code_width: Count | None = None
    encoder: TokenEncoderConfig = field(default_factory=TokenEncoderConfig)
    regulator_layers: Natural = 4
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)
    padding: Literal["masked", "released"] = "masked"
    mel_mean: float = 0.0
    mel_std: Positive = 1.0
    sigma_min: DecayRate = 1e-6
    drop_rate: Share = 0.2
    guidance: NonNegative = 0.7
    steps: Count = 10
    temperature: NonNegative = 1.0
    dtype: str = "float32"

    def frames(self, codes: int) -> int:
        """Mel frames of an utterance of `codes` codes (whole frames only)."""
        ratio = frames_per_code(self.code_rate, self.sample_rate, self.hop)
        return codes * ratio.numerator // ratio.denominator


class FlowDecoder(nn.Module):
    """Encoder, length regulator and velocity estimator with shared parameters."""

    config: FlowConfig

    def setup(self) -> None:
        config, released = self.config, self.config.padding == "released"
        self.embedding = nn.Embed(
            config.codes,
            config.code_width or config.encoder.width,
            embedding_init=nn.with_logical_partitioning(nn.initializers.normal(1.0), ("codebook", "embed")),
            dtype=config.dtype,
        )
        self.encoder = TokenEncoder(config.encoder, config.dtype)
        self.projection = dense(config.mels, ("embed", None), dtype=config.dtype)
        self.speaker_projection = dense(config.mels, ("embed", None), dtype=config.dtype)
        self.regulator = LengthRegulator(config.regulator_layers, released, config.dtype)
        self.estimator = Estimator(config.estimator, config.mels, released, config.dtype)

    def means(self, codes: jax.Array, lengths: jax.Array, mask: jax.Array) -> jax.Array:
        """Frame-rate condition mu.

        Args:
          codes: int [B, L], any value where padded.
          lengths: int [B], codes per utterance.
          mask: bool [B, T], frames per utterance.

        Returns:
          [B, T, M], zero where padded.
        """
        valid = length_mask(lengths, codes.shape[1])
        embedded = self.embedding(jnp.clip(codes, 0, self.config.codes - 1)) * valid[:, :, None]
        vectors = self.projection(self.encoder(embedded, lengths))
        return self.regulator(vectors, lengths, mask)

    def speakers(self, speaker: jax.Array) -> jax.Array:
        """Speaker vectors [B, S] -> [B, M]; they are scaled to length 1, and the zero vector stays zero."""
        norm = jnp.linalg.norm(speaker, axis=-1, keepdims=True)
        return self.speaker_projection(speaker / jnp.maximum(norm, 1e-12))

    def velocity(
        self, x: jax.Array, mask: jax.Array, mu: jax.Array, t: jax.Array, speaker: jax.Array, condition: jax.Array
    ) -> jax.Array:
        """See `Estimator`; here `speaker` is the projected one, [B, M]."""
        return self.estimator(x, mask, mu, t, speaker, condition)

    def __call__(self, codes: jax.Array, lengths: jax.Array, x: jax.Array, mask: jax.Array, t: jax.Array) -> jax.Array:
        """Velocity at (x, t) for codes without speaker or prompt; arguments as in `means` and `velocity`."""
        speaker = self.speakers(jnp.zeros((codes.shape[0], self.config.speaker_dim)))
        return self.velocity(x, mask, self.means(codes, lengths, mask), t, speaker, jnp.zeros_like(x))
