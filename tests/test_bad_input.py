"""Requests, runs and exams that cannot be: a status, one line saying what and where, and no half files."""

import dataclasses
import itertools
import json
import shutil

import pytest
from bad_toys import RATE, VQA, manifest, tone, vqa_config, write_media

from experiments import data as data_command
from experiments import evaluate as evaluate_command
from experiments import sample as sample_command
from experiments import train as train_command
from experiments.checks.untrained import untrained
from experiments.common import load_config
from omnidiff_jax.answering.load import denoiser
from omnidiff_jax.cli import guard
from omnidiff_jax.codecs.tokenizers import open_tokenizers
from omnidiff_jax.media.audio import write_wav
from omnidiff_jax.records import Waveform
from omnidiff_jax.runs.config import run_config
from omnidiff_jax.runs.stored import newest, open_here, restore
from omnidiff_jax.sharding.mesh import MeshConfig
from omnidiff_jax.training.digest import write_digest


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, media):
    """(config file, workdir): one stage of VQA on an encoded set, and a checkpoint of its first state."""
    folder = tmp_path_factory.mktemp("tiny")
    config = vqa_config(folder)
    words = [f"--config={config}", "--task=vqa", f"--jsonl={manifest(media, *[VQA] * 8)}"]
    data_command.COMMAND.call(data_command.run, ["build", str(folder / "sets"), *words])
    untrained(load_config(str(config)), folder / "run")
    return config, folder / "run"


@pytest.fixture
def sampling(refusal, tiny, tmp_path):
    """`omnidiff sample` that must refuse and leave no file."""

    def run(*words):
        said = refusal(sample_command, f"--workdir={tiny[1]}", f"--out={tmp_path / 'answer'}", *words)
        assert list(tmp_path.iterdir()) == []
        return said

    return run


def test_a_run_of_another_program(refusal, tiny, tmp_path):
    shutil.copytree(tiny[1], tmp_path / "run")
    (stored,) = (tmp_path / "run" / "checkpoints").glob("*/config/metadata")
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"program": "speech_encoder"}))
    write_digest(stored.parents[1])
    for module, words in ((sample_command, ("--task=text_qa", "--text=hi")), (evaluate_command, ())):
        said = refusal(module, f"--workdir={tmp_path / 'run'}", *words)
        assert "trained the speech_encoder; name the folder of a run of the whole model" in said


def test_other_tokenizers_than_the_runs(refusal, tiny, tmp_path):
    shutil.copytree(tiny[1], tmp_path / "run")
    (stored,) = (tmp_path / "run" / "checkpoints").glob("*/config/metadata")
    kept = json.loads(stored.read_text())
    kept["tokenizers"]["fingerprint"] = "those of before"
    stored.write_text(json.dumps(kept))
    write_digest(stored.parents[1])
    said = refusal(sample_command, f"--workdir={tmp_path / 'run'}", "--task=text_qa", "--text=hi")
    assert "was trained with other tokenizers" in said and "those of before" in said
    said = refusal(train_command, f"--config={tiny[0]}", f"--workdir={tmp_path / 'run'}")
    assert "config.tokenizers.fingerprint = 'those of before', this config has" in said


def test_a_run_answers_on_other_devices_with_its_own_alignment(tiny):
    """Its mesh and attention are not to be had here; its loss's predictor is the sampler's."""
    words = ["--config.mesh.tensor=3", "--config.model.attention=splash"]
    found = newest(tiny[1])
    config = run_config(load_config(str(tiny[0]), words))
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, alignment="same_position"))
    run = open_here(config, open_tokenizers(config.tokenizers))
    assert run.config.model.attention == "chunked" and run.config.mesh == MeshConfig(fsdp=-1)
    assert config.model.attention == "splash"
    assert denoiser(run, run.program.whole(restore(found, run))).alignment == "same_position"


