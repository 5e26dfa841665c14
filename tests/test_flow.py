"""Flow decoder: parity with the released module, independence from padding, exact conversion."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnidiff_jax.conversion import flow as conversion
from omnidiff_jax.conversion.rules import to_flax, to_torch, torch_shapes
from omnidiff_jax.models.flow import EstimatorConfig, FlowConfig, FlowDecoder, TokenEncoderConfig, matching
from omnidiff_jax.models.flow.encoder import TokenEncoder, relative_positions
from omnidiff_jax.models.flow.layers import length_mask
from omnidiff_jax.models.flow.regulator import nearest_indices
from omnidiff_jax.models.flow.unet import time_sinusoid

SMALL = FlowConfig(
    codes=50,
    mels=20,
    speaker_dim=24,
    encoder=TokenEncoderConfig(width=32, heads=4, hidden=64, layers=2, block_size=4),
    estimator=EstimatorConfig(channels=(32, 32), mid_blocks=2, transformers=1, heads=2, head_dim=24),
    padding="released",
)


@pytest.fixture(scope="module")
def fixture(golden):
    return dict(np.load(golden / "05_flow.npz"))


@pytest.fixture(scope="module")
def state(fixture):
    return {name.removeprefix("params/"): value for name, value in fixture.items() if name.startswith("params/")}


@pytest.fixture(scope="module")
def params(state):
    return to_flax(conversion.rules(SMALL), state, like=jax.eval_shape(lambda: initial(SMALL)))


def initial(config: FlowConfig) -> dict:
    model = FlowDecoder(config)
    frames = config.frames(4)
    noise, mask = jnp.zeros((1, frames, config.mels)), jnp.ones((1, frames), bool)
    return model.init(jax.random.key(0), jnp.zeros((1, 4), int), jnp.full((1,), 4), noise, mask, jnp.zeros(1))["params"]


def apply(params, method, *args):
    return jax.jit(lambda p, *a: FlowDecoder(SMALL).apply({"params": p}, *a, method=method))(params, *args)


def decode(params, config, codes, noise, frames, lengths=None, **prompt):
    """[1, L] codes and [1, T, M] noise, one or more rows."""
    lengths = jnp.full(codes.shape[:1], codes.shape[1]) if lengths is None else lengths
    mask = length_mask(jnp.asarray(frames), noise.shape[1])
    run = jax.jit(lambda p: matching.sample(FlowDecoder(config), p, codes, lengths, noise, mask, **prompt))
    return np.asarray(run(params))


def test_conversion_round_trip_is_exact(state, params):
    back = to_torch(conversion.rules(SMALL), params)
    assert back.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_full_size_matches_the_released_manifest(golden):
    manifest = json.loads((golden / "manifests" / "flow_glm4voice_decoder.json").read_text())["tensors"]
    shapes = torch_shapes(conversion.rules(FlowConfig()), jax.eval_shape(lambda: initial(FlowConfig())))
    assert shapes == {name: tuple(shape) for name, shape in manifest.items()}


def test_plain_decoding_matches_the_released_module(fixture, params):
    codes, noise = jnp.asarray(fixture["in/token"]), jnp.asarray(fixture["in/plain/noise"]).transpose(0, 2, 1)
    frames = SMALL.frames(codes.shape[1])
    assert frames == fixture["out/plain/feat_len"][0]
    mu = apply(params, FlowDecoder.means, codes, jnp.array([11]), jnp.ones((1, frames), bool))
    np.testing.assert_allclose(mu, fixture["out/plain/mu_BTD"], atol=2e-5)
    mel = decode(params, SMALL, codes, noise, [frames])
    np.testing.assert_allclose(mel.transpose(0, 2, 1), fixture["out/plain/mel"], atol=1e-4)


def test_prompted_decoding_matches_the_released_module(fixture, params):
    codes = jnp.concatenate([fixture["in/prompt_token"], fixture["in/token"]], axis=1)
    noise = jnp.asarray(fixture["in/prompt/noise"]).transpose(0, 2, 1)
    prompt = fixture["in/prompt_feat"]
    condition = jnp.zeros_like(noise).at[:, : prompt.shape[1]].set(prompt)
    config = build_steps(4)
    frames = SMALL.frames(codes.shape[1])
    mel = decode(
        params, config, codes, noise, [frames], speaker=jnp.asarray(fixture["in/embedding_random"]), condition=condition
    )
    np.testing.assert_allclose(mel[:, prompt.shape[1] :].transpose(0, 2, 1), fixture["out/prompt/mel"], atol=1e-4)


def build_steps(steps: int, **changes) -> FlowConfig:
    return dataclasses.replace(SMALL, steps=steps, **changes)


def test_ragged_batch_matches_the_released_modules(fixture, params):
    inputs = {name.removeprefix("in/ragged/"): v for name, v in fixture.items() if name.startswith("in/ragged/")}
    swapped = {name: jnp.asarray(inputs[name]).transpose(0, 2, 1) for name in ("x", "mu", "cond")}
    mask = jnp.asarray(inputs["mask"][:, 0] > 0)
    parts = (swapped["x"], mask, swapped["mu"], inputs["t"], inputs["spks"], swapped["cond"])
    out = apply(params, FlowDecoder.velocity, *parts)
    np.testing.assert_allclose(out.transpose(0, 2, 1), fixture["out/ragged/estimator_out"], atol=2e-5)
    np.testing.assert_allclose(time_sinusoid(inputs["t"], 80), fixture["out/ragged/time_sinusoid"], atol=2e-5)

    encode = jax.jit(TokenEncoder(SMALL.encoder, "float32").apply)
    encoded = encode({"params": params["encoder"]}, inputs["encoder_in"], inputs["encoder_len"])
    np.testing.assert_allclose(encoded, fixture["out/ragged/encoder_out"], atol=2e-5)


def test_training_loss_matches_the_released_module(fixture, params):
    values = {name.removeprefix("in/train/"): v for name, v in fixture.items() if name.startswith("in/train/")}
    ragged = {name: jnp.asarray(fixture[f"in/ragged/{name}"]) for name in ("mu", "cond", "spks", "mask")}
    noise = matching.FlowNoise(
        jnp.asarray(values["z"]).transpose(0, 2, 1), values["t_uniform"].reshape(-1), values["cfg_uniform"]
    )
    mel = jnp.asarray(values["x1"]).transpose(0, 2, 1)
    y, _, _ = matching.path(mel, noise, SMALL.sigma_min)
    np.testing.assert_allclose(y.transpose(0, 2, 1), fixture["out/train/y_t"], atol=1e-6)
    inputs = (mel, ragged["mask"][:, 0] > 0, ragged["mu"].transpose(0, 2, 1), ragged["spks"])
    condition = ragged["cond"].transpose(0, 2, 1)
    loss = jax.jit(lambda p: matching.velocity_loss(FlowDecoder(SMALL), p, *inputs, condition, noise))(params)
    np.testing.assert_allclose(loss, fixture["out/train/loss"], rtol=1e-5)


def test_rates_match_the_released_arithmetic(golden):
    rates = dict(np.load(golden / "08_rates.npz"))
    config = FlowConfig()
    frames = [config.frames(int(n)) for n in rates["in/n_tokens"]]
    np.testing.assert_array_equal(frames, rates["out/feat_len"])
    np.testing.assert_array_equal(np.array(frames) * config.hop, rates["out/n_samples"])
    np.testing.assert_allclose(matching.times(10), rates["out/cosine_t_span_10"], atol=1e-6)
    for name, expected in rates.items():
        if name.startswith("out/nearest_index_T"):
            codes, size = (int(n) for n in name.removeprefix("out/nearest_index_T").split("_to_"))
            index = jax.jit(nearest_indices, static_argnums=2)(jnp.array([codes]), jnp.array([size]), size)
            np.testing.assert_array_equal(index[0], expected, err_msg=name)


def test_relative_positions_are_those_of_the_released_encoder(fixture):
    np.testing.assert_allclose(relative_positions(11, 32), fixture["out/plain/encoder_pos_emb"][0], atol=1e-5)


def test_padding_and_neighbours_do_not_change_an_utterance(fixture, params):
    config = build_steps(2, padding="masked")
    codes = jnp.asarray(fixture["in/token"])
    long = jnp.asarray(fixture["in/plain/noise"]).transpose(0, 2, 1)
    short = config.frames(6)
    together = decode(
        params,
        config,
        jnp.concatenate([codes, codes]),
        jnp.concatenate([long, long[:, ::-1]]),
        [75, short],
        lengths=jnp.array([11, 6]),
    )
    alone = decode(params, config, codes[:, :6], long[:, ::-1][:, :short], [short])
    np.testing.assert_allclose(together[1, :short], alone[0], atol=2e-5)
    np.testing.assert_allclose(together[:1], decode(params, config, codes, long, [75]), atol=2e-5)


@pytest.mark.slow
def test_every_parameter_but_the_prompt_learns(fixture):
    config = build_steps(2, padding="masked", drop_rate=0.0)
    params = jax.jit(lambda: initial(config))()
    codes = jnp.asarray(fixture["in/token"])
    mel = jax.random.normal(jax.random.key(1), (1, 75, config.mels))
    noise = matching.draw_noise(jax.random.key(2), mel)
    speaker = jnp.ones((1, config.speaker_dim))

    def loss(p):
        return matching.training_loss(
            FlowDecoder(config), p, codes, jnp.array([11]), mel, jnp.ones((1, 75), bool), noise, speaker
        )[0]

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(np.asarray(grad)).max() > 0, jax.tree_util.keystr(path)
