"""The training loop on a toy program: resume, stages, accumulation, refusal, full disk."""

import dataclasses
import json
import os
import resource
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_training import OPTIMIZER, STAGES, Regression, run

from omnidiff_jax.config import difference
from omnidiff_jax.data.mixture import Stage, scale_stages, stage_at
from omnidiff_jax.errors import UserError
from omnidiff_jax.sharding.mesh import MeshConfig
from omnidiff_jax.training.checkpoint import CheckpointConfig, Checkpointer
from omnidiff_jax.training.config import TrainingConfig
from omnidiff_jax.training.held_out import HeldOutLoss
from omnidiff_jax.training.operations.metrics import read_metrics
from omnidiff_jax.training.optimizer import OptimizerConfig, make_optimizer, split_params, stage_schedule
from omnidiff_jax.training.step import eval_params, init_state, make_train_step


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])


def test_stopped_and_resumed_run_equals_uninterrupted_run(tmp_path, mesh):
    whole = run(tmp_path / "whole", mesh)
    for stop in (3, 7, None):
        parts = run(tmp_path / "parts", mesh, stop_after=stop)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), whole, parts))
    runs = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    lines = [[{k: v for k, v in line.items() if "second" not in k} for line in run] for run in runs]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == list(range(1, 11))
    assert [line["stage"] for line in lines[0]] == ["one"] * 6 + ["two"] * 4


def test_the_held_out_loss_changes_nothing_and_is_measured_once_a_step(tmp_path, mesh):
    program = Regression()
    batches = [batch for batch, _ in zip(program.batches(99), range(2), strict=False)]

    def held_out():
        return HeldOutLoss(program, batches, every=4, seed=3)

    plain = run(tmp_path / "plain", mesh)
    whole = run(tmp_path / "whole", mesh, held_out=held_out)
    for stop in (2, 3, 8, None):  # 2 and 3 are no multiples of a measurement, 8 is one
        parts = run(tmp_path / "parts", mesh, held_out=held_out, stop_after=stop)
    for other in (whole, parts):
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), plain, other))
    lines = {name: read_metrics(tmp_path / name / "metrics.jsonl") for name in ("plain", "whole", "parts")}
    steps = {name: [{k: v for k, v in x.items() if "second" not in k} for x in found] for name, found in lines.items()}
    assert steps["whole"] == steps["parts"]
    assert [line for line in steps["whole"] if "loss" in line] == steps["plain"]
    measured = [line for line in steps["whole"] if "held_out_loss" in line]
    assert [line["step"] for line in measured] == [0, 4, 8, 10]
    assert measured[-1]["held_out_loss"] < measured[0]["held_out_loss"]
    loss = [float(program.loss(eval_params(whole), batch, jax.random.key(0), 0)[0]) for batch in batches]
    weight = [batch["weight"].sum() for batch in batches]
    assert measured[-1]["held_out_loss"] == pytest.approx(np.average(loss, weights=weight), rel=1e-5)
    assert json.loads((tmp_path / "whole" / "goodput.json").read_text())["seconds"]["held_out"] > 0


def test_frozen_parameters_and_average(tmp_path, mesh):
    state = run(tmp_path, mesh)
    assert float(state.params["held"]["b"]) == 1.0
    assert set(state.ema) == {"free/w"}
    averaged = eval_params(state)
    assert not np.allclose(averaged["free"]["w"], state.params["free"]["w"])
    assert float(averaged["held"]["b"]) == 1.0


def test_refused_step_keeps_parameters_and_names_samples(tmp_path, mesh):
    state = run(tmp_path / "one", mesh, Regression(bad=(2,)))
    assert np.isfinite(state.params["free"]["w"]).all()
    lines = read_metrics(tmp_path / "one" / "metrics.jsonl")
    assert [line["step"] for line in lines if "refused" in line] == [3]
    assert lines[2]["refused"] == "sample 2" and lines[2]["loss"] is None
    with pytest.raises(UserError, match="2 steps in a row.*step 5.*sample 4"):
        run(tmp_path / "two", mesh, Regression(bad=(3, 4)))


