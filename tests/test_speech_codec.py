"""Speech tokenizer and decoder: codes whatever the batch, training programs, how well the shipped nano pair speaks."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.scenes.language import answer_words
from data_pipelines.scenes.speech import ANSWER_VOICE, GRID, say
from data_pipelines.scenes.tokenizers.speech_codec import (
    SpeechDecoderRun,
    SpeechTokenizerRun,
    answers,
    word_errors,
)
from experiments.common import load_config
from omnidiff_jax.config import build
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.flow import EstimatorConfig, FlowConfig, TokenEncoderConfig
from omnidiff_jax.models.whisper_vq import WhisperVQConfig
from omnidiff_jax.records import Waveform
from omnidiff_jax.tokenizers import assets
from omnidiff_jax.tokenizers.speech import SpeechDecoder, SpeechDecoderConfig, SpeechTokenizer
from omnidiff_jax.training.loop import train
from omnidiff_jax.training.step import eval_params
from omnidiff_jax.training.tokenizers.speech_codec import SpeechCodecProgram, SpeechCodecTraining
from omnidiff_jax.training.tokenizers.speech_decoder import SpeechDecoderProgram, SpeechDecoderTraining

TOKENIZER_CONFIG = "experiments/configs/tokenizers/speech_tokenizer.py"
DECODER_CONFIG = "experiments/configs/tokenizers/speech_decoder.py"
TINY = WhisperVQConfig(
    num_mels=20,
    width=16,
    heads=2,
    ffn=16,
    layers=1,
    max_positions=16,
    block_size=8,
    pooling_position=1,
    quantize_position=1,
    codebook_size=32,
)


def tone(seconds: float, seed: int, rate: int = 16000) -> Waveform:
    noise = np.random.default_rng(seed).standard_normal(round(seconds * rate)).astype(np.float32)
    return Waveform(np.cumsum(noise) / 200.0 % 1.0 - 0.5, rate)


def tones(index: int) -> tuple[Waveform, str]:
    return tone(0.5 + index % 3 * 0.3, index % 5), f"tone {index % 5}"


@pytest.fixture(scope="module")
def shipped():
    folders = (assets.nano_dir(name) for name in ("speech_tokenizer", "speech_decoder"))
    return SpeechTokenizer.load(next(folders)), SpeechDecoder.load(next(folders))


@pytest.fixture(scope="module")
def tiny():
    program = SpeechCodecProgram(SpeechCodecTraining(model=TINY, crop_codes=4, batch_size=8), tones, tones)
    return program, jax.jit(program.init)(jax.random.key(0))


def test_codes_do_not_depend_on_the_batch(tiny):
    tokenizer = SpeechTokenizer(TINY, tiny[1]["encoder"])
    waves = [tone(seconds, seed) for seed, seconds in enumerate((0.31, 0.08, 1.0, 0.001))]
    together = tokenizer.encode(waves)
    assert [len(codes) for codes in together] == [4, 1, 13, 1]
    for wave, codes in zip(waves, together, strict=True):
        np.testing.assert_array_equal(tokenizer.encode([wave])[0], codes)
    assert all(codes.dtype == np.int32 and codes.max() < TINY.codebook_size for codes in together)
    assert tokenizer.encode([tone(1.0, 0, rate=22050)])[0].shape == (13,)


def test_silence_and_emptiness(tiny):
    tokenizer = SpeechTokenizer(TINY, tiny[1]["encoder"])
    assert tokenizer.encode([]) == []
    assert tokenizer.encode([Waveform(np.zeros(2000, np.float32), 16000)])[0].shape == (2,)
    with pytest.raises(UserError, match="audio 1 has 0 samples"):
        tokenizer.encode([tone(0.1, 0), Waveform(np.zeros(0, np.float32), 16000)])


def descend(program, params, metric: str, steps: int, rate: float) -> list[float]:
    """A metric along a descent by the gradients' signs."""

    @jax.jit
    def update(p, batch, key):
        (_, metrics), grads = jax.value_and_grad(program.loss, has_aux=True)(p, batch, key, 0)
        return jax.tree.map(lambda a, g: a - rate * jax.numpy.sign(g), p, grads), metrics[metric]

    values, stream, key = [], program.batches(0), jax.random.key(1)
    for _ in range(steps):
        params, value = update(params, next(stream), key)
        values.append(float(value))
    return values


