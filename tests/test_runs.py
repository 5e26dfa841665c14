"""A run as one value: what configs become, what a command line may add, and that runs of before go on."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_run import write_config

from experiments import train as train_command
from experiments.common import load_config
from experiments.programs import open_program
from omnidiff_jax.cli import guard
from omnidiff_jax.config import difference, to_dict
from omnidiff_jax.errors import UserError, notice
from omnidiff_jax.runs.config import RunConfig, run_config
from omnidiff_jax.runs.resume import check_resume
from omnidiff_jax.runs.stored import newest
from omnidiff_jax.training.config import TrainingConfig
from omnidiff_jax.training.loop import train
from omnidiff_jax.training.operations.metrics import read_metrics

# A run of commit 8c5560a, with its config's file and tokenizers of that time.
OLD = Path(__file__).parent / "golden" / "run_8c5560a"
NANO = "experiments/configs/nano.py"


@pytest.mark.parametrize("file", ["nano", "soak", "dream7b", "dream7b.py:v5p:4x4x4", "omni13b", "omni70b", "bench_mid"])
def test_a_config_is_a_value_and_json_and_back(file):
    name, _, slice_name = file.partition(".py:")
    config = load_config(f"experiments/configs/{name}.py" + (f":{slice_name}" if slice_name else ""))
    typed = run_config(config)
    again = run_config(json.loads(json.dumps(to_dict(typed))))
    assert again == typed and difference(again, typed) is None
    assert dataclasses.is_dataclass(RunConfig) and issubclass(RunConfig, TrainingConfig)
    with pytest.raises(dataclasses.FrozenInstanceError):
        typed.seed = 1


def test_sources_and_weights_are_added_by_the_command_line():
    stage = "--config.stages.stage1_visual_language.weights"
    words = [
        "--config.data.sources.mine.reader=jsonl",
        "--config.data.sources.mine.plain=0.5",
        "--config.data.sources.mine.path=my set.jsonl",
        "--config.data.sources.mine.task=vqa",
        f"{stage}.mine=1.5",
    ]
    config = run_config(load_config(NANO, words))
    assert config.sources["mine"].path == "my set.jsonl" and config.sources["mine"].task == "vqa"
    assert config.stages["stage1_visual_language"].weights["mine"] == 1.5
    assert config.groups[-1] == ("mine", "vqa") and config.groups[0] == ("text_qa", "text_qa")
    with pytest.raises(UserError, match="did you mean 'data.sources.asr.reader'"):
        load_config(NANO, ["--config.data.sources.asr.raeder=jsonl"])
    with pytest.raises(UserError, match="stages.stage9.weights.vqa"):
        load_config(NANO, ["--config.stages.stage9.weights.vqa=1"])
    with pytest.raises(UserError, match="must be float"):
        load_config(NANO, [f"{stage}.vqa=much"])


def test_a_run_is_cut_to_two_tasks_by_flags():
    kept = {"text_qa", "t2i"}
    stages = run_config(load_config(NANO)).stages
    words = [
        f"--config.stages.{name}.weights.{task}=0"
        for name, stage in stages.items()
        for task in stage.weights
        if task not in kept
    ]
    assert set(run_config(load_config(NANO, words)).sources) == kept


@pytest.mark.parametrize(("word", "path"), [("encoded", "sets/asr"), ("jsonl", "sets/asr.jsonl")])
def test_one_word_reads_every_source_from_a_folder(word, path):
    config = run_config(load_config(NANO, [f"--config.data.set={word}", "--config.data.folder=sets"]))
    assert {source.reader for source in config.sources.values()} == {word} and config.sources["asr"].path == path


def test_a_config_of_an_earlier_version_still_builds(tmp_path, monkeypatch):
    monkeypatch.chdir(OLD)
    found = newest(OLD / "run")
    assert found.step == 3 and found.config.sources["asr"].reader == "scenes"
    assert found.config.sources["asr"].examples == 20 and found.config.plan[1].name == "stage2_speech_vision_language"
    today = {"width": 16, "layers": 2, "heads": 2, "kv_heads": 2, "head_dim": 8, "hidden": 32}
    words = [f"--config.model.{name}={value}" for name, value in today.items()]
    words += ["--config.total_steps=6", "--config.batch_size=4", "--config.data.streams=2"]
    words += [f"--config.data.sources.{name}.examples=20" for name in found.config.sources]
    now = run_config(load_config(str(OLD / "nano.py"), words))
    now = dataclasses.replace(
        now, tokenizers=dataclasses.replace(now.tokenizers, fingerprint=found.config.tokenizers.fingerprint)
    )
    assert difference(found.config, now) is None


ADDED = {"reader": "jsonl", "path": "more.jsonl", "task": "text_qa"}


def with_source(name, weight=1.0, stage="stage1_visual_language", **fields):
    """Words that add a source to nano."""
    words = [f"--config.data.sources.{name}.{key}={value}" for key, value in (ADDED | fields).items()]
    return [*words, f"--config.stages.{stage}.weights.{name}={weight}"]


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ([], with_source("mine")),
        ([], [*with_source("mine"), *with_source("yours", task="asr", stage="stage2_speech_vision_language")]),
        (with_source("mine"), [*with_source("mine", path="moved.jsonl"), *with_source("yours")]),
        # Without a task no stage weighs it, and it is not read.
        ([], with_source("mine", weight=0.0, task="")),
        (with_source("mine", weight=0.0, task=""), with_source("mine", task="vqa")),
        (with_source("mine", weight=0.0, task=""), []),
    ],
)
def test_a_source_may_be_added_to_a_run_that_goes_on(then, now, capfd):
    old, new = (run_config(load_config(NANO, words)) for words in (then, now))
    notice.cache_clear()
    check_resume(old, new, "checkpoint 4")
    said, added = capfd.readouterr().err, sorted(new.sources.keys() - old.sources.keys())
    assert said == (f"new to this run, and drawn from here on: {', '.join(map(repr, added))}\n" if added else "")


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ([], "source 'mine', which this config does not have; put it back"),
        (with_source("yours"), "source 'mine', which this config does not have; call 'yours' 'mine' again"),
        (with_source("yours", path="b.jsonl"), "source 'mine', which this config does not have; put it back"),
        (with_source("mine", task="vqa"), "config.data.sources.mine.task = 'text_qa', this config has 'vqa'"),
        ([*with_source("mine", 2.0), *with_source("yours")], "weights.mine = 1.0, this config has 2.0"),
        (with_source("mine")[:-1], "weights.mine = 1.0, this config has nothing"),
    ],
)
def test_other_changes_of_sources_are_refused_in_words(now, words, capfd):
    old, new = (run_config(load_config(NANO, given)) for given in (with_source("mine"), now))
    with pytest.raises(UserError, match=words):
        check_resume(old, new, "checkpoint 4")
    assert capfd.readouterr().err == ""


def test_a_source_is_not_added_under_the_name_of_a_task_that_is_weighed():
    """The task's own sources would lose the weight to it."""
    source = {"reader": "jsonl", "path": "a.jsonl", "task": "asr"}
    stages = {"all": {"steps": 1, "weights": {"asr": 1.0}}}
    old, new, beside = (
        run_config({"batch_size": 1, "stages": stages, "data": {"sources": dict.fromkeys(names, source)}})
        for names in (["meetings"], ["meetings", "asr"], ["meetings", "talks"])
    )
    check_resume(old, beside, "checkpoint 4")
    with pytest.raises(UserError, match=r"config.data.sources.asr = nothing, this config has {'reader': 'jsonl'"):
        check_resume(old, new, "checkpoint 4")


