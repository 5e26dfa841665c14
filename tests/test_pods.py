"""Real processes on this machine: kill, preempt, change their number; the run goes on as if nothing had happened."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from experiments.launch import local
from omnidiff_jax.signals import PREEMPTED
from omnidiff_jax.training.digest import damage
from omnidiff_jax.training.operations.metrics import read_metrics

pytestmark = pytest.mark.multihost
WORKER = Path(__file__).parent / "pod_worker.py"
STEPS = 16


class Pod:
    """Runs in one folder, by whatever number of processes."""

    def __init__(self, folder, **settings):
        self.folder = folder
        folder.mkdir()
        self._settings = {"workdir": str(folder / "run"), "every": 3, "held_out": 5} | settings

    def start(self, processes, **settings):
        # One device a process; what runs for milliseconds need not be compiled for seconds.
        flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        words = [sys.executable, str(WORKER), json.dumps(self._settings | settings)]
        with open(self.folder / "output.log", "a") as output:
            return local.start(words, processes, env, output)

    def finish(self, processes, status=0):
        assert local.wait(processes) == status, self.output

    def reach(self, processes, step):
        """Waits until `step` is logged."""
        deadline = time.monotonic() + 500
        while not (self.lines and self.lines[-1]["step"] >= step):
            assert all(p.poll() is None for p in processes) and time.monotonic() < deadline, self.output
            time.sleep(0.01)

    @property
    def output(self):
        return (self.folder / "output.log").read_text()[-3000:]

    @property
    def lines(self):
        file = self.folder / "run" / "metrics.jsonl"
        return read_metrics(file) if file.exists() else []

    @property
    def numbers(self):
        """What must not depend on interruptions, step by step."""
        return [{k: v for k, v in line.items() if "second" not in k} for line in self.lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two processes that nothing interrupted."""
    pod = Pod(tmp_path_factory.mktemp("pods") / "whole")
    pod.finish(pod.start(2))
    return pod


def test_each_process_sums_up_what_it_wrote(whole):
    """No host reads the files of others; the seal holds them all, and what was written while saving is gone."""
    newest = max((whole.folder / "run" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    sealed = json.loads((newest / "digest.json").read_text())
    for rank in (0, 1):
        assert any(name.startswith(f"state/ocdbt.process_{rank}/d/") for name in sealed), sorted(sealed)
    files = {str(path.relative_to(newest)) for path in newest.rglob("*") if path.is_file()}
    assert files - set(sealed) <= {"digest.json", "_CHECKPOINT_METADATA", "commit_success.txt"}
    assert set(sealed) <= files
    assert damage(newest) == ""


def test_killed_preempted_and_moved_runs_go_on(whole, tmp_path):
    pod = Pod(tmp_path / "pod", pause=0.15)
    killed = pod.start(2)
    pod.reach(killed, 5)
    local.end(killed, signal.SIGKILL)
    assert local.wait(killed) == -signal.SIGKILL
    asked = pod.start(2)
    pod.reach(asked, 7)
    asked[1].send_signal(signal.SIGTERM)  # one host is preempted; both must stop, at the same step
    pod.finish(asked, PREEMPTED)
    assert [p.returncode for p in asked] == [PREEMPTED] * 2
    stopped = pod.lines[-1]["step"]
    assert 7 < stopped < STEPS
    assert pod.numbers == [line for line in whole.numbers if line["step"] <= stopped]
    pod.finish(pod.start(4, pause=0.0, mesh={"fsdp": 2, "data": 2}))
    assert [line["step"] for line in pod.lines if "loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in pod.lines if "held_out_loss" in line] == [0, 5, 10, 15, 16]
    for ours, theirs in zip(pod.numbers, whole.numbers, strict=True):
        assert ours.get("fingerprint") == theirs.get("fingerprint")  # samples, order, masks
        name = "loss" if "loss" in theirs else "held_out_loss"
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5)
    goodput = json.loads((pod.folder / "run" / "goodput.json").read_text())
    assert goodput["starts"] == 3 and goodput["restores"] == 2 and goodput["lost"]["steps"] > 0
    logs = sorted(path.name for path in (pod.folder / "run" / "logs").iterdir())
    assert logs == [f"host-{rank:03d}.log" for rank in range(4)]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("words", [("--kills=20",), ("--move=2,1,4",)])
def test_soak(omnidiff, tmp_path, words):
    done = omnidiff("soak", f"--workdir={tmp_path / 'soak'}", "--json", *words, timeout=3500)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["same_samples"] and result["largest_difference"] <= 1e-5
    assert result["interruptions"] == (20 if "--kills=20" in words else 2)


def test_a_launcher_ends_the_others_when_one_fails(tmp_path):
    words = [sys.executable, "-c", "import sys, time; '--process_id=1' in sys.argv and sys.exit(3); time.sleep(600)"]
    processes = local.start(words, 2)
    assert local.wait(processes, grace=0.1) == 3
    assert processes[0].returncode == -signal.SIGKILL
