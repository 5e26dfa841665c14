"""The held-out loss: on a mesh, over a resume, where it is told, and that it is never of what is trained on."""

import dataclasses
import json
import math

import jax
import numpy as np
import pod_worker
import pytest
from tensorboardX.proto.event_pb2 import Event
from toy_training import Regression, run

from experiments.checks.soak import compare
from experiments.common import load_config
from experiments.programs import READERS
from omnidiff_jax.data.readers import SourceConfig
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation import report
from omnidiff_jax.runs.config import RunConfig, run_config
from omnidiff_jax.runs.opening import fetch_run
from omnidiff_jax.sharding.mesh import MeshConfig, make_mesh
from omnidiff_jax.training.config import TrainingConfig
from omnidiff_jax.training.held_out import HeldOutLoss
from omnidiff_jax.training.loop import train
from omnidiff_jax.training.operations.goodput import Compilations
from omnidiff_jax.training.operations.metrics import read_metrics
from omnidiff_jax.training.optimizer import OptimizerConfig
from omnidiff_jax.training.run import Run

NANO, DREAM = "experiments/configs/nano.py", "experiments/configs/dream7b.py"


@pytest.fixture(scope="module")
def one():
    return jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])


def toy(every, bad=()):
    """Opens the held-out loss of the toy, on two batches."""
    program = Regression(bad)
    batches = [batch for batch, _ in zip(program.batches(99), range(2), strict=False)]
    return lambda: HeldOutLoss(program, batches, every, seed=3)


def timeless(folder):
    found = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if "second" not in name} for line in found]


def events(folder):
    """(tag, step, value) of the TensorBoard events of a run."""
    for file in sorted((folder / "tensorboard").iterdir()):
        content, at = file.read_bytes(), 0
        while at < len(content):
            size = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + size])
            at += 8 + 4 + size + 4
            yield from ((value.tag, event.step, value.simple_value) for value in event.summary.value)


class Watched:
    """A held-out loss that notes its results and how many programs each measurement compiled."""

    def __init__(self, held_out):
        self._held_out, self.compiled, self.found = held_out, [], []
        self.due = held_out.due

    def __call__(self, params):
        with Compilations() as compilations:
            self.found.append(self._held_out(params))
        self.compiled.append(compilations.count)
        return self.found[-1]


def model_run(folder, mesh, every=0, **options):
    """Trains the model of `pod_worker` in `folder`; the state, and the loss that was measured beside it."""
    program, opened = pod_worker.program(mesh, 0.0), []
    config = TrainingConfig(
        seed=5,
        batch_size=pod_worker.BATCH,
        stages=pod_worker.STAGES,
        optimizer=OptimizerConfig(frozen=(), ema_decay=0.5),
        checkpoint_every=3,
        total_steps=8,
    )

    def open_loss():
        opened.append(Watched(pod_worker.held_out(program, mesh, every)))
        return opened[-1]

    state = train(Run(config, program, mesh, held_out=open_loss if every else None), folder, **options)
    return state, opened


def test_on_a_mesh_training_is_bit_for_bit_the_same_and_nothing_is_compiled_twice(tmp_path):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    plain, _ = model_run(tmp_path / "plain", mesh)
    measured, (watched,) = model_run(tmp_path / "measured", mesh, every=3)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), plain, measured))
    lines = timeless(tmp_path / "measured")
    steps = [line for line in lines if "loss" in line]
    assert steps == timeless(tmp_path / "plain") and all("fingerprint" in line for line in steps)
    held_out = [line for line in lines if "loss" not in line]
    assert [line["step"] for line in held_out] == [0, 3, 6, 8]
    assert set(held_out[0]) == {
        "step", "held_out_loss", "held_out_accuracy", "held_out_task_loss", "held_out_task_accuracy"
    }  # fmt: skip
    assert set(held_out[0]["held_out_task_loss"]) == {"read", "draw"}
    assert watched.compiled[0] > 0 and watched.compiled[1:] == [0, 0, 0]
    assert json.loads((tmp_path / "measured" / "goodput.json").read_text())["recompilations"] == 0
    # Another mesh, and a start in the middle: the same batches under the same masks.
    model_run(tmp_path / "parts", mesh, every=3, stop_after=4)
    moved, (again,) = model_run(tmp_path / "parts", make_mesh(MeshConfig(data=8, fsdp=1)), every=3)
    told = timeless(tmp_path / "parts")
    assert [(line["step"], line.get("fingerprint")) for line in told] == [
        (line["step"], line.get("fingerprint")) for line in lines
    ]
    for ours, theirs in zip(told, lines, strict=True):
        name = "loss" if "loss" in theirs else "held_out_loss"
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5)


def test_a_resume_may_measure_at_other_steps_and_says_where_it_began(tmp_path, one):
    plain = run(tmp_path / "plain", one)
    run(tmp_path / "parts", one, held_out=toy(4), stop_after=5)
    run(tmp_path / "parts", one, stop_after=7)
    parts = run(tmp_path / "parts", one, held_out=toy(3))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), plain, parts))
    held_out = [line for line in timeless(tmp_path / "parts") if "held_out_loss" in line]
    assert [line["step"] for line in held_out] == [0, 4, 9, 10]
    first, last = (f"{held_out[i]['held_out_loss']:.4f}" for i in (0, -1))
    log = (tmp_path / "parts" / "logs" / "host-000.log").read_text()
    assert f"held-out loss {first} at step 0\n" in log
    assert f"held-out loss {last} at step 10 ({first} at step 0)\n" in log


