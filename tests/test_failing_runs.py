"""Runs that fail: one line, a status, no threads left, and the process really ends."""

import errno
import logging
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import absl.logging
import jax
import pytest
from toy_training import Regression, run

from omnidiff_jax.errors import UserError
from omnidiff_jax.training import checkpoint
from omnidiff_jax.training.checkpoint import CheckpointConfig, Checkpointer
from omnidiff_jax.training.operations.guard import GuardConfig
from omnidiff_jax.training.operations.journal import OperationsConfig


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])


def test_checkpoints_warn_of_nothing(tmp_path, mesh):
    said = []
    absl.logging.set_verbosity(absl.logging.WARNING)  # commands of other tests have made it deaf
    ear = logging.Handler(logging.WARNING)
    ear.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("absl").addHandler(ear)
    try:
        run(tmp_path, mesh, stop_after=4)
        reader = Checkpointer(tmp_path, CheckpointConfig(keep_period=3), read_only=True)
        assert reader.config()["seed"] == 3
        reader.close()
        absl.logging.warning("heard")
    finally:
        logging.getLogger("absl").removeHandler(ear)
    assert said == ["heard"]


def threads_left(before):
    """Those that a run started and that are still there after a few seconds, but for jax's and asyncio's own."""
    deadline = time.monotonic() + 10
    while True:
        left = [t.name for t in threading.enumerate() if t not in before and not t.daemon]
        names = {t.name for t in threading.enumerate() if t not in before}
        left += sorted(names & {"loader", "watchdog", "run-lock"})
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def test_a_run_that_fails_leaves_no_threads(tmp_path, mesh, monkeypatch):
    """At its start, in its middle, while a save is under way, and because a save failed."""
    before = set(threading.enumerate())
    run(tmp_path / "start", mesh, stop_after=4)
    with pytest.raises(UserError, match="seed"):
        run(tmp_path / "start", mesh, seed=4)
    stop = OperationsConfig(GuardConfig(nonfinite="abort"))
    for step in (2, 5):
        with pytest.raises(UserError, match="not finite"):
            run(tmp_path / f"middle{step}", mesh, Regression(bad=(step,)), operations=stop)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_part", full)
    with pytest.raises(UserError, match="could not save to .*: No space left on device; no earlier"):
        run(tmp_path / "save", mesh)
    assert threads_left(before) == []


@pytest.mark.parametrize(
    "fault, status, said",
    [
        (("limit", 1_200), 2, "cannot write .*metrics.jsonl: File too large; free space and start again to resume"),
        (("limit", 7_000), 2, "could not save to .*checkpoints: File too large; .*; free space and start again"),
        (("limit", 500_000), 2, "could not save to .*checkpoints: File too large; .*; free space and start again"),
        (("gone",), 2, "could not save to .*checkpoints: .*; no earlier checkpoint exists"),
        (("raise",), 1, "RuntimeError: a bug"),
    ],
)
def test_a_disk_that_fails_ends_a_run_with_one_line(tmp_path, fault, status, said):
    tests = Path(__file__).parent
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]), "XLA_FLAGS": ""}
    words = [sys.executable, str(tests / "run_worker.py"), str(tmp_path), "0.02", *map(str, fault)]
    process = subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)
    try:
        text = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == status, text
    first, *rest = [line for line in text.splitlines() if "TensorBoard" not in line]
    assert first.startswith("stage only: ") and re.search(said, rest[-1]), text
    assert status == 1 or len(rest) == 1, text
    assert not (tmp_path / "run.lock").exists()
