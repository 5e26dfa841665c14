"""What watches a run: damaged checkpoints, SIGTERM, goodput, policies for bad steps, watchdog, profile, launchers."""

import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from toy_training import OPTIMIZER, Regression, run

from omnidiff_jax.cli import guard
from omnidiff_jax.data.mixture import Stage
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.backbone import BackboneConfig
from omnidiff_jax.models.flops import matrix_parameters, train_flops
from omnidiff_jax.sharding.distributed import detect, initialize
from omnidiff_jax.signals import PREEMPTED
from omnidiff_jax.training.checkpoint import CheckpointConfig, Checkpointer
from omnidiff_jax.training.digest import damage, write_digest, write_part
from omnidiff_jax.training.operations.goodput import PHASES, Goodput
from omnidiff_jax.training.operations.guard import Guard, GuardConfig, Rewind
from omnidiff_jax.training.operations.host_log import HostLog
from omnidiff_jax.training.operations.journal import OperationsConfig
from omnidiff_jax.training.operations.metrics import read_metrics
from omnidiff_jax.training.operations.profiling import parse_steps
from omnidiff_jax.training.operations.watchdog import Watchdog
from omnidiff_jax.training.optimizer import stage_schedule


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])


def lines(folder):
    return [{k: v for k, v in line.items() if "second" not in k} for line in read_metrics(folder / "metrics.jsonl")]


def flip(folder, step, name):
    """Changes one bit in the middle of the largest file below `step/name`."""
    files = [path for path in (folder / "checkpoints" / str(step) / name).rglob("*") if path.is_file()]
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return file.name


def test_a_flipped_bit_is_named_and_the_checkpoint_before_is_used(tmp_path, mesh, capfd):
    whole = run(tmp_path / "whole", mesh)
    run(tmp_path / "hurt", mesh, stop_after=8)
    name = flip(tmp_path / "hurt", 8, "state")
    reader = Checkpointer(tmp_path / "hurt", CheckpointConfig(), read_only=True)
    assert reader.latest() == 4
    with pytest.raises(UserError, match=f"checkpoint .*/8 is damaged: state/.*{name}.* checksum"):
        reader.config(8)
    reader.close()
    state = run(tmp_path / "hurt", mesh)
    shown = capfd.readouterr().err
    assert f"{name} does not have the checksum it was saved with" in shown and "using checkpoint 4 instead" in shown
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), whole, state))
    assert lines(tmp_path / "hurt") == lines(tmp_path / "whole")
    assert [path.name for path in (tmp_path / "hurt" / "damaged_checkpoints").iterdir()] == ["8"]
    for step in (8, 10):
        flip(tmp_path / "hurt", step, "iterator")
    with pytest.raises(UserError, match=r"every checkpoint .* is damaged \(10: iterator/.*; 8: iterator/"):
        run(tmp_path / "hurt", mesh)


def test_a_half_written_or_cut_checkpoint_is_never_restored(tmp_path, mesh):
    run(tmp_path, mesh, stop_after=8)
    folder = tmp_path / "checkpoints"
    (folder / "8").rename(folder / "8.orbax-checkpoint-tmp")  # what a kill while saving leaves
    reader = Checkpointer(tmp_path, CheckpointConfig(), read_only=True)
    assert reader.latest() == 4
    reader.close()
    (folder / "4" / "digest.json").unlink()
    with pytest.raises(UserError, match=r"4: digest.json cannot be read \(No such file"):
        Checkpointer(tmp_path, CheckpointConfig(), read_only=True).latest()


def test_orbax_alone_reads_a_checkpoint(tmp_path, mesh):
    state = run(tmp_path, mesh, stop_after=4)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        found = manager.restore(4)
    np.testing.assert_array_equal(found["state"]["params"]["free"]["w"], state.params["free"]["w"])
    assert "data" in found["iterator"]


