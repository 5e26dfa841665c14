"""Fixtures of speaking: flow decoder, vocoder, and both from codes to sound."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omnidiff_jax.conversion import components
from omnidiff_jax.conversion import flow as flow_conversion
from omnidiff_jax.conversion import hift as hift_conversion
from omnidiff_jax.conversion.released import expect
from omnidiff_jax.models.flow import EstimatorConfig, FlowConfig, FlowDecoder, TokenEncoderConfig, matching
from omnidiff_jax.models.flow.encoder import TokenEncoder, relative_positions
from omnidiff_jax.models.hift import Hift, HiftConfig, SourceNoise
from omnidiff_jax.parity.check import Check, unsupported
from omnidiff_jax.parity.fixtures import Fixture, FixtureSet


def flow_config(fixture: Fixture) -> FlowConfig:
    """The decoder a `flow` fixture describes, quirks on."""
    config, sampler = fixture.setting("config"), fixture.meta.get("cfm_params", {})
    expect(sampler, "solver", "euler", "cfm_params")
    expect(sampler, "t_scheduler", "cosine", "cfm_params")
    ratios = fixture.setting("length_regulator", "sampling_ratios")
    if set(ratios) - {1}:
        raise unsupported(f"a length regulator with sampling ratios {ratios}")
    estimator = config["est"]
    return FlowConfig(
        codes=config["vocab"],
        code_rate=float(fixture.setting("input_frame_rate")),
        mels=config["output_size"],
        code_width=config["input_size"],
        speaker_dim=config["spk"],
        encoder=TokenEncoderConfig(
            width=config["enc_out"],
            heads=config["heads"],
            hidden=config["ff"],
            layers=config["blocks"],
            block_size=config["block_size"],
        ),
        regulator_layers=len(ratios),
        estimator=EstimatorConfig(
            channels=tuple(estimator["channels"]),
            mid_blocks=estimator["mid"],
            transformers=estimator["n_blocks"],
            heads=estimator["heads"],
            head_dim=estimator["head_dim"],
        ),
        padding="released",
        sigma_min=float(sampler.get("sigma_min", 1e-6)),
        drop_rate=float(sampler.get("training_cfg_rate", 0.2)),
        guidance=float(sampler.get("inference_cfg_rate", 0.7)),
        steps=int(fixture.setting("n_timesteps", "plain")),
    )


def flow_params(fixture: Fixture, check: Check, config: FlowConfig) -> dict:
    return check.converted(flow_conversion.rules(config), fixture.tensors, components.flow_params(config))


def _apply(config: FlowConfig, params: dict, method: Any, *args: Any) -> jax.Array:
    return jax.jit(lambda p, *a: FlowDecoder(config).apply({"params": p}, *a, method=method))(params, *args)


def _swap(x: Any) -> jax.Array:
    """[B, M, T] <-> [B, T, M]."""
    return jnp.asarray(x).transpose(0, 2, 1)


def _decode(config: FlowConfig, params: dict, codes: Any, noise: Any, speaker: Any, condition: Any = None) -> jax.Array:
    """Log-mel [1, T, M] of one utterance; noise [1, M, T] as torch has it."""
    noise, lengths = _swap(noise), jnp.full((1,), codes.shape[1])
    mask = jnp.ones(noise.shape[:2], bool)

    @jax.jit
    def run(params: dict) -> jax.Array:
        return matching.sample(FlowDecoder(config), params, codes, lengths, noise, mask, speaker, condition)

    return run(params)


def flow(fixture: Fixture, check: Check, _: FixtureSet) -> None:
    config = flow_config(fixture)
    params = flow_params(fixture, check, config)
    codes, prompt = fixture["in/token"].astype(np.int32), fixture["in/prompt_token"].astype(np.int32)
    _front(fixture, check, config, params, "plain", codes)
    mel = _decode(config, params, codes, fixture["in/plain/noise"], fixture["in/embedding"])
    check.absolute("out/plain/mel", _swap(mel), 1e-4)

    both, heard = np.concatenate([prompt, codes], axis=1), fixture["in/prompt_feat"]
    _front(fixture, check, config, params, "prompt", both)
    noise = fixture["in/prompt/noise"]
    condition = jnp.zeros(_swap(noise).shape).at[:, : heard.shape[1]].set(heard)
    fewer = dataclasses.replace(config, steps=int(fixture.setting("n_timesteps", "prompt")))
    mel = _decode(fewer, params, both, noise, fixture["in/embedding_random"], condition)
    check.absolute("out/prompt/mel", _swap(mel[:, heard.shape[1] :]), 1e-4)
    _ragged(fixture, check, config, params)
    _training(fixture, check, config, params)


def _front(fixture: Fixture, check: Check, config: FlowConfig, params: dict, case: str, codes: np.ndarray) -> None:
    """From codes to the condition mu."""
    lengths, frames = jnp.full((1,), codes.shape[1]), config.frames(codes.shape[1])
    table = params["embedding"]["embedding"][np.maximum(codes, 0)]
    encoded = jax.jit(TokenEncoder(config.encoder, "float32").apply)({"params": params["encoder"]}, table, lengths)
    check.absolute(f"out/{case}/encoder_out", encoded, 2e-5)
    check.absolute(f"out/{case}/encoder_pos_emb", relative_positions(codes.shape[1], config.encoder.width)[None], 2e-5)
    mask = jnp.ones((1, frames), bool)
    check.absolute(f"out/{case}/mu_BTD", _apply(config, params, FlowDecoder.means, codes, lengths, mask), 2e-5)
    check.exact(f"out/{case}/feat_len", [frames])


def _ragged(fixture: Fixture, check: Check, config: FlowConfig, params: dict) -> None:
    inputs = fixture.group("in/ragged/")
    x, mu, condition = (_swap(inputs[name]) for name in ("x", "mu", "cond"))
    mask = jnp.asarray(inputs["mask"][:, 0] > 0)
    out = _apply(config, params, FlowDecoder.velocity, x, mask, mu, inputs["t"], inputs["spks"], condition)
    check.absolute("out/ragged/estimator_out", _swap(out), 2e-5)
    encode = jax.jit(TokenEncoder(config.encoder, "float32").apply)
    encoded = encode({"params": params["encoder"]}, inputs["encoder_in"], inputs["encoder_len"].astype(np.int32))
    check.absolute("out/ragged/encoder_out", encoded, 2e-5)


def _training(fixture: Fixture, check: Check, config: FlowConfig, params: dict) -> None:
    drawn, ragged = fixture.group("in/train/"), fixture.group("in/ragged/")
    noise = matching.FlowNoise(_swap(drawn["z"]), drawn["t_uniform"].reshape(-1), drawn["cfg_uniform"].reshape(-1))
    mel = _swap(drawn["x1"])
    check.absolute("out/train/y_t", _swap(matching.path(mel, noise, config.sigma_min)[0]), 2e-5)
    inputs = (mel, jnp.asarray(ragged["mask"][:, 0] > 0), _swap(ragged["mu"]), ragged["spks"], _swap(ragged["cond"]))
    loss = jax.jit(lambda p: matching.velocity_loss(FlowDecoder(config), p, *inputs, noise))(params)
    check.relative("out/train/loss", loss)


def hift_config(fixture: Fixture) -> HiftConfig:
    """The vocoder a `hift` fixture describes."""
    c = fixture.setting("config")
    return HiftConfig(
        mels=c["in_channels"],
        sample_rate=c["sampling_rate"],
        base_channels=c["base"],
        pitch_channels=c["cond"],
        pitch_layers=_pitch_layers(fixture),
        upsample_rates=tuple(c["upsample_rates"]),
        upsample_kernels=tuple(c["upsample_kernel_sizes"]),
        resblock_kernels=tuple(c["resblock_kernel_sizes"]),
        resblock_dilations=tuple(tuple(d) for d in c["resblock_dilation_sizes"]),
        source_kernels=tuple(c["source_resblock_kernel_sizes"]),
        source_dilations=tuple(tuple(d) for d in c["source_resblock_dilation_sizes"]),
        harmonics=c["harm"],
        n_fft=c["istft"]["n_fft"],
        hop=c["istft"]["hop_len"],
        slope=c["lrelu_slope"],
        limit=c["audio_limit"],
        sine_amplitude=c["nsf_alpha"],
        noise_amplitude=c["nsf_sigma"],
        voiced_above=float(c["nsf_voiced_threshold"]),
    )


def _pitch_layers(fixture: Fixture) -> int:
    prefix, suffix = "f0_predictor.condnet.", ".weight_v"
    return sum(name.startswith(prefix) and name.endswith(suffix) for name in fixture.tensors)


def hift_params(fixture: Fixture, check: Check, config: HiftConfig) -> dict:
    return check.converted(hift_conversion.rules(config), fixture.tensors, components.hift_params(config))


def _vocode(
    config: HiftConfig, params: dict, mel: Any, phase: np.ndarray, noise: np.ndarray, cached: Any = None
) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """Waveform and parts of a log-mel [B, T, M], the released randomness given as torch has it."""
    source = SourceNoise(jnp.asarray(phase[:, :, 0]), _swap(noise))
    lengths = jnp.full(mel.shape[:1], mel.shape[1])
    return jax.jit(lambda p: Hift(config).apply({"params": p}, mel, lengths, source, cached))(params)


def hift(fixture: Fixture, check: Check, _: FixtureSet) -> None:
    config = hift_config(fixture)
    params, mel = hift_params(fixture, check, config), _swap(fixture["in/mel"])
    for case, cached in (("plain", None), ("cached", jnp.asarray(fixture["in/cache_source"])[:, 0])):
        noise = (fixture[f"in/{case}/phase_uniform"], fixture[f"in/{case}/sine_noise_randn"])
        wave, parts = _vocode(config, params, mel, *noise, cached)
        check.absolute(f"out/{case}/f0", parts["f0"], 1e-3)
        check.absolute(f"out/{case}/source", parts["source"][:, None], 1e-4)
        check.absolute(f"out/{case}/waveform", wave, 2e-3)


_RELEASED_STEPS = 10


def ode_steps(fixture: Fixture) -> int:
    """Euler steps of a `token2wav` fixture: what the recorded call says, else the released default."""
    named = re.search(r"option_steps\s*=\s*(\d+)", str(fixture.meta.get("reference", "")))
    return int(named[1]) if named else _RELEASED_STEPS


def token2wav(fixture: Fixture, check: Check, others: FixtureSet) -> None:
    """With the weights of the folder's `flow` and `hift` fixtures."""
    hint = str(fixture.meta.get("params", ""))
    flows, hifts = others.of_kind("flow", hint), others.of_kind("hift", hint)
    config = dataclasses.replace(flow_config(flows), steps=ode_steps(fixture))
    vocoder = hift_config(hifts)
    codes = fixture["in/token"].astype(np.int32)
    params = flow_params(flows, Check(flows), config)
    mel = _decode(config, params, codes, fixture["in/noise"], jnp.zeros((1, config.speaker_dim)))
    check.absolute("out/mel", _swap(mel), 1e-4)
    noise = (fixture["in/phase_uniform"], fixture["in/sine_noise_randn"])
    wave, _ = _vocode(vocoder, hift_params(hifts, Check(hifts), vocoder), mel, *noise)
    check.absolute("out/waveform", wave, 1e-2)
