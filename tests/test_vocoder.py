"""The vocoder's training: pitch, critics and their losses, what each player learns from, its export."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipelines.commons.tokenizers.speech import CommonsVocoderRun
from data_pipelines.scenes.tokenizers.speech_codec import ScenesVocoderRun
from experiments.common import load_config
from experiments.programs import TOKENIZERS
from omnidiff_jax.config import build
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.features import log_mel
from omnidiff_jax.media.pitch import pitch
from omnidiff_jax.models.hift import HiftConfig
from omnidiff_jax.models.hift import critics as judging
from omnidiff_jax.records import Waveform
from omnidiff_jax.tokenizers import assets
from omnidiff_jax.tokenizers.speech import SpeechDecoder
from omnidiff_jax.training.tokenizers.spoken import Spoken
from omnidiff_jax.training.tokenizers.vocoder import VocoderProgram, VocoderTraining

RATE = 22050
CONFIG = VocoderTraining(
    model=HiftConfig(
        base_channels=16,
        pitch_channels=16,
        pitch_layers=1,
        upsample_rates=(64,),
        upsample_kernels=(128,),
        resblock_kernels=(3,),
        resblock_dilations=((1,),),
        source_kernels=(3,),
        source_dilations=((1,),),
    ),
    critics=judging.CriticsConfig(periods=(3,), period_channels=(4,), resolutions=((256, 64),), resolution_channels=4),
    start=1,
    crop_frames=8,
    batch_size=2,
    utterances=4,
    validation_size=1,
)


def sung(hz: float, seconds: float = 0.4, rate: int = RATE) -> np.ndarray:
    """A voice of ten overtones."""
    t = np.arange(int(seconds * rate)) / rate
    return (0.1 * sum(np.sin(2 * np.pi * hz * n * t) / n for n in range(1, 11))).astype(np.float32)


def utterance(index: int) -> tuple[Waveform, str]:
    return Waveform(sung(120.0 + 20 * (index % 4), 0.05 + index % 3 * 0.2), RATE), f"tone {index % 4}"


@pytest.fixture(scope="module")
def program():
    decoder = SpeechDecoder.load(assets.nano_dir("speech_decoder"))
    return VocoderProgram(CONFIG, decoder, Spoken(utterance, utterance, lambda wave, text: (1, 2)))


@pytest.fixture(scope="module")
def params(program):
    return jax.jit(program.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def gradient(program):
    """(params, batch, step) -> ((loss, metrics), gradients)."""
    found = jax.jit(jax.value_and_grad(program.loss, has_aux=True))
    return lambda params, batch, step: found(params, batch, jax.random.key(step), step)


# ---- pitch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hz", [80.0, 123.4, 220.0, 410.0])
@pytest.mark.parametrize("rate", [16000, 22050])
def test_the_pitch_of_a_voice_is_found(hz, rate):
    found = pitch(sung(hz, rate=rate), rate, 256)
    assert found.dtype == np.float32 and len(found) == int(0.4 * rate) // 256
    np.testing.assert_allclose(found[6:-6], hz, rtol=5e-3)


def test_the_pitch_of_a_frame_is_that_of_its_middle():
    halves = np.concatenate([sung(110.0, 0.4), sung(200.0, 0.4)])
    found, change = pitch(halves, RATE, 256), 0.4 * RATE / 256
    np.testing.assert_allclose(found[6 : int(change) - 3], 110.0, rtol=5e-3)
    np.testing.assert_allclose(found[int(change) + 4 : -6], 200.0, rtol=5e-3)


def test_noise_and_silence_have_no_pitch():
    noise = 0.1 * np.random.default_rng(0).standard_normal(RATE // 2).astype(np.float32)
    assert (pitch(noise, RATE, 256) > 0).mean() < 0.05
    assert not pitch(np.zeros(4000, np.float32), RATE, 256).any()
    assert pitch(np.zeros(100, np.float32), RATE, 256).shape == (0,)


# ---- critics -----------------------------------------------------------------------------------------------


def test_losses_are_those_of_the_papers():
    real = [(jnp.array([[1.0, 0.5]]), [jnp.ones((1, 2)), jnp.zeros((1, 4))])]
    made = [(jnp.array([[0.0, 0.5]]), [jnp.zeros((1, 2)), jnp.full((1, 4), 0.5)])]
    assert float(judging.critics_loss(real, made)) == pytest.approx(0.125 + 0.125)
    assert float(judging.vocoder_loss(made)) == pytest.approx(0.625)
    assert float(judging.matching_loss(real, made)) == pytest.approx(1.5)


def test_a_critic_of_a_period_looks_at_its_samples_alone():
    critic = judging.PeriodCritic(4, (3, 3))
    wave = jnp.asarray(np.random.default_rng(0).standard_normal((2, 64)), jnp.float32)
    weights = critic.init(jax.random.key(0), wave)
    scores, features = critic.apply(weights, wave)
    assert [part.shape for part in features] == [(8, 6, 3), (8, 2, 3), (8, 2, 3)] and scores.shape == (2, 8)
    other, _ = critic.apply(weights, wave.at[:, 1::4].add(1.0))
    same = np.isclose(scores, other, atol=1e-6).reshape(2, 4, 2).all(axis=(0, 2))
    assert same.tolist() == [True, False, True, True]


def test_magnitudes_are_those_of_the_spectrum():
    t = np.arange(1024) / 64.0
    found = judging.magnitudes(jnp.asarray(np.sin(2 * np.pi * 8 * t), jnp.float32)[None], 256, 64)
    assert found.shape == (1, 17, 129)
    assert (np.argmax(found[0, 2:-2], axis=-1) == 32).all()  # 8 of 64 a second
    np.testing.assert_allclose(found[0, 8, 32], 64.0, rtol=1e-3)  # half of the sum of the window


# ---- the program -------------------------------------------------------------------------------------------


def test_batches_are_parts_with_their_spectrogram_and_pitch(program):
    batch, again = next(program.batches(3)), next(program.batches(3))
    assert {name: part.shape for name, part in batch.items()} == {
        "wave": (2, 2048),
        "mel": (2, 8, 80),
        "pitch": (2, 8),
    }
    for name, part in batch.items():
        np.testing.assert_array_equal(part, again[name])
    stream = program.batches(3)
    next(stream)
    second, other = next(stream), program.batches(3)
    other.set_state({"taken": 1})
    np.testing.assert_array_equal(next(other)["wave"], second["wave"])
    # Inside of an utterance the spectrogram of a part is a part of the spectrogram.
    long = Waveform(sung(150.0, 1.0), RATE)
    inside = VocoderProgram(CONFIG, program._decoder, Spoken(lambda index: (long, ""), utterance))
    part = next(inside.batches(0))
    np.testing.assert_allclose(part["mel"][0, 3:5], log_mel(part["wave"][0])[3:5], atol=1e-4)
    assert ((part["pitch"] == 0) | (np.abs(part["pitch"] - 150.0) < 2.0)).all() and part["pitch"].any()


def test_each_player_learns_from_its_own_loss(program, params):
    """Of two waveforms and the critics alone: their loss is not the vocoder's, whose losses are not theirs."""
    real, made = (jnp.asarray(np.random.default_rng(n).standard_normal((1, 2048)), jnp.float32) for n in range(2))
    critics, judge = params["critics"], judging.Critics(CONFIG.critics).apply

    def apart(critics, made):
        ours, theirs = judge({"params": critics}, real), judge({"params": critics}, made)
        vocoder = judging.vocoder_loss(theirs) + 2.0 * judging.matching_loss(ours, theirs)
        return judging.critics_loss(ours, theirs), vocoder

    @jax.jit
    def gradients(critics, made):
        both = jax.grad(lambda *args: program._judged(args[0], real, args[1], 1.0)[0], (0, 1))(critics, made)
        return both, jax.grad(lambda c: apart(c, made)[0])(critics), jax.grad(lambda m: apart(critics, m)[1])(made)

    (of_critics, of_made), theirs, ours = gradients(critics, made)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), of_critics, theirs)
    np.testing.assert_allclose(of_made, ours, rtol=1e-4, atol=1e-9)


