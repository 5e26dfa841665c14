"""HiFT vocoder: parity with the released module, independence from padding, exact conversion, phase precision."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnidiff_jax.conversion import hift as conversion
from omnidiff_jax.conversion.rules import to_flax, to_torch, torch_shapes
from omnidiff_jax.models.hift import Hift, HiftConfig, SourceNoise, draw_source_noise
from omnidiff_jax.models.hift.source import harmonic_cycles
from omnidiff_jax.models.hift.spectral import istft, stft

SMALL = HiftConfig(mels=20, base_channels=32, pitch_channels=24)


@pytest.fixture(scope="module")
def fixture(golden):
    return dict(np.load(golden / "06_hift.npz"))


@pytest.fixture(scope="module")
def state(fixture):
    return {name.removeprefix("params/"): value for name, value in fixture.items() if name.startswith("params/")}


@pytest.fixture(scope="module")
def params(state):
    return to_flax(conversion.rules(SMALL), state, like=jax.eval_shape(lambda: initial(SMALL)))


@pytest.fixture(scope="module")
def vocode(params):
    return jax.jit(lambda *args: Hift(SMALL).apply({"params": params}, *args))


def initial(config: HiftConfig) -> dict:
    noise = draw_source_noise(jax.random.key(0), 1, 2 * config.frame_samples, config.harmonics)
    return Hift(config).init(jax.random.key(0), jnp.zeros((1, 2, config.mels)), jnp.full((1,), 2), noise)["params"]


def recorded_noise(fixture, case: str) -> SourceNoise:
    noise = fixture[f"in/{case}/sine_noise_randn"].transpose(0, 2, 1)
    return SourceNoise(jnp.asarray(fixture[f"in/{case}/phase_uniform"][:, :, 0]), jnp.asarray(noise))


def test_conversion_round_trip_is_exact(state, params):
    back = to_torch(conversion.rules(SMALL), params)
    assert back.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_full_size_matches_the_released_manifest(golden):
    manifest = json.loads((golden / "manifests" / "hift_glm4voice_decoder.json").read_text())["tensors"]
    shapes = torch_shapes(conversion.rules(HiftConfig()), jax.eval_shape(lambda: initial(HiftConfig())))
    assert shapes == {name: tuple(shape) for name, shape in manifest.items()}


def test_waveform_matches_the_released_module(fixture, vocode):
    mel = jnp.asarray(fixture["in/mel"]).transpose(0, 2, 1)
    wave, parts = vocode(mel, jnp.array([12]), recorded_noise(fixture, "plain"))
    np.testing.assert_allclose(parts["f0"], fixture["out/plain/f0"], atol=1e-3)
    np.testing.assert_allclose(parts["source"], fixture["out/plain/source"][:, 0], atol=1e-4)
    np.testing.assert_allclose(wave, fixture["out/plain/waveform"], atol=2e-3)


def test_cached_source_matches_the_released_module(fixture, vocode):
    mel = jnp.asarray(fixture["in/mel"]).transpose(0, 2, 1)
    cached = jnp.asarray(fixture["in/cache_source"])[:, 0]
    wave, parts = vocode(mel, jnp.array([12]), recorded_noise(fixture, "cached"), cached)
    np.testing.assert_allclose(parts["source"], fixture["out/cached/source"][:, 0], atol=1e-4)
    np.testing.assert_allclose(wave, fixture["out/cached/waveform"], atol=2e-3)


def test_padding_does_not_change_an_utterance(fixture, vocode):
    mel = jnp.asarray(fixture["in/mel"]).transpose(0, 2, 1)
    noise = recorded_noise(fixture, "plain")
    frames, samples = 7, 7 * SMALL.frame_samples
    padded, _ = vocode(mel, jnp.array([frames]), noise)
    alone, _ = vocode(mel[:, :frames], jnp.array([frames]), SourceNoise(noise.phase, noise.noise[:, :samples]))
    np.testing.assert_allclose(padded[:, :samples], alone, atol=1e-5)
    assert not padded[:, samples:].any()


def test_phase_keeps_its_precision_over_a_minute():
    frames = 60 * 22050 // 256
    f0 = jnp.asarray(np.random.default_rng(0).uniform(80, 400, (1, frames)), jnp.float32)
    cycles = np.asarray(jax.jit(lambda f: harmonic_cycles(f, 8, 22050, 256))(f0), np.float64)
    step = np.float32(np.asarray(f0)[:, :, None] * np.arange(1, 10, dtype=np.float32) / np.float32(22050))
    exact = np.cumsum(np.repeat(step.astype(np.float64), 256, axis=1), axis=1)
    error = np.abs((cycles - exact + 0.5) % 1.0 - 0.5)
    assert error.max() < 1e-4


def test_inverse_transform_undoes_the_transform():
    @jax.jit
    def round_trip(signal, lengths):
        real, imaginary = jnp.split(stft(signal, lengths, 16, 4), 2, axis=-1)
        return istft(jnp.hypot(real, imaginary), jnp.arctan2(imaginary, real), lengths, 4)

    signal = np.random.default_rng(0).normal(size=(2, 256)).astype(np.float32)
    lengths = np.array([256, 200])
    inside = np.arange(256)[None] < lengths[:, None]
    np.testing.assert_allclose(round_trip(signal, lengths), np.where(inside, signal, 0.0), atol=1e-5)
