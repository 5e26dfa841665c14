"""SIGTERM and Ctrl-C at any moment, in real processes: a status of their own, nothing half done, nobody left behind."""

import os
import signal
import subprocess
import sys
import time
from importlib.machinery import ExtensionFileLoader
from pathlib import Path

import pytest
from pool_worker import die, double, prepare
from tiny_run import write_config

from omnidiff_jax import signals
from omnidiff_jax.cli import guard
from omnidiff_jax.errors import UserError
from omnidiff_jax.progress import Progress
from omnidiff_jax.workers import Workers

TESTS = Path(__file__).parent
STATUS = {signal.SIGTERM: signals.PREEMPTED, signal.SIGINT: signals.INTERRUPTED}


def start(*words, **variables):
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "XLA_FLAGS": ""} | variables
    return subprocess.Popen(
        [sys.executable, *map(str, words)], env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def heeds(pid):
    """Whether a process has a handler for SIGTERM by now."""
    caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def ended(process, number, seconds=20):
    """What a process said that was asked to end, once it has the right status and its session is empty."""
    said = process.communicate(timeout=seconds)[1]
    assert process.returncode == STATUS[number], said

    def session():
        found = subprocess.run(["ps", "-o", "pid=", "-s", str(process.pid)], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split() if lives(int(pid))]

    until(lambda: not session(), 15)
    return said


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("signals"))


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("seconds", [0.1, 1.0])
def test_a_command_that_still_imports(tmp_path, config, number, seconds):
    """Without byte code, it does so for seconds."""
    words = ("train", f"--config={config}", f"--workdir={tmp_path / 'run'}")
    process = start("-m", "omnidiff_jax.cli", *words, PYTHONPYCACHEPREFIX=str(tmp_path / "none"))
    until(lambda: heeds(process.pid))
    time.sleep(seconds)
    process.send_signal(number)
    said = ended(process, number, 60).splitlines()
    assert said[-1] in ("omnidiff: interrupted", "omnidiff: ended by SIGTERM; start again to go on")


@pytest.mark.parametrize("number", STATUS)
def test_nothing_is_raised_into_an_extension(number):
    class Loader(ExtensionFileLoader):
        went_on = False

        def exec_module(self, module):
            os.kill(os.getpid(), number)
            time.sleep(0.1)
            self.went_on = True

    loader = Loader("extension", "extension.so")
    with pytest.raises((signals.Terminated, KeyboardInterrupt)), signals.heeded():
        loader.exec_module(None)
        time.sleep(5)
    assert loader.went_on


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_builds_data(tmp_path, config, number):
    """Meanwhile a second start is refused."""
    data = tmp_path / "run" / "data"
    words = ("train", f"--config={config}", f"--workdir={tmp_path / 'run'}")
    process = start("-m", "omnidiff_jax.cli", *words)
    until(lambda: data.is_dir() and len(list(data.glob("*/.*/*"))) >= 1)
    if number == signal.SIGTERM:
        second = start("-m", "omnidiff_jax.cli", *words)
        said = second.communicate(timeout=60)[1]
        assert second.returncode == 2 and said.count("\n") == 1, said
        assert f"is in use: process {process.pid} on " in said
    process.send_signal(number)
    if number == signal.SIGKILL:
        process.communicate(timeout=10)
        until(lambda: not list(data.glob("*/.*")), 30)
    else:
        *progress, last = ended(process, number).splitlines()
        assert last == "omnidiff train: ended by SIGTERM; start again to go on"
        assert all(line.startswith("records ") for line in progress), progress
        assert not list(data.glob("*/.*"))


@pytest.mark.parametrize("target", ["parent", "everybody", "kill"])
@pytest.mark.parametrize("number", STATUS)
def test_workers_end_with_their_parent(tmp_path, number, target):
    process = start(TESTS / "pool_worker.py", tmp_path)
    until(lambda: all((tmp_path / f"pid-{i}").exists() and (tmp_path / f"pid-{i}").read_text() for i in (0, 1)))
    workers = [int((tmp_path / f"pid-{i}").read_text()) for i in (0, 1)]
    assert all(lives(pid) for pid in workers)
    if target == "everybody":  # as a terminal, or a scheduler, sends it
        os.killpg(process.pid, number)
    else:
        process.send_signal(signal.SIGKILL if target == "kill" else number)
    if target == "kill":
        process.communicate(timeout=10)
    else:
        said = ended(process, number)
        assert said.count("\n") == 1, said
    until(lambda: not any(lives(pid) for pid in workers), 15)
    assert not list(tmp_path.glob(".half-*"))


def test_workers_return_what_they_made_and_raise_what_went_wrong():
    with Workers(2) as workers, Progress(10) as progress:
        assert dict(workers.run(double, {"a": (1,), "b": (2,)}, progress)) == {"a": 2, "b": 4}
    with Workers(1, prepare) as workers:
        assert dict(workers.run(double, {"a": (1,)})) == {"a": 20}
    with pytest.raises(UserError, match="a number below 0"), Workers(1) as workers:
        list(workers.run(double, {"a": (-1,)}))
    with pytest.raises(UserError, match="a worker process was killed"), Workers(1) as workers:
        list(workers.run(die, {"a": (1,)}))


class Swallows:
    """Its end is a place where no exception can be raised."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        time.sleep(0.01)


@pytest.mark.parametrize("number", STATUS)
def test_a_swallowed_signal_is_raised_again(capsys, number):
    def swallowed():
        thing = Swallows(number)
        del thing
        time.sleep(10)

    def turned_into_another_error():
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        except BaseException as error:
            raise ImportError("an extension cannot be loaded") from error

    def forgotten():
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        except BaseException:
            pass
        signals.check()

    before = signal.getsignal(number), sys.unraisablehook
    for function in (swallowed, turned_into_another_error, forgotten):
        began = time.monotonic()
        assert guard("omnidiff x", function) == STATUS[number]
        assert time.monotonic() - began < 5
        assert capsys.readouterr().err.count("\n") == 1
    assert (signal.getsignal(number), sys.unraisablehook) == before
    signals.check()  # of a command that has ended


def test_a_second_sigterm_does_not_disturb_the_cleaning_up():
    cleaned = []

    def clean():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            cleaned.append(True)

    assert guard("omnidiff x", clean) == signals.PREEMPTED and cleaned


@pytest.mark.parametrize("body, status", [("raise UserError('no')", 2), ("1 / 0", 1), ("pass", 0), ("sys.exit(7)", 7)])
def test_a_failed_command_does_not_wait_for_its_threads(body, status):
    code = f"""
import sys, threading, time
from omnidiff_jax.cli import guard
from omnidiff_jax.errors import UserError
from omnidiff_jax.signals import leave
def run():
    threading.Thread(target=time.sleep, args=({600 if status else 0.1},)).start()
    {body}
leave(lambda: guard("x", run))
"""
    process = start("-c", code)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == status, said
    assert said.startswith({2: "x: no\n", 1: "Traceback", 0: "", 7: ""}[status])
