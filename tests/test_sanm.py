"""SAN-M speech encoder: the released numbers, and packing that no utterance can feel."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from omnidiff_jax.conversion import rules as conversion
from omnidiff_jax.conversion import sensevoice
from omnidiff_jax.errors import UserError
from omnidiff_jax.models import sanm
from omnidiff_jax.speech_frames import packed_frames, padded_frames

TINY = sanm.SpeechEncoderConfig(
    features=56, width=64, heads=4, ffn=96, blocks=3, tp_blocks=1, vocab_size=30, max_positions=64
)


@pytest.fixture(scope="module")
def fixture(golden):
    return np.load(golden / "02_sensevoice_encoder.npz")


@pytest.fixture(scope="module")
def params(fixture):
    tensors = {k.removeprefix("params/"): fixture[k] for k in fixture.files if k.startswith("params/")}
    rules = sensevoice.rules(TINY)
    frames = padded_frames(np.zeros((1, 3, 56), np.float32), np.array([3]), TINY.queries)
    like = jax.eval_shape(sanm.SpeechEncoder(TINY).init, jax.random.key(0), frames)["params"]
    params = conversion.to_flax(rules, tensors, like=like)
    for name, tensor in conversion.to_torch(rules, params).items():
        np.testing.assert_array_equal(tensor, tensors[name])
    return {"params": params}


def close(actual, expected, lengths, tolerance):
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(
            np.asarray(actual[row, :length], np.float32), expected[row, :length], rtol=0, atol=tolerance
        )


def encode(config, params, features, lengths, queries):
    """Hidden vectors and CTC log-probabilities of a padded batch."""

    @jax.jit
    def run(params, features, lengths):
        model = sanm.SpeechEncoder(config)
        hidden = model.apply(params, padded_frames(features, lengths, queries))
        return hidden, jax.nn.log_softmax(model.apply(params, hidden, method=model.ctc_logits))

    return run(params, features, lengths)


def test_released_encoder(fixture, params):
    inputs, totals = (fixture["in/feats_padded"], fixture["in/lengths"]), fixture["out/encoder_out_lens"]
    hidden, log_probs = encode(TINY, params, *inputs, TINY.queries)
    np.testing.assert_array_equal(fixture["in/lengths"] + len(TINY.queries), totals)
    close(hidden, fixture["out/encoder_out"], totals, 2e-5)
    close(log_probs, fixture["out/ctc_log_softmax"], totals, 2e-5)
    hidden, _ = encode(TINY, params, *inputs, tuple(fixture["in/query_ids_en_withitn"]))
    close(hidden, fixture["out/encoder_out_language_en_withitn"], totals, 2e-5)


def test_bfloat16_deployment(fixture, params):
    config = dataclasses.replace(TINY, position_table="bfloat16", dtype="bfloat16")
    params = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
    hidden, _ = encode(config, params, fixture["in/feats_padded"], fixture["in/lengths"], TINY.queries)
    assert hidden.dtype == jnp.bfloat16
    close(hidden, fixture["out/bf16/encoder_out"], fixture["out/bf16/encoder_out_lens"], 0.15)


def test_position_tables(fixture):
    np.testing.assert_allclose(sanm.position_table(6, 560, "float32"), fixture["out/posenc_f32_T6"], atol=2e-6)
    rates = np.exp(np.arange(280) * -(np.log(1e4) / 279))
    angles = np.arange(1, 1001)[:, None] * rates
    exact = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(sanm.position_table(1000, 560, "float32"), exact, atol=2e-4)  # float32 angles to 1000
    table = sanm.position_table(280, 560, "bfloat16")
    bits = table.astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(bits, fixture["out/bf16/posenc_bits_uint16"])


def test_packed_utterances_do_not_feel_each_other(params):
    """Outputs and gradients of an utterance are the same alone, first, or last in a packed row."""
    model = sanm.SpeechEncoder(TINY)
    random = np.random.default_rng(0)
    first, second = (random.standard_normal((n, 56)).astype(np.float32) for n in (9, 6))
    rows = [[(first, 5), (second, 40)], [(second, 0)], [(first, 0)]]
    frames = jax.tree.map(jnp.asarray, packed_frames(rows, 26, TINY.layout))
    np.testing.assert_array_equal(frames.slots[0], [*range(5, 18), *range(40, 50), -1, -1, -1])
    np.testing.assert_array_equal(frames.positions[0], [*range(1, 14), *range(1, 11), 0, 0, 0])

    @jax.jit
    def run(features):
        def probe(features):
            hidden = model.apply(params, frames.replace(features=features))
            return (hidden[0, 13:23] ** 2).sum(), hidden

        return jax.grad(probe, has_aux=True)(features)

    gradient, hidden = run(frames.features)
    np.testing.assert_allclose(hidden[0, 13:23], hidden[1, :10], atol=2e-6)
    np.testing.assert_allclose(hidden[0, :13], hidden[2, :13], atol=2e-6)
    assert np.abs(gradient[0, 17:23]).min() > 0
    assert not np.any(gradient[0, :13]) and not np.any(gradient[0, 23:])
    assert np.isfinite(hidden).all()
    _, changed = run(frames.features.at[0, 4:13].add(100.0).at[:, 23:].set(1e4))
    np.testing.assert_array_equal(hidden[0, 13:23], changed[0, 13:23])
    with pytest.raises(UserError, match="buffer holds 22"):
        packed_frames(rows, 22, TINY.layout)


def test_too_long_an_utterance_is_not_encoded_in_silence(params):
    config = dataclasses.replace(TINY, max_positions=8)
    hidden, _ = encode(config, params, np.zeros((1, 5, 56), np.float32), np.array([5]), TINY.queries)
    assert np.isnan(hidden[0, 8]).all()


def test_full_size_has_the_released_tensors(golden):
    manifest = json.loads((golden / "manifests" / "sensevoice_small.json").read_text())
    config = sanm.SpeechEncoderConfig()
    frames = padded_frames(np.zeros((1, 3, 560), np.float32), np.array([3]), config.queries)
    abstract = jax.eval_shape(sanm.SpeechEncoder(config).init, jax.random.key(0), frames)["params"]
    shapes = conversion.torch_shapes(sensevoice.rules(config), abstract)
    assert shapes == {name: tuple(shape) for name, shape in manifest["tensors"].items()}


@pytest.mark.parametrize(
    "change, match", [({"heads": 5}, "heads"), ({"blocks": 0}, "blocks"), ({"queries": (16,)}, "quer")]
)
def test_impossible_sizes_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        sanm.SpeechEncoderConfig(**change)