def test_checkpoint_of_another_config_is_refused(tmp_path, mesh):
    run(tmp_path, mesh, stop_after=4)
    run(tmp_path, mesh, stop_after=5, checkpoint_every=5, mesh=MeshConfig(data=-1, fsdp=1))
    with pytest.raises(UserError, match=r"config\.optimizer\.b2 = 0.95, this config has 0.9; give it the value"):
        run(tmp_path, mesh, optimizer=dataclasses.replace(OPTIMIZER, b2=0.9))
    with pytest.raises(UserError, match=r"config\.stages\.two\.learning_rate = 0.001, this config has 0.1"):
        run(tmp_path, mesh, stages=STAGES | {"two": Stage(4, 0.1)})
    assert difference({"heads": [1, (2, 3)]}, {"heads": (1, [2, 4])}, "model") == ("model.heads[1][1]", 3, 4)
    assert difference(OPTIMIZER, dataclasses.replace(OPTIMIZER, moments_on="host")) is None


def test_what_may_differ_on_resume_stands_with_the_fields():
    free = {f.name for f in dataclasses.fields(TrainingConfig) if f.metadata.get("resume") == "free"}
    assert free == {
        "accumulate", "checkpoint_every", "keep_checkpoints", "keep_period", "operations", "mesh", "sharding", "slice",
        "compilation_cache",
    }  # fmt: skip


def test_restore_into_other_shapes_names_the_folder(tmp_path, mesh):
    run(tmp_path, mesh, stop_after=4)

    class Wider(Regression):
        def init(self, key):
            return {"free": {"w": jnp.zeros(5)}, "held": {"b": jnp.ones(())}}

    with pytest.raises(UserError, match="does not fit this config"):
        run(tmp_path, mesh, Wider())
    with pytest.raises(UserError, match="train there first"):
        Checkpointer(tmp_path / "nothing", CheckpointConfig(), read_only=True)


def test_accumulated_step_equals_undivided_step():
    program = Regression()
    batch = next(program.batches(0))
    tx = make_optimizer(OPTIMIZER, lambda step: 0.1)
    start = init_state(program.init(jax.random.key(0)), tx, OPTIMIZER)
    results = []
    for pieces in (1, 2, 4):
        step = jax.jit(make_train_step(program.loss, tx, OPTIMIZER, seed=0, accumulate=pieces))
        results.append(step(start, batch))
    for state, metrics in results[1:]:
        np.testing.assert_allclose(state.params["free"]["w"], results[0][0].params["free"]["w"], rtol=1e-5)
        np.testing.assert_allclose(metrics["loss"], results[0][1]["loss"], rtol=1e-5)
        np.testing.assert_allclose(metrics["sum/tokens"], batch["weight"].sum(), rtol=1e-6)


def test_muon_turns_every_direction_of_a_matrix_equally_and_leaves_the_rest_to_adamw():
    name = "backbone/layers/attention/query/kernel"
    params = {name: jnp.zeros((2, 8, 2, 4)), "backbone/head": jnp.zeros((8, 9))}
    grads = {key: jax.random.normal(jax.random.key(0), leaf.shape) for key, leaf in params.items()}
    config = OptimizerConfig(algorithm="muon", matrix_rate=4.0)
    tx, adamw = make_optimizer(config, lambda step: 0.01), optax.adamw(0.01, 0.9, 0.95, nesterov=True)
    updates, _ = tx.update(grads, tx.init(params), params)
    singular = np.linalg.svd(np.asarray(updates[name]).reshape(2, 8, 8), compute_uv=False)
    assert (singular > 0.5 * 0.04).all() and (singular < 1.3 * 0.04).all(), "of the gradient they span a factor of 100"
    head = {"backbone/head": grads["backbone/head"] / optax.global_norm(grads)}
    expected, _ = adamw.update(head, adamw.init(head), {"backbone/head": params["backbone/head"]})
    np.testing.assert_allclose(updates["backbone/head"], expected["backbone/head"], rtol=1e-5)
    with pytest.raises(UserError, match="no layers of the backbone"):
        tx.init({"decoder/kernel": jnp.zeros((3, 3))})


