"""One run per workdir: who holds it, who is refused, and when a lock is taken over."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from omnidiff_jax.errors import UserError
from omnidiff_jax.locks import Holder
from omnidiff_jax.training.operations.lock import NAME, RunLock, only_run
from omnidiff_jax.training.operations.metrics import read_metrics

TESTS = Path(__file__).parent


def plant(folder, **fields):
    """Leaves a lock there, of a holder that is this process but for `fields`."""
    folder.mkdir(exist_ok=True)
    holder = dataclasses.replace(Holder.me(), **fields)
    (folder / "new").write_bytes(holder.dump())
    os.replace(folder / "new", folder / NAME)
    return holder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_of_five_starts_at_once_one_trains(tmp_path):
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "XLA_FLAGS": ""}
    words = [sys.executable, str(TESTS / "run_worker.py"), str(tmp_path / "run"), "0.4"]
    starts = [subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True) for _ in range(5)]
    said = [start.communicate(timeout=300)[1] for start in starts]
    statuses = [start.returncode for start in starts]
    assert sorted(statuses) == [0, 2, 2, 2, 2], said
    winner = starts[statuses.index(0)].pid
    for status, text in zip(statuses, said, strict=True):
        if status:
            assert text.count("\n") == 1 and f"is in use: process {winner} on " in text and "or name another" in text
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 21))
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 20
    assert NAME not in names(tmp_path / "run")


def test_a_holder_that_is_gone_from_this_machine_is_inherited_from_at_once(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for fields in ({"pid": ended.pid}, {"born": "1"}):  # no such process; the number given out again
        plant(tmp_path, **fields)
        began = time.monotonic()
        with only_run(tmp_path):
            assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
        assert time.monotonic() - began < 5 and names(tmp_path) == []


def test_a_living_holder_is_named(tmp_path):
    holder = plant(tmp_path, host="node7", since="2026-01-02 03:04:05")
    with pytest.raises(UserError, match=f"process {holder.pid} on node7 trains there since 2026-01-02 03:04:05; "):
        with only_run(tmp_path):
            pass
    assert names(tmp_path) == [NAME]


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"pid": 3'])
def test_elsewhere_only_beats_tell(tmp_path, capfd, content):
    """A holder on another machine, or a file that tells nothing, is waited for; silence hands the lock on."""
    holder = plant(tmp_path, machine="another boot", host="node7")
    if content is not None:
        (tmp_path / NAME).write_bytes(content)
    heir = RunLock(tmp_path, seconds_between_beats=0.05, seconds_to_die=0.5)
    heir.take()
    heir.check()
    assert "looking for signs of life" in capfd.readouterr().err
    heir.release()

    plant(tmp_path, machine="another boot")
    stop = threading.Event()

    def beat():
        for beats in range(1000):
            if stop.wait(0.02):
                return
            (tmp_path / "new").write_bytes(dataclasses.replace(holder, beats=beats).dump())
            os.replace(tmp_path / "new", tmp_path / NAME)

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(UserError, match="is in use"):
        RunLock(tmp_path, seconds_between_beats=0.1, seconds_to_die=5.0).take()
    stop.set()
    thread.join()


def test_of_many_heirs_one_inherits(tmp_path):
    """Also when they have all seen the same dead holder."""
    for _ in range(10):
        plant(tmp_path, born="1")
        together, won, refused = threading.Barrier(8), [], []

        def start(together=together, won=won, refused=refused):
            lock = RunLock(tmp_path)
            together.wait()
            try:
                lock.take()
                won.append(lock)
            except UserError as error:
                refused.append(error)

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and len(refused) == 7, refused
        won[0].release()
        assert names(tmp_path) == []


def test_who_was_taken_over_stops(tmp_path):
    lock = RunLock(tmp_path / "run", seconds_between_beats=0.02)
    lock.take()
    lock.check()
    before = json.loads((tmp_path / "run" / NAME).read_text())["beats"]
    time.sleep(0.2)
    assert json.loads((tmp_path / "run" / NAME).read_text())["beats"] > before
    plant(tmp_path / "run", host="node8")
    time.sleep(0.2)
    with pytest.raises(UserError, match="was taken over by process .* on node8"):
        lock.check()
    lock.release()
    assert names(tmp_path / "run") == [NAME], "it belongs to the other one"


def test_one_thread_may_ask_twice_and_leaves_nothing(tmp_path):
    refused = []

    def other():
        try:
            with only_run(tmp_path / "run"):
                pass
        except UserError as error:
            refused.append(error)

    with only_run(tmp_path / "run") as outer, only_run(tmp_path / "run") as inner:
        assert inner is outer
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert len(refused) == 1 and names(tmp_path / "run") == [NAME]
    assert names(tmp_path) == []


def test_a_workdir_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*file/run/run.lock: Not a directory; name another --workdir"):
        with only_run(tmp_path / "file" / "run"):
            pass

    def refuse(*args, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(UserError, match="run.lock: Read-only file system; name another --workdir"):
        with only_run(tmp_path):
            pass


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    with only_run(tmp_path):
        with pytest.raises(UserError, match="is in use"):
            RunLock(tmp_path).take()
    assert names(tmp_path) == []