def test_a_seal_takes_over_the_sums_of_parts(tmp_path):
    for name in ("state/ocdbt.process_0/d/a", "state/ocdbt.process_1/d/b", "state/manifest", "config/metadata"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for rank in (0, 1):
        write_part(tmp_path / "state", f"ocdbt.process_{rank}")
    (tmp_path / "state/ocdbt.process_1/d/b").write_text("changed after it was summed up")
    write_digest(tmp_path)
    assert damage(tmp_path).startswith("state/ocdbt.process_1/d/b has 30 bytes instead of 25")
    assert damage(tmp_path, part=0, parts=2) == "" and damage(tmp_path, part=1, parts=2) != ""
    assert not list(tmp_path.rglob("digest.part.*")) and len(json.loads((tmp_path / "digest.json").read_text())) == 4


class Terminated(Regression):
    """Gets SIGTERM while its sixth batch is made."""

    def batches(self, seed):
        for number, batch in enumerate(super().batches(seed)):
            if number == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


def test_sigterm_saves_and_has_a_status_of_its_own(tmp_path, mesh):
    with pytest.raises(SystemExit) as left:
        run(tmp_path / "run", mesh, Terminated())
    assert left.value.code == PREEMPTED
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["4", "6"]
    run(tmp_path / "run", mesh)
    run(tmp_path / "whole", mesh)
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_sigterm_before_the_first_step_ends_at_once(tmp_path, mesh):
    class Early(Regression):
        def batches(self, seed):
            os.kill(os.getpid(), signal.SIGTERM)
            yield from super().batches(seed)

    with pytest.raises(SystemExit) as left:
        run(tmp_path, mesh, Early())
    assert left.value.code == PREEMPTED and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert guard("omnidiff x", lambda: run(tmp_path, mesh, Early()) and None) == PREEMPTED


def test_a_resumed_run_says_from_where_and_logs_its_rates(tmp_path, mesh, capfd):
    run(tmp_path, mesh, stop_after=4)
    assert "resuming" not in capfd.readouterr().err
    run(tmp_path, mesh)
    assert "resuming from checkpoint 4 of 10 steps\n" in capfd.readouterr().err
    rate = stage_schedule([6, 4], [1e-2, 1e-3], OPTIMIZER)
    assert [line["learning_rate"] for line in lines(tmp_path)] == pytest.approx([float(rate(i)) for i in range(10)])


def test_goodput_accounts_for_every_second(tmp_path, mesh):
    began = time.perf_counter()
    run(tmp_path, mesh, stop_after=6, began=began)
    file = tmp_path / "metrics.jsonl"
    more = "".join(json.dumps({"step": step, "seconds": 0.25}) + "\n" for step in (7, 8))
    file.write_text(file.read_text() + more)  # as a kill after the save would leave it
    first = json.loads((tmp_path / "goodput.json").read_text())
    assert first["wall_seconds"] == pytest.approx(time.perf_counter() - began, abs=0.2)
    run(tmp_path, mesh)
    total = json.loads((tmp_path / "goodput.json").read_text())
    assert set(total["seconds"]) == set(PHASES)
    assert sum(total["seconds"].values()) == pytest.approx(total["wall_seconds"])
    assert (total["starts"], total["restores"], total["recompilations"]) == (2, 1, 0)
    assert total["lost"] == {"steps": 2, "seconds": 0.5}
    assert all(total["seconds"][name] > 0 for name in ("startup", "compile", "save", "restore"))
    assert any(line.get("save_seconds", 0) > 0 for line in read_metrics(file))
    assert any(line.get("restore_seconds", 0) > 0 for line in read_metrics(file))


@pytest.mark.parametrize("content", ["[]", "3", "{", '{"seconds": [1], "lost": {}}', '{"starts": "many"}', "\x00"])
def test_accounts_that_are_none_begin_anew(tmp_path, capsys, content):
    (tmp_path / "goodput.json").write_text(content)
    (tmp_path / "metrics.jsonl").write_text('[]\n3\n{"step": 1}\n')
    with Goodput(tmp_path):
        pass
    assert (
        capsys.readouterr().err == f"{tmp_path / 'goodput.json'} does not hold the accounts of a run; they begin anew\n"
    )
    assert json.loads((tmp_path / "goodput.json").read_text())["starts"] == 1
    with Goodput(tmp_path) as again:
        assert capsys.readouterr().err == "" and again.summary()["starts"] == 2
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_goodput_phases_nest(tmp_path):
    clock = Goodput(tmp_path)
    clock.enter("step")
    with clock.phase("save"):
        time.sleep(0.02)
    clock.enter("other")
    clock.lose(3, 0.0)
    assert clock.summary()["seconds"]["save"] >= 0.02 and "3 steps lost" in clock.line()


def test_guard_knows_a_jump_from_noise():
    draw = np.random.default_rng(0)
    guard = Guard(GuardConfig(spike="skip", sigmas=6.0, window=32))
    losses = 2.0 + 0.1 * draw.normal(size=200)
    for step, loss in enumerate(losses, start=1):
        limit = guard.limit(step, "one")
        assert (limit == math.inf) == (step < 18)  # sixteen losses, all at least two steps old
        assert guard.judge(step, "one", float(loss), True, limit, str) == ""
    assert 2.3 < guard.limit(201, "one") < 3.2 and guard.limit(201, "two") == math.inf
    again = Guard(GuardConfig(spike="skip", sigmas=6.0, window=32))
    again.set_state(json.loads(json.dumps(guard.get_state())))
    assert again.limit(201, "one") == guard.limit(201, "one")
    assert "jumped over" in guard.judge(201, "one", 9.0, True, 3.0, str)
    assert guard.limit(203, "one") < 3.2  # what was skipped is not remembered
    for policy, kind in (("abort", UserError), ("rewind", Rewind)):
        with pytest.raises(kind, match="step 5: loss 9 jumped over 3; batch: sample 7"):
            Guard(GuardConfig(spike=policy)).judge(5, "one", 9.0, True, 3.0, lambda: "sample 7")
    assert "step kept" in Guard(GuardConfig(spike="report")).judge(5, "one", 9.0, True, 3.0, str)
    assert Guard(GuardConfig(spike="off")).judge(5, "one", 9.0, True, 3.0, str) == ""


def test_a_jump_is_skipped_or_rewound(tmp_path, mesh):
    stages = {"only": Stage(40, 1e-3)}
    program = Regression(wild=(29,))
    jumping = OperationsConfig(GuardConfig(spike="skip"))
    state = run(tmp_path / "skip", mesh, program, stages, operations=jumping)
    assert [line["step"] for line in lines(tmp_path / "skip") if "refused" in line] == [30]
    for stop in (30, 31, None):
        again = run(tmp_path / "parts", mesh, program, stages, operations=jumping, stop_after=stop)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), state, again))

    back = OperationsConfig(GuardConfig(spike="rewind"))
    run(tmp_path / "rewind", mesh, program, stages, operations=back)
    seen = lines(tmp_path / "rewind")
    assert [line["step"] for line in seen] == list(range(1, 41))
    assert max(line["loss"] for line in seen) < 100
    assert seen[27] == lines(tmp_path / "skip")[27]  # up to checkpoint 28 nothing differs
    log = (tmp_path / "rewind" / "logs" / "host-000.log").read_text()
    assert "rewinding to checkpoint 28" in log and "batch: sample 29" in log
    assert json.loads((tmp_path / "rewind" / "goodput.json").read_text())["lost"]["steps"] >= 1


