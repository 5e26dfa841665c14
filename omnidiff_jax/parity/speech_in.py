"""Fixtures of what the model hears: front-end, encoder, projector, resampling, lengths."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from omnidiff_jax.conversion import adapter, released, sensevoice
from omnidiff_jax.conversion.components import adapter_params, sensevoice_params
from omnidiff_jax.media import features as F
from omnidiff_jax.models import sanm
from omnidiff_jax.models.adapter import Adapter, AdapterConfig
from omnidiff_jax.models.flow import FlowConfig, matching
from omnidiff_jax.models.flow.regulator import nearest_indices
from omnidiff_jax.models.whisper_vq import num_codes
from omnidiff_jax.parity.check import Check, unsupported
from omnidiff_jax.parity.fixtures import Fixture, FixtureSet
from omnidiff_jax.speech_frames import padded_frames


def sensevoice_frontend(fixture: Fixture, check: Check, _: FixtureSet) -> None:
    conf = fixture.setting("frontend_conf")
    if conf["window"] != "hamming" or not fixture.meta.get("snip_edges", True):
        raise unsupported("a front-end other than hamming windows with snipped edges")
    defaults = fixture.meta.get("kaldi_defaults", {})
    config = F.FbankConfig(
        rate=conf["fs"],
        num_mels=conf["n_mels"],
        window=int(conf["fs"] * conf["frame_length"] / 1000),
        shift=int(conf["fs"] * conf["frame_shift"] / 1000),
        low_hz=float(defaults.get("low_freq", 20.0)),
        preemphasis=float(defaults.get("preemphasis", 0.97)),
        stack=conf["lfr_m"],
        hop=conf["lfr_n"],
    )
    wave, short = fixture["in/waveform"], fixture["in/waveform_short"]

    def features(samples: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        stacked = F.stack_frames(F.fbank(samples, config, noise), config)
        return F.normalise(stacked, fixture["in/cmvn_shift"], fixture["in/cmvn_scale"])

    check.absolute("out/fbank", F.fbank(wave, config), 1e-3)
    check.absolute("out/fbank_short", F.fbank(short, config), 1e-3)
    check.exact("out/lfr", F.stack_frames(fixture["out/fbank"], config))
    check.absolute("out/features", features(wave), 1e-4)
    check.absolute("out/features_dither1", features(wave, fixture["in/dither_noise"]), 1e-4)
    check.absolute("out/features_short", features(short), 1e-4)
    check.exact("out/feature_length", [F.num_stacked(F.num_frames(len(wave), config), config)])
    for output in fixture.outputs:
        if match := re.fullmatch(r"out/features_len(\d+)", output):
            size = int(fixture[f"in/waveform_len{match[1]}_is_prefix_of_waveform"])
            check.absolute(output, features(wave[:size]), 1e-4)
        elif match := re.fullmatch(r"out/(lfr_case_T\d+)", output):
            check.exact(output, F.stack_frames(fixture[f"in/{match[1]}"], config))
        elif match := re.fullmatch(r"out/fbank_silence(\d+)", output):
            check.absolute(output, F.fbank(np.zeros(int(match[1]), np.float32), config), 1e-3)


def sensevoice_encoder(fixture: Fixture, check: Check, _: FixtureSet) -> None:
    feats, lengths = fixture["in/feats_padded"], fixture["in/lengths"].astype(np.int32)
    plain = released.sensevoice(
        fixture.setting("encoder_conf"),
        features=fixture.setting("input_size"),
        num_queries=len(fixture["params/embed.weight"]),
        vocab_size=fixture.setting("vocab"),
        max_positions=feats.shape[1] + 16,
        padding="released",
    )
    rules = sensevoice.rules(plain)
    params = check.converted(rules, fixture.tensors, sensevoice_params(plain))

    def encode(ids: np.ndarray) -> tuple[jax.Array, jax.Array]:
        queries = tuple(int(i) for i in ids)

        @jax.jit
        def run(params: dict) -> tuple[jax.Array, jax.Array]:
            model = sanm.SpeechEncoder(plain)
            frames = padded_frames(feats, lengths, queries)
            # The reference adds positions to its padding, too.
            everywhere = jnp.broadcast_to(1 + jnp.arange(frames.positions.shape[1])[None], frames.positions.shape)
            hidden = model.apply({"params": params}, dataclasses.replace(frames, positions=everywhere))
            logits = model.apply({"params": params}, hidden, method=model.ctc_logits)
            return hidden, jax.nn.log_softmax(logits)

        return run(params)

    auto = fixture["in/query_ids_auto_woitn"]
    hidden, log_probs = encode(auto)
    check.absolute("out/encoder_out", hidden, 2e-5)
    check.absolute("out/ctc_log_softmax", log_probs, 2e-5)
    check.exact("out/encoder_out_lens", lengths + len(auto))
    check.absolute("out/encoder_out_language_en_withitn", encode(fixture["in/query_ids_en_withitn"])[0], 2e-5)
    check.exact("out/bf16/encoder_out_lens", lengths + len(auto))
    for output, value in fixture.outputs.items():
        if output.startswith("out/posenc_f32_T"):
            check.absolute(output, sanm.position_table(*value.shape, "float32"), 2e-5)
        elif output.startswith("out/bf16/posenc_bits_uint16"):
            table = sanm.position_table(*value.shape, "bfloat16").astype(ml_dtypes.bfloat16)
            check.exact(output, table.view(np.uint16))


def resampler_projector(fixture: Fixture, check: Check, _: FixtureSet) -> None:
    outputs, inputs = fixture["params/mlp.0.weight"].shape
    epsilon = fixture.meta.get("layernorm_eps", 1e-5)
    config = AdapterConfig(inputs, outputs, epsilon, dtype="float32")
    params = check.converted(adapter.rules(), fixture.tensors, adapter_params(config))
    run: Callable[..., jax.Array] = jax.jit(Adapter(config).apply)
    check.absolute("out/y", run({"params": params}, fixture["in/x"]), 1e-5)


def resample(fixture: Fixture, check: Check, _: FixtureSet) -> None:
    for output in fixture.outputs:
        if match := re.fullmatch(r"out/wave_(\d+)_to_(\d+)", output):
            wave = fixture[f"in/wave_{match[1]}"]
            check.absolute(output, F.resample(wave, int(match[1]), int(match[2])), 2e-5)


def rates(fixture: Fixture, check: Check, _: FixtureSet) -> None:
    config = FlowConfig()
    tokens, samples = fixture["in/n_tokens"].tolist(), fixture["in/n_samples_16k"].tolist()
    frames = np.array([config.frames(n) for n in tokens])
    heard = np.array([F.num_frames(n) for n in samples])
    stacked = np.array([F.num_stacked(n) for n in heard.tolist()])
    check.exact("out/feat_len", frames)
    check.exact("out/n_samples", frames * config.hop)
    check.exact("out/kaldi_frames", heard)
    check.exact("out/lfr_frames", stacked)
    check.exact("out/audio_context_tokens", stacked + len(sanm.SpeechEncoderConfig().queries))
    check.exact("out/glm_tokens", [num_codes(n) for n in samples])
    for output in fixture.outputs:
        if match := re.fullmatch(r"out/nearest_index_T(\d+)_to_(\d+)", output):
            codes, size = int(match[1]), int(match[2])
            check.exact(output, nearest_indices(jnp.array([codes]), jnp.array([size]), size)[0])
        elif match := re.fullmatch(r"out/(cosine_t_span|euler_t|euler_dt)_(\d+)", output):
            check.absolute(output, _euler(int(match[2]))[match[1]], 1e-6)


def _euler(steps: int) -> dict[str, np.ndarray]:
    """The released integrator's times: each step ends where the rounded running sum says."""
    span, t = matching.times(steps), np.float32(0.0)
    at, deltas = [], []
    for until in span[1:]:
        delta = until - t
        at.append(t)
        deltas.append(delta)
        t = t + delta
    return {"cosine_t_span": span, "euler_t": np.array(at), "euler_dt": np.array(deltas)}