def test_a_killed_runs_measurements_are_made_once_and_cost_no_steps(tmp_path, one):
    whole = run(tmp_path / "whole", one, held_out=toy(2))
    run(tmp_path / "killed", one, held_out=toy(2), stop_after=5)
    file = tmp_path / "killed" / "metrics.jsonl"
    after = [line for line in read_metrics(tmp_path / "whole" / "metrics.jsonl") if line["step"] in (6, 7, 8)]
    assert len(after) == 5
    file.write_text(file.read_text() + "".join(json.dumps(line) + "\n" for line in after))
    state = run(tmp_path / "killed", one, held_out=toy(2))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), whole, state))
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "whole")
    assert json.loads((tmp_path / "killed" / "goodput.json").read_text())["lost"]["steps"] == 3


def test_tensorboard_has_what_the_lines_have(tmp_path):
    model_run(tmp_path, make_mesh(MeshConfig(data=8, fsdp=1)), every=4)
    held_out = [line for line in timeless(tmp_path) if "held_out_loss" in line]
    shown = list(events(tmp_path))
    for name in ("held_out_loss", "held_out_accuracy"):
        assert [(step, value) for tag, step, value in shown if tag == name] == [
            (line["step"], pytest.approx(line[name], rel=1e-6)) for line in held_out
        ]
    assert [step for tag, step, _ in shown if tag == "held_out_task_loss/read"] == [0, 4, 8]


def test_the_reports_curve_has_a_dot_for_each_measurement(monkeypatch):
    figures = []
    monkeypatch.setattr(report, "_png_of_figure", lambda figure, dpi=90: figures.append(figure) or "")
    lines = [{"step": 0, "held_out_loss": 3.0}]
    lines += [{"step": step, "stage": "one", "loss": 3.0 / step, "task_loss": {"asr": 1.0}} for step in (1, 2, 3)]
    lines += [{"step": 2, "held_out_loss": None}, {"step": 3, "held_out_loss": 1.5, "held_out_task_loss": {"asr": 1}}]
    report._curves(lines)
    report._curves(lines[:1])  # refused at its first step
    dots, alone = ({x.get_label(): x for x in figure.axes[0].lines}["held out"] for figure in figures)
    assert dots.get_marker() == alone.get_marker() == "o" and list(alone.get_xdata()) == [0]
    np.testing.assert_array_equal(dots.get_xdata(), [0, 2, 3])
    np.testing.assert_array_equal(np.asarray(dots.get_ydata(), float), [3.0, np.nan, 1.5])
    learned = {x.get_label(): x for x in figures[0].axes[0].lines}["all tasks"]
    np.testing.assert_array_equal(learned.get_xdata(), [1, 2, 3])


def test_a_held_out_loss_that_is_no_number_stops_nothing(tmp_path, one):
    run(tmp_path, one, held_out=toy(5, bad=(1,)))
    found = [line["held_out_loss"] for line in timeless(tmp_path) if "held_out_loss" in line]
    assert found == [None] * 3
    assert "held-out loss nan at step 10\n" in (tmp_path / "logs" / "host-000.log").read_text()


def test_soak_compares_runs_that_measure(tmp_path, one):
    for name in ("whole", "soaked"):
        run(tmp_path / name, one, held_out=toy(4))
    file = tmp_path / "soaked" / "metrics.jsonl"
    same = compare(tmp_path / "whole", tmp_path / "soaked")
    assert same["steps"] == 10 and same["identical"] and same["same_samples"] and same["largest_difference"] == 0
    lines = read_metrics(file)
    lines[-1]["held_out_loss"] *= 1.01
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert math.isclose(compare(tmp_path / "whole", tmp_path / "soaked")["largest_difference"], 0.01, rel_tol=1e-6)


def test_one_flag_measures_the_test_splits_of_what_is_generated():
    assert run_config(load_config(NANO)).held_out_sources(READERS) == {}
    config = run_config(load_config(NANO, ["--config.held_out.every=500", "--config.held_out.examples=7"]))
    found = config.held_out_sources(READERS)
    assert list(found) == list(config.sources)
    for name, source in found.items():
        assert source == dataclasses.replace(config.sources[name], split="test", examples=7)
    mine = ["--config.data.sources.mine.reader=jsonl", "--config.data.sources.mine.path=SET.jsonl"]
    mine += ["--config.data.sources.mine.task=vqa", "--config.data.sources.mine.examples=9"]
    mine += ["--config.stages.stage1_visual_language.weights.mine=1", "--config.held_out.every=500"]
    config = run_config(load_config(NANO, mine))
    assert "mine" in config.sources and "mine" not in config.held_out_sources(READERS)


@pytest.mark.parametrize("word", ["encoded", "jsonl"])
def test_training_data_is_never_called_held_out(word):
    words = [f"--config.data.set={word}", "--config.data.folder=sets", "--config.held_out.every=5"]
    with pytest.raises(UserError, match=r"config\.held_out\.every = 5, but no source.*name config\.held_out\.sources"):
        run_config(load_config(NANO, words)).held_out_sources(READERS)


def test_held_out_sources_are_named_by_flags():
    name = "--config.held_out.sources"
    words = ["--config.held_out.every=5", f"{name}.vqa.reader=encoded", f"{name}.vqa.path=sets/held/vqa"]
    for file in (NANO, DREAM):
        config = run_config(load_config(file, words))
        assert config.held_out_sources(READERS) == {"vqa": SourceConfig("encoded", task="vqa", path="sets/held/vqa")}
    wrong = run_config(load_config(NANO, [*words, f"{name}.more.reader=jsnl"]))
    with pytest.raises(UserError, match=r"config\.held_out\.sources\.more\.reader.*jsonl"):
        fetch_run(wrong, READERS, fresh=False)


def test_a_resume_may_change_it():
    free = {field.name for field in dataclasses.fields(RunConfig) if field.metadata.get("resume") == "free"}
    assert "held_out" in free