def test_nonfinite_policies(tmp_path, mesh):
    stop = OperationsConfig(GuardConfig(nonfinite="abort"))
    with pytest.raises(UserError, match="step 3: loss or gradient is not finite; batch: sample 2"):
        run(tmp_path / "abort", mesh, Regression(bad=(2,)), operations=stop)
    back = OperationsConfig(GuardConfig(nonfinite="rewind", max_rewinds=1))
    with pytest.raises(UserError, match="there is no checkpoint to rewind to"):
        run(tmp_path / "early", mesh, Regression(bad=(2,)), operations=back)
    with pytest.raises(UserError, match="not finite after 1 rewinds"):
        run(tmp_path / "twice", mesh, Regression(bad=(5, 8)), operations=back)


def test_watchdog_shows_where_everybody_stands(tmp_path, capfd):
    with HostLog(tmp_path) as log:
        with Watchdog(300.0, "report", log) as patient:
            patient.beat("step 2")
        assert "stacks" not in log.path.read_text()
        with Watchdog(0.1, "report", log) as watchdog:
            watchdog.beat("step 3")
            a_function_that_hangs(log.path)
    assert "nothing for 0.1 s after step 3" in log.path.read_text()
    assert "a_function_that_hangs" in capfd.readouterr().err


def test_watchdog_shows_a_hang_that_holds_the_interpreter(tmp_path):
    with HostLog(tmp_path) as log, Watchdog(0.3, "report", log) as watchdog:
        watchdog.beat("step 3")
        ctypes.PyDLL(None).sleep(2)  # unlike CDLL it keeps the lock: no thread of Python can say a word
        said = log.path.read_text()
    said = said.partition("nothing for")[0]  # said once the interpreter was free again
    assert "Timeout" in said and "test_watchdog_shows_a_hang_that_holds_the_interpreter" in said
    code = textwrap.dedent("""
        import ctypes, sys
        from omnidiff_jax.training.operations.host_log import HostLog
        from omnidiff_jax.training.operations.watchdog import Watchdog
        with HostLog(sys.argv[1]) as log, Watchdog(0.3, "abort", log):
            ctypes.PyDLL(None).sleep(60)
    """)
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=50).returncode == 1
    assert "Timeout" in log.path.read_text()


