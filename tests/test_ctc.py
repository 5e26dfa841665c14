"""CTC pre-training of the speech encoder: packing loses nothing, the loss is CTC's, and a toy language is learned."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipelines.scenes.tokenizers.speech_encoder import (
    HELD_OUT_VOICES,
    SpeechEncoderRun,
    WordUnits,
    scenes_utterances,
)
from experiments.common import load_config
from omnidiff_jax.config import build
from omnidiff_jax.errors import UserError
from omnidiff_jax.media import features
from omnidiff_jax.models.sanm import SpeechEncoder, SpeechEncoderConfig
from omnidiff_jax.records import Waveform
from omnidiff_jax.speech_frames import padded_frames
from omnidiff_jax.tokenizers import assets
from omnidiff_jax.tokenizers.frontend import FrontendConfig, SpeechFrontend
from omnidiff_jax.tokenizers.speech_encoder import load_speech_encoder
from omnidiff_jax.training.loop import train
from omnidiff_jax.training.tokenizers import ctc
from omnidiff_jax.words import word_error_rate

TONES = {"low": 300.0, "mid": 900.0, "high": 2700.0}
CONFIG = ctc.CtcTraining(
    encoder=SpeechEncoderConfig(
        width=32, heads=2, ffn=48, blocks=1, tp_blocks=1, kernel=5, vocab_size=4, max_positions=64
    ),
    batch_size=4,
    row_frames=40,
    utterances=24,
    cmvn_utterances=8,
    validation_size=12,
)


class Tones:
    """Three words, each a tone."""

    size = 3

    def encode(self, text):
        return [list(TONES).index(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(list(TONES)[i] for i in ids)


def utterance(index):
    random = np.random.default_rng(index)
    words = [list(TONES)[i] for i in random.integers(0, 3, random.integers(1, 6))]
    t = np.arange(int(16000 * random.uniform(0.2, 0.3))) / 16000
    gap = np.zeros(1600)
    wave = np.concatenate([p for word in words for p in (0.3 * np.sin(2 * np.pi * TONES[word] * t), gap)])
    return Waveform((wave + 0.001 * random.standard_normal(len(wave))).astype(np.float32), 16000), " ".join(words)


def program(config=CONFIG, **change):
    score = lambda expected, found: float(np.mean([a != b for a, b in zip(expected, found, strict=True)]))  # noqa: E731
    return ctc.CtcProgram(
        dataclasses.replace(config, **change), utterance, lambda i: utterance(1000 + i), Tones(), score
    )


@pytest.fixture(scope="module")
def trained():
    """The program after a few hundred steps on the toy language: (program, params, losses)."""
    trainer = program()
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(4e-3))

    @jax.jit
    def step(params, state, batch, key):
        (loss, _), gradient = jax.value_and_grad(trainer.loss, has_aux=True)(params, batch, key, 0)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    params = trainer.init(jax.random.key(0))
    state, stream, losses = optimizer.init(params), trainer.batches(0), []
    for number in range(120):
        params, state, loss = step(params, state, next(stream), jax.random.key(number))
        losses.append(float(loss))
    return trainer, params, losses


def test_packing_keeps_every_frame_and_label():
    trainer = program()
    heard = [trainer.heard(i) for i in range(24)]
    packer = ctc.Packer(CONFIG)
    batch, taken = packer(heard)
    assert taken[0] == 0 and len(taken) == len(set(taken)) <= packer.slots
    assert (batch["segment_ids"] > 0).mean() > 0.7
    for slot, place in enumerate(taken):
        frames, labels = heard[place].frames, heard[place].labels
        rows = batch["unpack"][slot][batch["unpack"][slot] >= 0]
        gathered = batch["fbank"][batch["gather"].reshape(-1, 7)[rows]].reshape(len(rows), -1)
        np.testing.assert_array_equal(gathered, features.stack_frames(frames))
        np.testing.assert_array_equal(batch["labels"][slot][: len(labels)], labels)
        np.testing.assert_array_equal(batch["positions"].reshape(-1)[rows], np.arange(5, 5 + len(rows)))
        assert (batch["segment_ids"].reshape(-1)[rows] == slot + 1).all()
        assert batch["lengths"][slot] == len(frames) == (batch["owner"] == slot).sum()
    assert not batch["labels"][len(taken) :].any()
    # What did not fit comes in the next batch; none is lost in an epoch.
    stream = trainer.batches(3)
    seen = sum((next(stream)["lengths"] > 0).sum() for _ in range(4))
    assert seen > len(taken) * 3
    assert all(
        np.array_equal(a, b) for a, b in zip(*(next(program().batches(3)).values() for _ in range(2)), strict=True)
    )


def test_loss_is_ctc_of_each_utterance_alone():
    trainer = program()
    params = trainer.init(jax.random.key(0))
    batch, taken = ctc.Packer(CONFIG)([trainer.heard(i) for i in range(12)])
    frontend = SpeechFrontend(trainer.hearing.frontend)
    longest = CONFIG.row_frames - 4
    padded, lengths = np.zeros((len(taken), longest, 560), np.float32), np.zeros(len(taken), np.int32)
    for slot, place in enumerate(taken):
        frames = frontend(utterance(place)[0])
        padded[slot, : len(frames)], lengths[slot] = frames, len(frames)

    @jax.jit
    def both(params, batch, padded, lengths):
        packed, valid = trainer._logits(params, batch, batch["fbank"].astype(jnp.float32))
        model, variables = SpeechEncoder(CONFIG.encoder), {"params": params}
        hidden = model.apply(variables, padded_frames(padded, lengths, CONFIG.encoder.queries))
        alone = model.apply(variables, hidden[:, 4:], method=model.ctc_logits)
        return packed, valid, alone

    packed, valid, alone = both(params, batch, padded, lengths)
    np.testing.assert_array_equal(valid[: len(taken)].sum(1), lengths)
    for slot in range(len(taken)):
        # The kept filter banks are float16.
        np.testing.assert_allclose(packed[slot][valid[slot]], alone[slot, : lengths[slot]], atol=0.02)


def test_augmentation_disturbs_within_bounds():
    trainer = program()
    batch, _ = ctc.Packer(CONFIG)([trainer.heard(i) for i in range(12)])
    quiet = ctc.Augmentation(
        gain_db=0, tilt_db=0, babble_db=(-300, -300), floor_db=(-300, -300), mel_masks=0, time_masks=0
    )
    run = jax.jit(ctc.augment, static_argnums=2)
    mean = jnp.full(80, 5.0)
    key = jax.random.key(0)
    np.testing.assert_allclose(run(batch, mean, quiet, key), batch["fbank"].astype(np.float32), atol=1e-4)
    masked = np.asarray(run(batch, mean, dataclasses.replace(quiet, mel_masks=2, time_masks=2), key))
    present = batch["owner"] >= 0
    share = (masked == 5.0)[present].mean()
    assert 0.02 < share < 0.5, share
    loud = np.asarray(run(batch, mean, ctc.Augmentation(), key))
    assert np.isfinite(loud).all()
    assert np.abs(loud - masked).max() < 40
    assert not np.array_equal(loud, run(batch, mean, ctc.Augmentation(), jax.random.key(1)))


def test_greedy_merges_and_drops():
    assert ctc.greedy(np.array([0, 1, 1, 0, 1, 2, 2, 0, 0, 3])) == [0, 0, 1, 2]
    assert ctc.greedy(np.array([0, 0])) == [] and ctc.greedy(np.array([], int)) == []


def test_learns_a_toy_language_and_survives_export(trained, tmp_path):
    trainer, params, losses = trained
    assert losses[-1] < 0.3 * losses[0], losses[::20]
    report = trainer.validate(params)
    assert report["wer"] < 0.35, report
    trainer.export(params, tmp_path)
    config, loaded, frontend = load_speech_encoder(tmp_path)
    assert config == CONFIG.encoder and frontend.config == trainer.hearing.frontend
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), params, loaded)
    frames = frontend(utterance(7)[0])
    assert frames.shape == (frontend.count(utterance(7)[0]), 560)
    assert np.abs(frames).mean() < 2


def test_bad_sizes_are_refused():
    encoder = dataclasses.replace(CONFIG.encoder, vocab_size=5)
    with pytest.raises(UserError, match="must be 4"):
        program(encoder=encoder)
    with pytest.raises(UserError, match="row_frames = 12"):
        next(program(row_frames=12).batches(0))
    with pytest.raises(ValueError, match="cmvn_shift has 3"):
        FrontendConfig(cmvn_shift=(1.0, 2.0, 3.0))


# ---- the shipped nano encoder ----------------------------------------------------------------------------------

SHIPPED_CONFIG = "experiments/configs/tokenizers/speech_encoder.py"


def word_errors(folder, count):
    """Word error rate of an exported encoder on `count` held-out sentences in held-out voices, greedily decoded."""
    config, params, frontend = load_speech_encoder(folder)
    units = WordUnits(tuple(json.loads((folder / "config.json").read_text())["units"]))
    held_out = scenes_utterances("test", HELD_OUT_VOICES)
    model = SpeechEncoder(config)

    @jax.jit
    def classes(params, features, lengths):
        hidden = model.apply({"params": params}, padded_frames(features, lengths, config.queries))
        hidden = hidden[:, len(config.queries) :]
        return jnp.argmax(model.apply({"params": params}, hidden, method=model.ctc_logits), axis=-1)

    spoken = [held_out(i) for i in range(count)]
    frames = [frontend(wave) for wave, _ in spoken]
    lengths = np.array([len(f) for f in frames])
    padded = np.stack([np.pad(f, ((0, lengths.max() - len(f)), (0, 0))) for f in frames])
    best = np.asarray(classes(params, padded, lengths))
    found = [units.decode(ctc.greedy(row[:n])) for row, n in zip(best, lengths, strict=True)]
    return word_error_rate([text for _, text in spoken], found)


def test_shipped_encoder_hears_new_voices():
    folder = assets.nano_dir("speech_encoder")
    assert (folder / "model.safetensors").stat().st_size < 2.5e6
    assert sum(leaf.size for leaf in jax.tree.leaves(load_speech_encoder(folder)[1])) < 1_200_000
    assert word_errors(folder, 48) <= 0.03


@pytest.mark.slow
def test_retraining_reaches_the_shipped_error(tmp_path):
    """Eight minutes of two cores: another seed, the same config."""
    run = build(SpeechEncoderRun, load_config(SHIPPED_CONFIG, ["--config.seed=1"])).open()
    state = train(run, tmp_path)
    run.program.export(state.params, tmp_path / "export")
    shipped = word_errors(assets.nano_dir("speech_encoder"), 200)
    assert word_errors(tmp_path / "export", 200) <= shipped + 0.01