def test_critics_are_felt_from_their_step(program, params, gradient):
    batch = next(program.batches(0))
    (first, early), alone = gradient(params, batch, 0)
    (later, metrics), both = gradient(params, batch, 1)
    assert all(leaf.any() for grads in (alone, both) for leaf in jax.tree.leaves(grads["critics"]))
    for loss, found, felt in ((first, early, 0.0), (later, metrics, 1.0)):
        expected = 45 * found["mel"] + 0.1 * found["pitch"] + found["critics"]
        expected += felt * (found["adversarial"] + 2 * found["matching"])
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_it_learns_and_is_exported_with_the_decoder(program, params, gradient, tmp_path):
    optimizer = optax.adam(3e-3)
    update = jax.jit(optimizer.update)
    state, now, losses = optimizer.init(params), params, []
    stream = program.batches(0)
    for _ in range(16):
        (_, metrics), grads = gradient(now, next(stream), 0)
        updates, state = update(grads, state)
        now = optax.apply_updates(now, updates)
        losses.append(float(metrics["mel"]))
    assert np.mean(losses[-3:]) < 0.8 * losses[0], losses
    report = program.validate(now)
    assert report.keys() == {
        *("mel_error", "mel_error_griffin_lim"),
        *("wer", "wer_griffin_lim", "wer_original"),
    }
    assert report["wer"] == 0.5 and np.isfinite(list(report.values())).all()
    program.export(now, tmp_path)
    decoder = SpeechDecoder.load(tmp_path)
    assert decoder.config == dataclasses.replace(program._decoder.config, hift=CONFIG.model)
    mel = log_mel(sung(150.0))
    heard, kept = (one.vocoder([mel])[0] for one in (program._with(now), decoder))
    assert heard.rate == kept.rate == RATE and len(heard.samples) == 256 * len(mel)
    np.testing.assert_allclose(heard.samples, kept.samples, atol=0.05)  # it is kept in float16


def test_another_spectrogram_is_refused(program):
    model = dataclasses.replace(CONFIG.model, upsample_rates=(32,), upsample_kernels=(64,))
    with pytest.raises(UserError, match=r"every 128 samples at 22050 Hz, but the speech decoder makes 80, every 256"):
        VocoderProgram(dataclasses.replace(CONFIG, model=model), program._decoder, Spoken(utterance, utterance))


def test_configs_open():
    config = load_config("experiments/configs/tokenizers/vocoder.py")
    run = build(ScenesVocoderRun, config).open()
    assert TOKENIZERS[config.program] is ScenesVocoderRun and run.program.config.batch_size == config.batch_size
    commons = load_config("experiments/configs/tokenizers/commons_vocoder.py", ["--config.folder=x"])
    found = build(CommonsVocoderRun, commons)
    assert TOKENIZERS[commons.program] is CommonsVocoderRun and found.training.model == run.config.training.model