GROWING = """
    config.batch_size = 8  # as many rows as the test session has devices
    config.data.open_rows = 4
    config.held_out.every = 0
    config.data.sources = type(config)({"one": {"reader": "jsonl", "path": "one.jsonl", "task": "text_qa"}})
    config.stages = type(config)({"only": {"steps": 6, "learning_rate": 1e-3, "weights": {"one": 1.0}}})
    return config
"""


def test_a_run_goes_on_with_one_more_source(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "growing.py"
    config.write_text(write_config(tmp_path).read_text().replace("    return config\n", GROWING.removeprefix("\n")))
    for name in ("one", "more"):
        turns = [
            [{"role": "user", "content": f"{name} {i}"}, {"role": "assistant", "content": "three"}] for i in range(9)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    command, given = train_command.COMMAND, [f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    more = with_source("more", stage="only")
    train(open_program(load_config(str(config)), tmp_path / "run"), tmp_path / "run", stop_after=2)
    (tmp_path / "moved").mkdir()
    (tmp_path / "one.jsonl").rename(tmp_path / "moved" / "renamed.jsonl")
    more.append("--config.data.sources.one.path=moved/renamed.jsonl")
    capfd.readouterr()
    assert guard(command.program, lambda: command.call(train_command.run, [*given, *more])) == 0
    assert capfd.readouterr().err.count("new to this run, and drawn from here on: 'more'") == 1
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert set(lines[1]["source_loss"]) == {"one"} and set(lines[-1]["source_loss"]) == {"one", "more"}
    assert guard(command.program, lambda: command.call(train_command.run, given)) == 2
    said = capfd.readouterr().err
    assert "checkpoint 6 of --workdir was trained on source 'more', which this config does not have" in said


def test_a_run_of_an_earlier_version_goes_on(tmp_path, monkeypatch):
    """Its config, its arrays and its place in the data: the steps that follow are the ones it would have taken."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    config = newest(tmp_path / "run").config
    model = ("width", "layers", "heads", "kv_heads", "head_dim", "hidden")
    words = [f"--config.model.{name}={getattr(config.model, name)}" for name in model]
    words += ["--config.total_steps=6", "--config.batch_size=4", "--config.data.streams=2"]
    words += [f"--config.data.sources.{name}.examples=20" for name in config.sources]
    words += [f"--config.tokenizers.{name}=tokenizers/{name}" for name in ("speech_encoder", "speech_tokenizer")]
    words += ["--config.tokenizers.speech_decoder=tokenizers/speech_decoder", "--config.mesh.fsdp=1"]
    words += ["--config.tokenizers.text=tokenizers/text", "--config.tokenizers.image=tokenizers/image_tokenizer"]
    words += ["--config.mesh.data=4", "--config.mesh.tensor=2"]  # the eight devices of a test
    command = train_command.COMMAND
    given = ["--config=nano.py", f"--workdir={tmp_path / 'run'}", *words]
    assert guard(command.program, lambda: command.call(train_command.run, given)) == 0
    then, now = read_metrics(OLD / "metrics.jsonl"), read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in now] == [4, 5, 6]
    assert [line["fingerprint"] for line in now] == [line["fingerprint"] for line in then[3:]]
    np.testing.assert_allclose([line["loss"] for line in now], [line["loss"] for line in then[3:]], rtol=1e-4)
    assert set(now[0]["source_loss"]) == set(now[0]["task_loss"]) and now[0]["learning_rate"] > 0
