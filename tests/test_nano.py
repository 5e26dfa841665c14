"""The model in the box: it loads by name, answers, goes both ways through the converter, and keeps its record."""

import json

import numpy as np
import pytest
from PIL import Image

import omnidiff_jax
from data_pipelines.scenes.exams import SCORE, exam
from data_pipelines.scenes.listener import listen
from data_pipelines.scenes.scene_parser import parse_scene
from data_pipelines.scenes.tasks import make_record
from experiments.common import load_config
from omnidiff_jax.conversion.to_orbax import to_orbax
from omnidiff_jax.conversion.to_released import to_released
from omnidiff_jax.evaluation.exam import sit
from omnidiff_jax.media.image import is_plain
from omnidiff_jax.records import Waveform
from omnidiff_jax.runs.config import run_config
from omnidiff_jax.tokenizers.assets import nano_dir, shipped_models
from omnidiff_jax.words import word_error_rate

HOME = shipped_models()["nano"]
RECORD = json.loads((HOME / "record.json").read_text())


@pytest.fixture(scope="module")
def model():
    return omnidiff_jax.load("nano", rows=64)


def test_three_lines_draw_a_circle(tmp_path):
    model = omnidiff_jax.load("nano")
    model.answer("t2i", text="small red circle top left").image.save(tmp_path / "circle.png")
    scene = parse_scene(np.asarray(Image.open(tmp_path / "circle.png").convert("RGB")))
    assert scene.content() == {"small red circle top left"}


def test_plain_words_and_speech_are_understood(model):
    answer = model.answer("t2i", text="please draw a large blue square in the upper left corner")
    assert parse_scene(np.asarray(answer.image)).content() == {"big blue square top left"} and not answer.blank
    spoken = model.answer("tts", text="small red circle top left")
    assert listen(Waveform(spoken.audio.samples, spoken.audio.rate)) == "small red circle top left"
    records = [make_record("asr", SCORE + index, "test") for index in range(8)]
    heard = model.answer_many([{"task": "asr", "audio": (r.audios[0].samples, r.audios[0].rate)} for r in records])
    assert word_error_rate([r.meta["answer"] for r in records], [answer.text for answer in heard]) < 0.15


def test_the_fast_preset_is_that_of_the_config(model):
    """What the gate passed: other thresholds for two tasks, everything else as ever."""
    quick = omnidiff_jax.load("nano", rows=64, preset="fast")
    differ = {name for name in quick.decoding if quick.decoding[name] != model.decoding[name]}
    written = run_config(load_config("experiments/configs/nano.py", [])).fast
    assert differ == set(written) == {"s2i", "inpainting"}
    assert {name: quick.decoding[name].sampler.reveal for name in differ} == {
        name: written[name].sampler.reveal for name in differ
    }


def test_a_picture_of_nothing_is_called_blank(model):
    white = np.full((64, 64, 3), 255, np.uint8)
    noisy = np.clip(white.astype(int) - np.random.default_rng(0).integers(0, 30, white.shape), 0, 255)
    drawn = model.answer("t2i", text="small red circle top left")
    assert is_plain(white) and is_plain(noisy.astype(np.uint8)) and not is_plain(np.asarray(drawn.image))


def test_the_assets_are_small_and_go_both_ways_through_the_converter(tmp_path):
    total = sum(file.stat().st_size for file in nano_dir("").parent.rglob("*") if file.is_file())
    assert total < 24e6
    to_orbax(HOME, tmp_path / "orbax")
    to_released(tmp_path / "orbax", tmp_path / "released", dtype=np.dtype(np.float16))
    assert (tmp_path / "released" / "model.safetensors").read_bytes() == (HOME / "model.safetensors").read_bytes()


def test_the_record_says_how_it_was_made():
    assert {"seed", "commit", "versions", "machine", "steps", "seconds", "exams"} <= set(RECORD)
    for sat in ("scenes", "plain"):
        assert all(entry["n"] >= 300 for entry in RECORD["exams"][sat].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RECORD["exams"]["scenes"]))
def test_the_shipped_weights_score_what_the_record_says(model, name):
    """Other scenes than the record's; the recorded value must lie within what 100 cases can tell."""
    result = sit(exam(name, 100, start=SCORE + 10_000), model.generator)
    low, high = result.entry["interval"]
    recorded = RECORD["exams"]["scenes"][name]["value"]
    assert low - 0.02 <= recorded <= high + 0.02