def test_slow_parameters_move_by_their_share():
    params = {"encoder/kernel": jnp.ones((3, 2)), "head/kernel": jnp.ones((3, 2))}
    grads = {key: jax.random.normal(jax.random.key(0), leaf.shape) for key, leaf in params.items()}
    whole, slow = (
        make_optimizer(OptimizerConfig(weight_decay=0.1, slow=patterns, slow_rate=0.25), lambda step: 0.01)
        for patterns in ((), ("encoder/*",))
    )
    expected, _ = whole.update(grads, whole.init(params), params)
    updates, _ = slow.update(grads, slow.init(params), params)
    np.testing.assert_allclose(updates["encoder/kernel"], 0.25 * expected["encoder/kernel"], rtol=1e-6)
    np.testing.assert_array_equal(updates["head/kernel"], expected["head/kernel"])


def test_schedule_warms_up_and_decays_in_every_stage():
    schedule = stage_schedule([100, 50], [1.0, 0.1], OptimizerConfig(warmup_fraction=0.1))
    values = np.array([float(schedule(i)) for i in range(150)])
    assert values[0] > 0 and values[9] == pytest.approx(1.0) and values[98] < 0.01
    assert values[99] < 0.01 and values[100:].max() == pytest.approx(0.1) and values[149] < 0.002
    kept = stage_schedule([100, 50], [1.0, 0.1], OptimizerConfig(warmup_fraction=0.1), [0.5, None])
    assert float(kept(99)) == pytest.approx(0.5), "a stage's last update is its own, not the next one's warm-up"
    with pytest.raises(UserError):
        stage_schedule([1, 2], [0.1], OptimizerConfig())


def test_stages_scale_in_proportion():
    stages = tuple(STAGES.values())
    assert [s.steps for s in scale_stages(stages, 5)] == [3, 2]
    assert [s.steps for s in scale_stages(stages, 1)] == [1]
    assert all(sum(s.steps for s in scale_stages(stages, n)) == n for n in range(1, 10))
    assert scale_stages(stages, 0) == stages == scale_stages(stages, 99)
    assert [stage_at(stages, i) for i in (0, 5, 6, 9, 50)] == [0, 0, 1, 1, 1]
    capped = TrainingConfig(batch_size=1, stages=STAGES, total_steps=5)
    assert [(stage.name, stage.steps) for stage in capped.plan] == [("one", 3), ("two", 2)]


def test_split_params_by_rule():
    trainable, held = split_params({"a": {"b": 1, "c": 2}, "d": {"e": {"f": 3}}}, ("a/c", "d/*"))
    assert trainable == {"a/b": 1} and held == {"a/c": 2, "d/e/f": 3}


FULL_DISK = """
    import resource, sys
    import numpy as np, jax.numpy as jnp
    from omnidiff_jax.errors import UserError
    from omnidiff_jax.training.checkpoint import CheckpointConfig, Checkpointer
    saver = Checkpointer(sys.argv[1], CheckpointConfig(keep=2))
    noise = np.random.default_rng(0).normal
    saver.save(1, {"w": jnp.asarray(noise(size=1000))}, {}, {}); saver.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # a write past this fails like a full disk
    try:
        saver.save(2, {"w": jnp.asarray(noise(size=1_000_000))}, {}, {}); saver.wait()
    except UserError as error:
        print("refused:", error)
    else:
        print("saved")
"""


def test_full_disk_while_saving_keeps_the_old_checkpoint(tmp_path):
    code = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" + textwrap.dedent(FULL_DISK)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120, env=dict(os.environ)
    )
    assert "refused: could not save" in done.stdout and "checkpoint 1 is whole" in done.stdout, done.stderr[-2000:]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 200_000
    saver = Checkpointer(tmp_path, CheckpointConfig(), read_only=True)
    assert saver.latest() == 1
    assert json.dumps(saver.config()) == "{}"
