"""GLM-4-Voice speech tokenizer: the released numbers and codes; the quantizer learns and keeps its rows in use."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from omnidiff_jax.conversion import rules as conversion
from omnidiff_jax.conversion import whisper_vq as table
from omnidiff_jax.errors import UserError
from omnidiff_jax.models import vq
from omnidiff_jax.models import whisper_vq as W

RELEASED_ARRANGEMENT = W.WhisperVQConfig(
    width=64, heads=4, ffn=128, layers=3, max_positions=100, block_size=8, pooling_position=3, quantize_position=3,
    codebook_size=96,
)  # fmt: skip
VARIANT = W.WhisperVQConfig(
    width=32, heads=2, ffn=48, layers=5, max_positions=90, causal_convolution=False, block_size=None, pooling="max",
    pooling_position=2, quantize_position=4, codebook_size=40, final_norm=True,
)  # fmt: skip


def convert(fixture, config):
    tensors = {k.removeprefix("params/"): fixture[k] for k in fixture.files if k.startswith("params/")}
    rules = table.rules(config)
    params = conversion.to_flax(rules, tensors, like=abstract(config))
    for name, tensor in conversion.to_torch(rules, params).items():
        np.testing.assert_array_equal(tensor, tensors[name])
    return {"params": params}


def abstract(config):
    """Parameters of the model and the released buffers beside them."""
    mels, valid = jnp.zeros((1, 8, config.num_mels)), jnp.ones((1, 8), bool)
    params = jax.eval_shape(W.WhisperVQEncoder(config).init, jax.random.key(0), mels, valid)["params"]
    shape = (config.codebook_size, config.width)
    return {
        **params,
        "ema_count": jax.ShapeDtypeStruct(shape[:1], np.float32),
        "ema_weight": jax.ShapeDtypeStruct(shape, np.float32),
    }


def check(fixture, config, mels, valid):
    params = convert(fixture, config)
    out = jax.jit(W.WhisperVQEncoder(config).apply)(params, mels, valid)
    np.testing.assert_allclose(out.features, fixture["out/pre_vq_hidden"], rtol=0, atol=2e-5)
    np.testing.assert_array_equal(out.codes, fixture["out/quantized_token_ids"])
    np.testing.assert_allclose(out.hidden, fixture["out/last_hidden_state"], rtol=0, atol=2e-5)
    for row in range(2):
        np.testing.assert_array_equal(out.codes[row][out.valid[row]], fixture[f"out/speech_tokens_{row}"])


def test_released_arrangement(golden):
    fixture = np.load(golden / "04_whispervq.npz")
    waves = [fixture["in/waveform_0"], fixture["in/waveform_1"]]
    mels, valid = W.log_mel_batch(waves, RELEASED_ARRANGEMENT)
    np.testing.assert_allclose(mels.transpose(0, 2, 1), fixture["out/input_features"], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(valid, fixture["out/attention_mask"])
    for level, step, block in ((0, 2, 8), (1, 8, 2)):
        allowed = W.visible_frames(jnp.asarray(valid[:, ::step]), block)
        np.testing.assert_array_equal(allowed, fixture[f"out/block_mask_{level}_allowed"])
        assert fixture[f"out/block_mask_{level}_size"] == block
    check(fixture, RELEASED_ARRANGEMENT, mels, valid)


def test_other_arrangements(golden):
    fixture = np.load(golden / "04b_whispervq_variant.npz")
    mels = fixture["in/input_features"].transpose(0, 2, 1)
    check(fixture, VARIANT, mels, fixture["in/attention_mask"].astype(bool))


def test_full_size_has_the_released_tensors(golden):
    manifest = json.loads((golden / "manifests" / "whisper_vq_encoder_glm4voice.json").read_text())
    config = W.WhisperVQConfig()
    shapes = conversion.torch_shapes(table.rules(config), abstract(config))
    assert shapes == {name: tuple(shape) for name, shape in manifest["tensors"].items()}
    assert (config.samples_per_code, config.max_samples, config.max_codes) == (1280, 480000, 375)


def test_rates_and_pieces(golden):
    rates = np.load(golden / "08_rates.npz")
    for samples, codes in zip(rates["in/n_samples_16k"], rates["out/glm_tokens"], strict=True):
        assert W.num_codes(int(samples)) == codes
    wave = np.arange(480000 * 2 + 1, dtype=np.float32)
    cut = W.pieces(wave)
    assert [len(piece) for piece in cut] == [480000, 480000, 1]
    np.testing.assert_array_equal(np.concatenate(cut), wave)
    assert sum(W.num_codes(len(piece)) for piece in cut) == W.num_codes(len(wave))


def test_bad_input_is_refused():
    config = dataclasses.replace(RELEASED_ARRANGEMENT, max_positions=8)
    with pytest.raises(UserError, match="0 samples"):
        W.log_mel_batch([np.zeros(0, np.float32), np.zeros(5, np.float32)], config)
    with pytest.raises(UserError, match="at most 2560"):
        W.log_mel_batch([np.zeros(2561, np.float32)], config)
    with pytest.raises(UserError, match="padded to 1280"):
        W.log_mel_batch([np.zeros(1281, np.float32)], config, padded=1280)
    with pytest.raises(ValueError, match="12 mel frames"):
        W.WhisperVQEncoder(config).init(jax.random.key(0), jnp.zeros((1, 12, 128)), jnp.ones((1, 12), bool))
    with pytest.raises(ValueError, match="quantize_position"):
        W.WhisperVQConfig(quantize_position=3)


def test_quantizer_passes_gradients_and_ignores_padding():
    codebook = jnp.array([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    x = jnp.array([[0.1, 0.2], [0.9, 0.8], [7.0, 7.0]])
    (rows, codes), pull = jax.vjp(lambda x: vq.quantize(x, codebook), x)
    np.testing.assert_array_equal(codes, [0, 1, 1])
    np.testing.assert_array_equal(rows, codebook[codes])
    gradient = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(pull((gradient, np.zeros(3, jax.dtypes.float0)))[0], gradient)
    valid = jnp.array([True, True, False])
    loss = lambda x: vq.vq_losses(x, codes, valid, codebook, vq.VqLossConfig())  # noqa: E731
    (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(x)
    assert not gradient[2].any() and gradient[:2].all()
    np.testing.assert_allclose(metrics["commitment"], (0.01 + 0.04 + 0.01 + 0.04) / 4, rtol=1e-5)
    np.testing.assert_allclose(metrics["perplexity"], 2.0, rtol=1e-4)
    np.testing.assert_allclose(metrics["used"], 2 / 3, rtol=1e-6)


def test_dead_rows_come_back():
    """All rows start together, far from eight clusters; training finds a row for every cluster."""
    centres = jax.random.normal(jax.random.key(1), (8, 4)) * 3
    optimizer = optax.adam(0.05)

    @jax.jit
    def train(codebook):
        def step(carry, key):
            codebook, state = carry
            draw, noise = jax.random.split(key)
            x = jnp.take(centres, jax.random.randint(draw, (64,), 0, 8), axis=0)
            x += 0.05 * jax.random.normal(noise, x.shape)

            def loss(codebook):
                return vq.vq_losses(x, vq.nearest_codes(x, codebook), jnp.ones(64, bool), codebook, vq.VqLossConfig())

            (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(codebook)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(codebook, updates), state), metrics

        start = (codebook, optimizer.init(codebook))
        (codebook, _), metrics = jax.lax.scan(step, start, jax.random.split(jax.random.key(0), 600))
        return codebook, metrics

    codebook, metrics = train(10.0 + 0.1 * jax.random.normal(jax.random.key(5), (12, 4)))
    assert metrics["used"][0] < 0.5 and metrics["perplexity"][-1] > 6
    errors = jnp.square(centres[:, None] - codebook[None]).sum(-1).min(axis=1)
    assert float(errors.max()) < 0.2, errors


def test_k_means_finds_clusters_and_leaves_rows_that_are_nearest_to_nothing():
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], np.float32)
    noise = np.random.default_rng(0).normal(0.0, 0.1, (3, 50, 2)).astype(np.float32)
    begin = jnp.array([[1.0, 1.0], [9.0, 1.0], [1.0, 9.0], [-90.0, -90.0]])
    rows = vq.k_means(jnp.asarray((centres[:, None] + noise).reshape(-1, 2)), begin)
    np.testing.assert_allclose(rows[:3], centres + noise.mean(1), atol=1e-4)
    np.testing.assert_array_equal(rows[3], begin[3])