def test_a_misspelt_task_is_answered_with_the_nearest(refusal, tiny):
    workdir = f"--workdir={tiny[1]}"
    for module in (sample_command, evaluate_command):
        assert "did you mean 't2i'?" in refusal(module, workdir, "--task=t2j")
    assert "--task" in refusal(sample_command, workdir)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("absent.png", "absent.png does not exist"),
        ("cut.png", "cut.png is damaged"),
        ("text.png", "text.png is not a readable image"),
        ("good.wav", "good.wav is not a readable image"),
    ],
)
def test_pictures_that_cannot_be_used(sampling, media, file, expected):
    assert expected in sampling("--task=vqa", "--text=what is it", f"--image={media / file}")


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("absent.wav", "absent.wav does not exist"),
        ("cut.wav", "cut.wav is cut short"),
        ("text.wav", "text.wav is not readable audio"),
        ("empty.wav", "empty.wav is empty"),
        ("silent.wav", "silent.wav has 0 samples"),
        ("nan.wav", "nan.wav holds 1 NaN or infinite samples, the first at 77"),
    ],
)
def test_sounds_that_cannot_be_used(sampling, media, file, expected):
    assert expected in sampling("--task=asr", f"--audio={media / file}")


def test_requests_that_do_not_fit(sampling, media):
    assert "needs --audio" in sampling("--task=asr")
    assert "does not take --image" in sampling("--task=t2i", "--text=red", f"--image={media / 'good.png'}")
    assert "must be four whole numbers" in sampling(
        "--task=inpainting", "--text=red", "--hole=1,2,3", f"--image={media / 'good.png'}"
    )
    assert "must be a box" in sampling(
        "--task=inpainting", "--text=red", "--hole=0,0,65,9", f"--image={media / 'good.png'}"
    )
    assert "must end with .png" in sampling("--task=t2i", "--text=red", "--out=answer.jpg")
    assert "--steps=0" in sampling("--task=t2i", "--text=red", "--steps=0")
    assert "has the length of a picture" in sampling("--task=t2i", "--text=red", "--length=9")
    for value in ("-1", "nan"):
        assert "temperature" in sampling("--task=t2i", "--text=red", f"--temperature={value}")
    assert "--seed=4294967296 must be below 2^32" in sampling("--task=t2i", "--text=red", "--seed=4294967296")
    assert "<|image|>" in sampling("--task=t2i", "--text=red <|image|>")


def test_requests_over_the_canvas(sampling, tiny, tmp_path_factory):
    limit = f"the canvas has {load_config(str(tiny[0])).data.length};"
    said = sampling("--task=text_qa", f"--text={'word ' * 500}")
    assert limit in said and "shorten" in said
    long = tmp_path_factory.mktemp("long") / "long.wav"
    write_wav(long, Waveform(tone(60.0), RATE))
    assert limit in sampling("--task=asr", f"--audio={long}")


@pytest.mark.parametrize("file", ["good.wav", "8bit.wav", "96k.wav", "stereo.wav"])
def test_odd_sounds_are_taken(tiny, media, tmp_path, capfd, file):
    words = [
        f"--workdir={tiny[1]}",
        "--task=s2i",
        f"--audio={media / file}",
        f"--out={tmp_path / 'drawn'}",
        "--steps=2",
    ]
    capfd.readouterr()
    command = sample_command.COMMAND
    assert guard(command.program, lambda: command.call(sample_command.run, words)) == 0
    assert capfd.readouterr().out == f"{tmp_path / 'drawn.png'}\n" and (tmp_path / "drawn.png").stat().st_size > 100


def test_folders_without_a_run(refusal, tiny, tmp_path):
    for module, words in ((sample_command, ("--task=text_qa", "--text=hi")), (evaluate_command, ())):
        said = refusal(module, f"--workdir={tmp_path / 'absent'}", *words)
        assert "no checkpoints in" in said and "omnidiff train" in said
        (tmp_path / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)
        assert "no checkpoints in" in refusal(module, f"--workdir={tmp_path / 'run'}", *words)
    assert not (tmp_path / "absent").exists()


def test_another_config_is_refused_before_data_are_built(refusal, tiny, tmp_path):
    shutil.copytree(tiny[1], tmp_path / "run")
    generated = (f"--config={tiny[0].with_name('tiny.py')}", "--config.batch_size=8")
    said = refusal(train_command, *generated, f"--workdir={tmp_path / 'run'}")
    assert "checkpoint 1 of --workdir was trained with config." in said
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"]


def test_a_checkpoint_of_another_config(refusal, tiny):
    config, workdir = tiny
    before = sorted(path.relative_to(workdir) for path in workdir.rglob("*"))
    said = refusal(train_command, f"--config={config}", f"--workdir={workdir}", "--config.model.layers=3")
    assert "was trained with config.model.layers = 2, this config has 3" in said and "value of before" in said
    assert sorted(path.relative_to(workdir) for path in workdir.rglob("*")) == before


