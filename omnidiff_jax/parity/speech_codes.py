"""Fixtures of the speech tokenizer: audio to codes, in the released arrangement and in others."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np

from omnidiff_jax.conversion import released, whisper_vq
from omnidiff_jax.conversion.components import whisper_vq_params
from omnidiff_jax.models import whisper_vq as W
from omnidiff_jax.parity.check import Check, unsupported
from omnidiff_jax.parity.fixtures import Fixture, FixtureSet


def whisper_vq_encoder_main(fixture: Fixture, check: Check, _: FixtureSet) -> None:
    """From waveforms."""
    config = released.whisper_vq(fixture.setting("config"))
    extractor = fixture.meta.get("feature_extractor", {})
    known = {"hop_length": 160, "n_fft": 400, "sampling_rate": 16000, "pad_to_multiple_of": config.samples_per_code}
    for key, value in known.items():
        if extractor.get(key, value) != value:
            raise unsupported(f"a feature extractor with {key} = {extractor[key]}")
    names = sorted((n for n in fixture.arrays if re.fullmatch(r"in/waveform_\d+", n)), key=lambda n: int(n[12:]))
    mels, valid = W.log_mel_batch([fixture[name] for name in names], config)
    check.absolute("out/input_features", mels.transpose(0, 2, 1), 1e-4)
    check.exact("out/attention_mask", valid)
    _masks(check, config, valid)
    _encode(fixture, check, config, mels, valid)


def whisper_vq_encoder_var(fixture: Fixture, check: Check, _: FixtureSet) -> None:
    """From recorded log-mel spectrograms."""
    mels = fixture["in/input_features"].transpose(0, 2, 1)
    _encode(fixture, check, released.whisper_vq(fixture.setting("config")), mels, fixture["in/attention_mask"] != 0)


def _masks(check: Check, config: W.WhisperVQConfig, valid: np.ndarray) -> None:
    """What frames see before the pooling (50 Hz) and after it."""
    if config.block_size is None:
        return
    pooled = config.block_size // config.pooling_kernel
    for level, step, block in ((0, 2, config.block_size), (1, 2 * config.pooling_kernel, pooled)):
        check.exact(f"out/block_mask_{level}_allowed", W.visible_frames(jnp.asarray(valid[:, ::step]), block))
        check.exact(f"out/block_mask_{level}_size", block)


def _encode(fixture: Fixture, check: Check, config: W.WhisperVQConfig, mels: np.ndarray, valid: np.ndarray) -> None:
    model = W.WhisperVQEncoder(config)
    tensors = fixture.tensors
    # The moving averages of the codebook are kept beside the parameters.
    averages = {name: tensors[name] for name in ("ema_count", "ema_weight") if name in tensors}
    params = check.converted(whisper_vq.rules(config), tensors, {**whisper_vq_params(config), **averages})
    out = jax.jit(model.apply)({"params": params}, mels, valid)
    check.absolute("out/pre_vq_hidden", out.features, 2e-5)
    check.exact("out/quantized_token_ids", out.codes)
    check.absolute("out/last_hidden_state", out.hidden, 2e-5)
    for output in fixture.outputs:
        if match := re.fullmatch(r"out/speech_tokens_(\d+)", output):
            row = int(match[1])
            check.exact(output, np.asarray(out.codes)[row][np.asarray(out.valid)[row]])
