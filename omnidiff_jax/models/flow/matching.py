"""Conditional flow matching: the training loss and the guided Euler sampler.

Paths are straight, y = (1 - (1 - sigma) t) z + t x1 (optimal-transport flow matching, arXiv 2210.02747, eq. 22), with
cosine-warped times t = 1 - cos(pi u / 2) and classifier-free guidance (CosyVoice, arXiv 2407.05407, section 2.2).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from omnidiff_jax.models.flow.decoder import FlowConfig, FlowDecoder


class FlowNoise(NamedTuple):
    """The randomness of one training example each: z float32 [B, T, M], time and drop uniforms float32 [B]."""

    z: jax.Array
    time: jax.Array
    drop: jax.Array


def draw_noise(key: jax.Array, mel: jax.Array) -> FlowNoise:
    """Draws the randomness of `training_loss` for mel [B, T, M]."""
    z, time, drop = jax.random.split(key, 3)
    batch = mel.shape[:1]
    return FlowNoise(jax.random.normal(z, mel.shape), jax.random.uniform(time, batch), jax.random.uniform(drop, batch))


def times(steps: int) -> np.ndarray:
    """Euler times, float32 [steps + 1], from 0 to 1."""
    uniform = np.linspace(0.0, 1.0, steps + 1, dtype=np.float32)
    return (1.0 - np.cos(uniform * np.float32(0.5 * np.pi))).astype(np.float32)


def path(mel: jax.Array, noise: FlowNoise, sigma_min: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Point and velocity on the straight path from z to `mel` (both [B, T, M]) at the drawn time.

    Returns:
      (y, target velocity, t), the last float32 [B].
    """
    t = 1.0 - jnp.cos(noise.time * 0.5 * jnp.pi)
    at = t[:, None, None]
    y = (1.0 - (1.0 - sigma_min) * at) * noise.z + at * mel
    return y, mel - (1.0 - sigma_min) * noise.z, t


def velocity_loss(
    model: FlowDecoder,
    params: dict,
    mel: jax.Array,
    mask: jax.Array,
    mu: jax.Array,
    speaker: jax.Array,
    condition: jax.Array,
    noise: FlowNoise,
) -> jax.Array:
    """Masked mean squared error of the velocity.

    Args:
      model: decoder.
      params: its parameters.
      mel: normalised target [B, T, M].
      mask: bool [B, T].
      mu: [B, T, M] of `FlowDecoder.means`.
      speaker: [B, M] of `FlowDecoder.speakers`.
      condition: prompt mel, [B, T, M].
      noise: randomness; an example with drop <= config.drop_rate loses mu, speaker and condition together.

    Returns:
      float32 scalar.
    """
    config = model.config
    y, target, t = path(mel, noise, config.sigma_min)
    keep = (noise.drop > config.drop_rate).astype(jnp.float32)[:, None]
    inputs = (mu * keep[:, None], t, speaker * keep, condition * keep[:, None])
    estimate = model.apply({"params": params}, y, mask, *inputs, method=FlowDecoder.velocity)
    squared = jnp.square(estimate - target) * mask[:, :, None]
    return squared.sum() / (mask.sum() * mel.shape[-1])


def training_loss(
    model: FlowDecoder,
    params: dict,
    codes: jax.Array,
    lengths: jax.Array,
    mel: jax.Array,
    mask: jax.Array,
    noise: FlowNoise,
    speaker: jax.Array | None = None,
    condition: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Flow-matching loss of utterances, and how far the means themselves are from the target.

    Args:
      model: decoder.
      params: its parameters.
      codes: int [B, L].
      lengths: int [B].
      mel: log-mel [B, T, M].
      mask: bool [B, T].
      noise: randomness, see `draw_noise`.
      speaker: speaker vectors [B, S], None = zero.
      condition: log-mel of the prompt in its frames [B, T, M], normalised, zero elsewhere; None = no prompt.

    Returns:
      float32 scalars: mean squared error of the velocity (`velocity_loss`), and mean absolute error of mu (a prior loss
      as in Matcha-TTS, arXiv 2309.03199; the released training does without).
    """
    config, variables = model.config, {"params": params}
    mel = normalise(mel, mask, config)
    speaker = jnp.zeros((codes.shape[0], config.speaker_dim)) if speaker is None else speaker
    speaker = model.apply(variables, speaker, method=FlowDecoder.speakers)
    condition = jnp.zeros_like(mel) if condition is None else condition
    mu = model.apply(variables, codes, lengths, mask, method=FlowDecoder.means)
    prior = jnp.sum(jnp.abs(mu - mel) * mask[:, :, None]) / (mask.sum() * mel.shape[-1])
    return velocity_loss(model, params, mel, mask, mu, speaker, condition, noise), prior


def normalise(mel: jax.Array, mask: jax.Array, config: FlowConfig) -> jax.Array:
    """Log-mel [B, T, M] -> what the flow models, zero where padded."""
    return (mel - config.mel_mean) / config.mel_std * mask[:, :, None]


def sample(
    model: FlowDecoder,
    params: dict,
    codes: jax.Array,
    lengths: jax.Array,
    noise: jax.Array,
    mask: jax.Array,
    speaker: jax.Array | None = None,
    condition: jax.Array | None = None,
) -> jax.Array:
    """Decodes codes to log-mel spectrograms by guided Euler integration from t = 0 to 1.

    A prompt's codes stand before the others in `codes` and its mel in `condition`; the caller cuts its frames off.

    Args:
      model: decoder (steps, guidance and temperature are its config's).
      params: its parameters.
      codes: int [B, L].
      lengths: int [B].
      noise: standard normal, [B, T, M]; scaled by the temperature it is the starting point.
      mask: bool [B, T], frames of each utterance (`FlowConfig.frames`).
      speaker: speaker vectors [B, S], None = zero.
      condition: prompt, see `training_loss`.

    Returns:
      float32 [B, T, M] log-mel (`mel_mean` where padded).
    """
    config, variables = model.config, {"params": params}
    speaker = jnp.zeros((codes.shape[0], config.speaker_dim)) if speaker is None else speaker
    speaker = model.apply(variables, speaker, method=FlowDecoder.speakers)
    condition = jnp.zeros(noise.shape, jnp.float32) if condition is None else condition
    mu = model.apply(variables, codes, lengths, mask, method=FlowDecoder.means)
    guided = config.guidance != 0.0

    def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
        # Both halves of the guidance in one call: the second runs without conditions.
        parts = [x, mask, mu, jnp.broadcast_to(t, x.shape[:1]), speaker, condition]
        if guided:
            dropped = [*parts[:2], jnp.zeros_like(mu), parts[3], jnp.zeros_like(speaker), jnp.zeros_like(condition)]
            parts = [jnp.concatenate(pair) for pair in zip(parts, dropped, strict=True)]
        out = model.apply(variables, *parts, method=FlowDecoder.velocity)
        if not guided:
            return out
        conditional, unconditional = jnp.split(out, 2)
        return (1.0 + config.guidance) * conditional - config.guidance * unconditional

    def step(carry: tuple[jax.Array, jax.Array], until: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        x, t = carry
        # The released integrator keeps a running time: each step ends where its rounded sum says.
        delta = until - t
        return (x + delta * velocity(x, t), t + delta), None

    start = (config.temperature * noise.astype(jnp.float32), jnp.float32(0.0))
    (x, _), _ = jax.lax.scan(step, start, jnp.asarray(times(config.steps)[1:]))
    return x * config.mel_std + config.mel_mean