def test_tokenizer_program_learns_and_exports(tiny, tmp_path):
    program, params = tiny
    errors = descend(program, params, "mel", 30, 3e-3)
    assert np.mean(errors[-5:]) < 0.7 * errors[0]
    first, again = next(program.batches(3)), next(program.batches(3))
    np.testing.assert_array_equal(first["mels"], again["mels"])
    program.export(params, tmp_path)
    assert SpeechTokenizer.load(tmp_path).config == TINY


def test_decoder_program_learns_and_exports(tiny, tmp_path):
    flow = FlowConfig(
        codes=32,
        speaker_dim=4,
        encoder=TokenEncoderConfig(width=16, heads=2, hidden=16, layers=1),
        regulator_layers=1,
        estimator=EstimatorConfig(channels=(16,), mid_blocks=0, transformers=0),
        mel_mean=-5.0,
        mel_std=3.0,
        steps=2,
    )
    model = SpeechDecoderConfig(flow=flow, griffin_lim_iterations=2)
    config = SpeechDecoderTraining(model=model, crop_codes=8, batch_size=4, utterances=6, validation_size=2)
    tokenizer = SpeechTokenizer(TINY, tiny[1]["encoder"])
    program = SpeechDecoderProgram(config, tokenizer, tones, tones, lambda wave, text: (1, 2))
    params = jax.jit(program.init)(jax.random.key(0))
    batch = next(program.batches(0))
    assert batch["mel"].shape == (4, flow.frames(8), 80) and (batch["frames"] <= flow.frames(8)).all()
    errors = descend(program, params, "velocity", 20, 3e-3)
    assert np.mean(errors[-5:]) < 0.9 * errors[0]
    report = program.validate(params)
    assert report["wer"] == 0.5 and np.isfinite(report["mel_error"])
    program.export(params, tmp_path)
    assert SpeechDecoder.load(tmp_path).config == dataclasses.replace(model, hift=None)


def test_shipped_codes_of_a_word_are_the_same_everywhere(shipped):
    tokenizer, _ = shipped
    words = answer_words()
    alone = dict(zip(words, tokenizer.encode([say(word, ANSWER_VOICE) for word in words]), strict=True))
    assert all(len(codes) == len(say(word, ANSWER_VOICE).samples) // GRID for word, codes in alone.items())
    assert len({tuple(codes) for codes in alone.values()}) == len(words), "two words share their codes"
    for index in range(20):
        wave, text = answers("test")(index)
        expected = np.concatenate([alone[word] for word in text.replace(",", " ").split()])
        np.testing.assert_array_equal(tokenizer.encode([wave])[0], expected, err_msg=text)


def error_rate(waves, texts) -> float:
    wrong, words = np.sum([word_errors(*pair) for pair in zip(waves, texts, strict=True)], axis=0)
    return wrong / words


def test_shipped_pair_speaks_as_clearly_as_the_original(shipped, tmp_path):
    pytest.importorskip("pocketsphinx")
    tokenizer, decoder = shipped
    run = build(SpeechDecoderRun, load_config(DECODER_CONFIG)).open()
    assert decoder.config == run.program.config.model, "the shipped weights are those of the config"
    waves, texts = zip(*(answers("test")(index) for index in range(16)), strict=True)
    spoken = decoder.decode(tokenizer.encode(waves))
    assert error_rate(spoken, texts) <= error_rate(waves, texts) + 0.03


@pytest.mark.slow
def test_retrained_pair_reaches_the_shipped_error(shipped, tmp_path):
    tokenizer_run = build(SpeechTokenizerRun, load_config(TOKENIZER_CONFIG)).open()
    retrain(tokenizer_run, tmp_path / "tokenizer")
    words = [f"--config.speech_tokenizer={tmp_path / 'tokenizer' / 'export'}"]
    run = build(SpeechDecoderRun, load_config(DECODER_CONFIG, words)).open()
    report = run.program.validate(retrain(run, tmp_path / "decoder"))
    _, decoder = shipped
    program = build(SpeechDecoderRun, load_config(DECODER_CONFIG)).open().program
    before = program.validate(decoder.params["flow"])
    assert report["wer"] <= before["wer"] + 0.02
    assert report["mel_error"] <= 1.1 * before["mel_error"]


def retrain(run, folder: Path):
    params = eval_params(train(run, folder))
    run.program.export(params, folder / "export")
    return params
