"""The main job, tiny, through the commands a user types: train, kill, resume, sample, evaluate."""

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image
from tiny_run import write_config

from omnidiff_jax.conversion.arrays import open_arrays
from omnidiff_jax.conversion.sources import open_released
from omnidiff_jax.media.audio import read_audio
from omnidiff_jax.tasks.registry import TASKS
from omnidiff_jax.training.factors import summed
from omnidiff_jax.training.operations.metrics import read_metrics

HELD_OUT = ("--config.held_out.every=12", "--config.held_out.batches=2", "--config.held_out.examples=4")
STAGES = ["stage1_visual_language", "stage2_speech_vision_language", "stage3_speech_driven_visual"]


def done(result):
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.fixture(scope="module")
def trained(omnidiff, tmp_path_factory):
    """(config file, workdir of a run that nothing interrupted), by the main job's command."""
    folder = tmp_path_factory.mktemp("tiny")
    config = write_config(folder)
    words = (f"--config={config}", f"--workdir={folder / 'run'}", "--cases=2", *HELD_OUT)
    shown = done(omnidiff("quickstart", *words, timeout=600))
    assert shown.splitlines()[-1] == f"open {folder / 'run' / 'report.html'}"
    return config, folder / "run"


def kill_after(workdir, step, command):
    """Starts the command and kills it, as a pulled plug would, once checkpoint `step` is whole."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    with open(workdir / "killed.log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while not (workdir / "checkpoints" / str(step)).is_dir():
            assert process.poll() is None, (workdir / "killed.log").read_text()[-2000:]
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL


def test_a_run_leaves_what_the_contract_names(trained):
    _, workdir = trained
    lines = read_metrics(workdir / "metrics.jsonl")
    metrics, held_out = ([line for line in lines if name in line] for name in ("loss", "held_out_loss"))
    assert [line["step"] for line in held_out] == [0, 12, 24]
    seen = set(held_out[0]["held_out_task_loss"])  # of two small batches
    assert seen <= set(TASKS) - {"inpainting"} and len(seen) > 4
    assert held_out[-1]["held_out_loss"] < held_out[0]["held_out_loss"]
    assert [line["step"] for line in metrics] == list(range(1, 25))
    assert list(dict.fromkeys(line["stage"] for line in metrics)) == STAGES
    assert {"loss", "task_loss", "tokens_per_second"} <= set(metrics[-1])
    assert {name for line in metrics for name in line["task_loss"]} == set(TASKS) - {"inpainting"}
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert list((workdir / "tensorboard").iterdir())
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == [20, 24]


def test_a_killed_run_goes_on_as_if_it_had_not_been(trained, omnidiff, tmp_path):
    config, whole = trained
    shutil.copytree(whole / "data", tmp_path / "data")
    words = ("train", f"--config={config}", f"--workdir={tmp_path}", *HELD_OUT)
    kill_after(tmp_path, 4, [sys.executable, "-m", "omnidiff_jax.cli", *words])
    reached = read_metrics(tmp_path / "metrics.jsonl")[-1]["step"]
    assert 4 <= reached < 24
    done(omnidiff(*words))
    runs = [read_metrics(folder / "metrics.jsonl") for folder in (whole, tmp_path)]
    numbers = ("step", "stage", "loss", "task_loss", "noise_loss", "accuracy", "held_out_loss", "held_out_task_loss")
    one, other = ([{name: line.get(name) for name in numbers} for line in run] for run in runs)
    assert one == other
    # Started again, a finished run has nothing to do and says the same.
    before = (tmp_path / "metrics.jsonl").read_bytes()
    done(omnidiff(*words))
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_sampling_text_a_picture_and_speech(trained, omnidiff, tmp_path):
    _, workdir = trained

    def sample(*words):
        return omnidiff("sample", f"--workdir={workdir}", f"--out={tmp_path / 'answer'}", *words)

    # A model of a few steps may have nothing to say to one question, not to all of them.
    questions = ("how many objects", "what color is the circle", "what comes after three", "where is the square")
    said = [sample("--task=text_qa", f"--text={question}", "--steps=4") for question in questions]
    assert all(answer.returncode == 0 or "request is empty" in answer.stderr for answer in said)
    assert any(answer.returncode == 0 and answer.stdout.strip() for answer in said)
    assert done(sample("--task=t2i", "--text=small red circle top left, on white")).strip() == f"{tmp_path}/answer.png"
    with Image.open(tmp_path / "answer.png") as image:
        assert image.size == (64, 64) and image.mode == "RGB"
    spoken = sample("--task=tts", "--text=two")
    if spoken.returncode == 0:
        assert spoken.stdout.strip() == f"{tmp_path}/answer.wav"
        assert read_audio(tmp_path / "answer.wav").seconds > 0.05
    else:
        assert "request is empty" in spoken.stderr


def test_a_run_goes_to_the_released_form(trained, omnidiff, tmp_path):
    _, workdir = trained
    shown = done(omnidiff("convert", "--from=run", "--to=released", "--dtype=bfloat16", workdir, tmp_path / "released"))
    assert shown.startswith("omni: ")
    newest = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda folder: int(folder.name))
    with open_arrays(newest / "state", "params") as trained_arrays, open_released(tmp_path / "released") as written:
        head, kept = written.read("lm_head.weight"), trained_arrays.read("backbone/head").T
        codes = 2**10
        np.testing.assert_array_equal(head[:-codes], kept[:-codes].astype(head.dtype))
        np.testing.assert_array_equal(head[-codes:], summed(kept[-codes:], (6, 4)).astype(head.dtype))
    wrong = omnidiff("convert", "--from=run", "--to=orbax", workdir, tmp_path / "orbax")
    assert wrong.returncode == 2 and "convert that with --from=released" in wrong.stderr


def test_released_weights_are_fine_tuned_by_lora(trained, omnidiff, tmp_path):
    """Run -> released -> Orbax -> the start of another run, of which two steps train thin matrices alone."""
    config, workdir = trained
    done(omnidiff("convert", "--from=run", "--to=released", workdir, tmp_path / "released"))
    done(omnidiff("convert", "--from=released", "--to=orbax", tmp_path / "released", tmp_path / "orbax"))
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    (tuned / "data").symlink_to(workdir / "data")
    words = [f"--config.init.folder={tmp_path / 'orbax'}", "--config.lora.rank=2", "--config.total_steps=3"]
    words += ["--config.optimizer.algorithm=adamw"]  # Muon is for whole matrices
    done(omnidiff("train", f"--config={config}", f"--workdir={tuned}", *words))
    done(omnidiff("convert", "--from=run", "--to=released", tuned, tmp_path / "again"))
    with open_released(tmp_path / "released") as old, open_released(tmp_path / "again") as new:
        assert old.shapes == new.shapes
        changed = {name for name in old.shapes if not np.array_equal(old.read(name), new.read(name))}
    backbone = {name for name in changed if name.startswith("model.layers.")}
    assert backbone and all(name.endswith("_proj.weight") and ".self_attn." in name for name in backbone)
    assert {name.split(".")[1] for name in changed - backbone} <= {"audio_projection"}


def test_every_task_is_scored(trained, omnidiff):
    _, workdir = trained
    before = json.loads((workdir / "scorecard.json").read_text())
    assert list(before["tasks"]) == list(TASKS) and before["step"] == 24
    assert {"data", "train", "evaluate"} <= before["seconds"].keys()
    for entry in before["tasks"].values():
        assert entry["n"] == 2
        assert abs(entry["ceiling"] - entry["higher_is_better"]) < 0.6  # two words misheard of a few
    report = (workdir / "report.html").read_text()
    assert "http" not in report and report.count("data:image/png") > len(TASKS)
    shown = done(omnidiff("evaluate", f"--workdir={workdir}", "--cases=3", "--task=t2i"))
    after = json.loads((workdir / "scorecard.json").read_text())
    assert after["tasks"]["t2i"]["n"] == 3 and "t2i" in shown
    assert {k: v for k, v in after["tasks"].items() if k != "t2i"} == {
        k: v for k, v in before["tasks"].items() if k != "t2i"
    }
    assert after["seconds"]["train"] == before["seconds"]["train"]
    names = {path.name.split(".")[0].rstrip("_0123456789") for path in (workdir / "samples").iterdir()}
    assert set(TASKS) <= names


def test_a_run_is_served_as_it_is_sampled(trained, omnidiff, tmp_path):
    """In eight bits: the picture of the server is that of the command."""
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    _, workdir = trained
    text, words = "small red circle top left, on white", (f"--workdir={workdir}", "--quantize=int8")
    done(omnidiff("sample", *words, "--task=t2i", f"--text={text}", "--seed=3", f"--out={tmp_path / 'sampled'}"))
    command = [sys.executable, "-m", "omnidiff_jax.cli", "serve", *words, "--port=0", "--warm=none", "--name=tiny"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        url = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
        body = json.dumps({"model": "tiny", "prompt": text, "seed": 3, "response_format": "b64_json"}).encode()
        request = urllib.request.Request(f"{url}/v1/images/generations", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            drawn = base64.b64decode(json.load(answer)["data"][0]["b64_json"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
    finally:
        process.kill()
    with Image.open(tmp_path / "sampled.png") as sampled, Image.open(io.BytesIO(drawn)) as served:
        np.testing.assert_array_equal(np.asarray(served), np.asarray(sampled))
