"""Manifests with faults: what is bad is counted with its reason, the rest is used, and nothing is half built."""

import json
import shutil

import pytest
from bad_toys import VQA, manifest, vqa_config, write_media

from experiments import data as data_command
from experiments import train as train_command
from experiments.common import load_config
from omnidiff_jax.cli import guard
from omnidiff_jax.codecs.tokenizers import open_tokenizers
from omnidiff_jax.data.storage import EncodedSet
from omnidiff_jax.runs.config import run_config
from omnidiff_jax.training.operations.metrics import read_metrics


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return vqa_config(tmp_path_factory.mktemp("tiny"))


def test_jsonl_is_trained_on_past_its_faults(config, media, tmp_path, capfd):
    """Media encoded while training; what cannot be used is counted in the metrics."""
    bad = [VQA | {"images": ["absent.png"]}, VQA | {"images": ["cut.png"]}]
    lines = "".join(json.dumps(line) + "\n" for line in (*[VQA] * 4, *bad, *[VQA] * 6))
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "vqa.jsonl").write_text(lines)
    for name in ("good.png", "cut.png"):
        shutil.copy(media / name, tmp_path / "raw")
    words = [f"--config={config}", f"--workdir={tmp_path / 'run'}", "--config.data.set=jsonl"]
    words += [f"--config.data.folder={tmp_path / 'raw'}"]
    command = train_command.COMMAND
    assert guard(command.program, lambda: command.call(train_command.run, words)) == 0, capfd.readouterr().err
    counted = [line["rejected"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "rejected" in line]
    assert set(counted[-1]) == {"vqa: missing image", "vqa: unusable image"} and min(counted[-1].values()) >= 1


def test_bad_lines_are_counted_and_the_rest_is_used(config, media, tmp_path, capsys):
    hear = {
        "messages": [{"role": "user", "content": "<|audio|>\n<|image|>"}, {"role": "assistant", "content": "yes"}],
        "images": ["good.png"],
    }
    lines = manifest(
        media,
        VQA,
        '{"messages": [',
        VQA | {"images": ["absent.png"]},
        VQA | {"images": ["cut.png"]},
        VQA | {"images": []},
        VQA | {"messages": VQA["messages"][:1]},
        *(
            hear | {"audios": [name]}
            for name in ("absent.wav", "silent.wav", "nan.wav", "96k.wav", "stereo.wav", "8bit.wav")
        ),
    )
    expected = {
        "line is not JSON": 1,
        "missing image": 1,
        "unusable image": 1,
        "images do not match the tags": 1,
        "no assistant message": 1,
        "missing audio": 1,
        "unusable audio": 2,
    }
    command = data_command.COMMAND
    assert guard(command.program, lambda: command.call(data_command.run, ["check", str(lines), "--json"])) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["accepted"] == 4 and report["rejected"] == expected
    # The first line is heard nowhere: as a sample of this task, checking and building leave it out alike.
    expected["not a sample of its task"] = 1
    words = ["check", str(lines), "--task=spoken_vqa", "--json"]
    assert guard(command.program, lambda: command.call(data_command.run, words)) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["accepted"] == 3 and report["rejected"] == expected
    words = ["build", str(tmp_path / "sets"), f"--config={config}", "--task=spoken_vqa", f"--jsonl={lines}", "--json"]
    assert guard(command.program, lambda: command.call(data_command.run, words)) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])["spoken_vqa"]
    assert report["examples"] == 3 and report["rejected"] == expected


def test_sdvi_is_built_from_written_questions(capfd, refusal, media, tmp_path):
    def pair(question, answer):
        turns = [{"role": "user", "content": f"{question}\n<|image|>"}, {"role": "assistant", "content": answer}]
        return {"messages": turns, "images": VQA["images"]}

    written = manifest(media, pair("what is in the picture", "a red circle"), pair("what is 3 + 4", "7"))
    command = data_command.COMMAND
    words = ["build", str(tmp_path / "sdvi"), "--task=spoken_vqa", f"--sdvi={written}", "--json"]
    assert guard(command.program, lambda: command.call(data_command.run, words)) == 0
    report = json.loads(capfd.readouterr().out.splitlines()[-1])["spoken_vqa"]
    assert report.pop("seconds")["spoken"] > 1.0
    assert report == {"accepted": 1, "rewritten": 0, "clips": 2, "rejected": {"mathematics": 1}}
    (line,) = (tmp_path / "sdvi" / "data.jsonl").read_text().splitlines()
    assert len(json.loads(line)["audios"]) == 2, "the question and the answer are spoken"
    assert "--sdvi needs --task" in refusal(data_command, "build", tmp_path / "other", f"--sdvi={written}")
    assert "sdvi.task = 'asr'" in refusal(data_command, *words[:1], tmp_path / "other", "--task=asr", words[3])
    settings = tmp_path / "sdvi.json"
    settings.write_text(json.dumps({"source": {"reader": "jsonl"}, "task": "spoken_vqa", "speeker": {}}))
    assert "did you mean 'speaker'?" in refusal(data_command, "build", tmp_path / "other", f"--sdvi={settings}")


def test_manifests_that_cannot_be_built(refusal, config, media, tmp_path):
    given = f"--config={config}"
    good = manifest(media, VQA)
    absent = refusal(data_command, "check", tmp_path / "absent.jsonl")
    assert "cannot read" in absent and "absent.jsonl" in absent
    assert "--jsonl needs --task" in refusal(data_command, "build", tmp_path / "a", given, f"--jsonl={good}")
    assert "did you mean 'build'?" in refusal(data_command, "biuld", tmp_path / "a", given)
    (tmp_path / "taken" / "vqa").mkdir(parents=True)
    (tmp_path / "taken" / "vqa" / "something").touch()
    said = refusal(data_command, "build", tmp_path / "taken", given, "--task=vqa", f"--jsonl={good}")
    assert "exists already" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


def test_samples_train_the_task_that_is_asked_for(capfd, config, media, tmp_path):
    """Whatever their lines say, or their media amount to; a task that does not exist is rejected with its reason."""
    command = data_command.COMMAND
    lines = manifest(media, VQA, VQA | {"task": "text_qa"})
    words = ["build", str(tmp_path), f"--config={config}", "--task=captioning", f"--jsonl={lines}"]
    assert guard(command.program, lambda: command.call(data_command.run, words)) == 0
    found = EncodedSet(
        tmp_path / "captioning", open_tokenizers(run_config(load_config(str(config))).tokenizers).fingerprint
    )
    assert [found[i].task for i in range(len(found))] == ["captioning"] * 2
    capfd.readouterr()
    lines = manifest(media, VQA, VQA | {"task": "foo"})
    assert guard(command.program, lambda: command.call(data_command.run, ["check", str(lines), "--json"])) == 0
    report = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert report["accepted"] == 1 and report["rejected"] == {"unknown task": 1}