def test_a_config_beside_a_trained_run(sampling, tiny):
    said = sampling("--task=vqa", "--config=experiments/configs/nano.py")
    assert "has a config of its own" in said
    said = sampling("--task=vqa", "--config.model.layers=3")
    assert "--config.model.layers=3: a trained model stays as it is; only --config.decoding" in said
    said = sampling("--task=vqa", "--config.decoding.vqa.sampler.guidance.scal=3")
    assert "did you mean 'decoding.vqa.sampler.guidance.scale'?" in said


def asked(*turns):
    """A line of questions and answers in turn."""
    pairs = zip(itertools.cycle(["user", "assistant"]), [*turns, "four"][: len(turns) + len(turns) % 2])
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


def test_an_exam_of_which_nothing_can_be_asked(tiny, media, tmp_path, refusal):
    words = [f"--workdir={tiny[1]}", f"--out={tmp_path}"]
    file = manifest(media, asked("what is it", "a", "and now", "b"), VQA | {"images": ["absent.png"]})
    said = refusal(evaluate_command, *words, "--exam=jsonl", "--task=text_qa", f"--data={file}")
    assert "has no line of text_qa for an exam" in said and f"{file}, record 1: more than one question" in said
    said = refusal(evaluate_command, *words, "--exam=jsonl", "--task=vqa", f"--data={file}")
    assert "has no line of vqa" in said and f"{file}, record 2: missing image" in said
    file = manifest(media, asked("Сколько будет"), asked("два и два"))
    said = refusal(evaluate_command, *words, "--exam=jsonl", f"--data={file}")
    assert "exam of text_qa: the model can be asked none of 2 cases" in said and f"{file}, record 2: " in said
    said = refusal(evaluate_command, *words, "--exam=scenes", f"--data={file}")
    assert f"--data={file}: no exam of scenes reads it; add --exam=jsonl" in said
    assert not list(tmp_path.iterdir())


def test_an_exam_of_ones_own_lines(tiny, media, tmp_path, refusal, capfd):
    lines = [
        VQA,
        VQA | {"images": ["absent.png"]},
        {"messages": [{"role": "user", "content": "two and two"}, {"role": "assistant", "content": "four"}]},
    ]
    odd = [asked("Сколько будет два и два"), asked("two and " * 400), asked("what is it", "a", "and now", "b"), "{"]
    file = manifest(media, *lines, *odd, *[VQA] * 2)
    words = [f"--workdir={tiny[1]}", f"--out={tmp_path}", "--exam=jsonl"]
    assert "--exam=jsonl needs --data: a JSONL manifest" in refusal(evaluate_command, *words)
    assert "--exam is missing: this run learned from encoded" in refusal(evaluate_command, *words[:2])
    assert "did you mean 'scenes'" in refusal(evaluate_command, *words[:2], "--exam=scene")
    command = evaluate_command.COMMAND
    given = [*words, f"--data={file}"]
    assert guard(command.program, lambda: command.call(evaluate_command.run, given)) == 0, capfd.readouterr().err
    said = capfd.readouterr().err
    assert f"{file}: 1 of 9 lines are passed over; line is not JSON" in said
    assert f"exam of text_qa: 3 of 4 cases are passed over; {file}, record 6: more than one question" in said
    assert f"{file}, record 4: task text_qa: the model was never taught" in said
    assert f"{file}, record 5: " in said and "shorten the prompt" in said
    assert f"exam of vqa: 1 of 4 cases are passed over; {file}, record 2: missing image" in said
    scorecard = json.loads((tmp_path / "scorecard.json").read_text())
    assert scorecard["tasks"] == {} and scorecard["exams"]["jsonl"]["n"] == 4
    assert scorecard["exams"]["jsonl"]["skipped"] == 4 and scorecard["exams"]["jsonl"]["of"] == 8
    assert {name: entry["n"] for name, entry in scorecard["exams"]["jsonl"]["tasks"].items()} == {
        "text_qa": 1,
        "vqa": 3,
    }
    assert all(entry["ceiling"] == 1.0 for entry in scorecard["exams"]["jsonl"]["tasks"].values())
    assert len((tmp_path / "predictions" / "jsonl" / "vqa.jsonl").read_text().splitlines()) == 3