def a_function_that_hangs(log):
    """Until the watchdog has named it."""
    deadline = time.monotonic() + 60
    while "a_function_that_hangs" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Starved(Regression):
    def batches(self, seed):
        for batch in super().batches(seed):
            time.sleep(0.05)
            yield batch


def test_data_stalls_and_profile(tmp_path, mesh):
    run(tmp_path, mesh, Starved(), operations=OperationsConfig(stall_window=5, stall_share=0.001), profile=(4, 5))
    log = (tmp_path / "logs" / "host-000.log").read_text()
    assert "the device waited for data for" in log and "of the last 5 steps" in log
    assert json.loads((tmp_path / "goodput.json").read_text())["seconds"]["data_wait"] > 0.1
    assert len(list((tmp_path / "profile" / "host-000").rglob("*.xplane.pb"))) == 1


def test_profile_steps():
    assert parse_steps(None) is None and parse_steps("5") == (4, 8) and parse_steps("10-12") == (10, 12)
    for text in ("x", "0-3", "5-4", "-2", "1-"):
        with pytest.raises(UserError, match="such as 10-12"):
            parse_steps(text)


def test_launchers_are_recognised():
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"}
    assert detect({}) is None and detect(slurm) is None  # a batch script outside of srun
    assert detect(slurm | {"SLURM_STEP_NODELIST": "n[1-2]"}) == "slurm"
    assert detect({"OMPI_COMM_WORLD_SIZE": "4"}) == "ompi" and detect({"OMPI_COMM_WORLD_SIZE": "1"}) is None
    assert detect({"TPU_WORKER_HOSTNAMES": "a,b"}, tpu_vm=True) == "gketpu"
    assert detect({"TPU_WORKER_HOSTNAMES": "a"}, tpu_vm=True) is None
    assert detect({}, tpu_vm=True) == "gcetpu" and detect({"TPU_SKIP_MDS_QUERY": "1"}, tpu_vm=True) is None
    with pytest.raises(UserError, match="--num_processes=2 without --coordinator=… --process_id=…"):
        initialize(num_processes=2)
    with pytest.raises(UserError, match="--distributed=off contradicts --process_id=1"):
        initialize("off", process_id=1)
    with pytest.raises(UserError, match=r"--process_id=2 must be in 0 \.\. 1"):
        initialize("auto", "localhost:1", 2, 2)


def test_flops_of_the_released_size():
    assert train_flops(BackboneConfig(), 1, 3072) == pytest.approx(46.64e9, rel=1e-4)
    small = BackboneConfig(vocab_size=7, width=4, layers=2, heads=2, kv_heads=1, head_dim=2, hidden=5)
    shapes = {"q": 4 * 4, "k": 4 * 2, "v": 4 * 2, "o": 4 * 4, "mlp": 3 * 4 * 5}
    assert matrix_parameters(small) == 2 * sum(shapes.values()) + 4 * 7


def test_damaged_checkpoints_of_one_step_are_all_kept(tmp_path, mesh):
    for _ in range(2):
        run(tmp_path, mesh, stop_after=8)
        (tmp_path / "checkpoints" / "8" / "digest.json").write_text("{")
    run(tmp_path, mesh, stop_after=8)
    assert sorted(found.name for found in (tmp_path / "damaged_checkpoints").iterdir()) == ["8", "8.2"]
