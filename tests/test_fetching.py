"""What lies in buckets, brought near: beside each other, ahead of time, within bounds, by several processes."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_buckets import refused

from experiments import programs
from experiments.common import load_config
from omnidiff_jax import buckets, fetching
from omnidiff_jax.buckets import Bucket
from omnidiff_jax.data.readers import READERS, SourceConfig, fetch_source
from omnidiff_jax.errors import UserError
from omnidiff_jax.fetching import fetch_ahead, local_copy, made_once
from omnidiff_jax.runs.config import run_config

SECONDS = 60.0


@pytest.fixture
def reads(monkeypatch):
    """Functions of (bucket, name, start, end), called before every part that is read."""
    found, read = [], Bucket.read_part

    def read_part(self, name, start, end):
        for call in found:
            call(self, name, start, end)
        return read(self, name, start, end)

    monkeypatch.setattr(Bucket, "read_part", read_part)
    return found


def meeting(number):
    """A function that returns once `number` threads are in it, else breaks off."""
    barrier = threading.Barrier(number, timeout=SECONDS)
    return lambda *_: barrier.wait()


def begun():
    """What was begun and not asked for, once it is there; it is forgotten."""
    words = {key[1] for key, future in fetching._begun.items() if future.exception(SECONDS) is None}
    fetching._begun.clear()
    return words


def cached():
    return sorted(p.name for p in fetching.cache_folder().iterdir() if p.is_dir())


# ---- beside each other -----------------------------------------------------------------------------------------


def test_objects_come_beside_each_other(home, reads):
    contents = {f"shards/{i}": bytes([i]) * (i + 1) for i in range(4)} | {"empty": b""}
    for name, content in contents.items():
        Bucket(home).write(name, content)
    reads.append(meeting(4))
    copy = local_copy(home)
    assert {p.relative_to(copy).as_posix(): p.read_bytes() for p in copy.rglob("*") if p.is_file()} == contents


def test_what_consoles_write_in_place_of_folders_is_no_object(home):
    for name in ("", "sub/"):
        Bucket(home)._system.pipe_file(f"{Bucket(home)._root}/{name}", b"")
    Bucket(home).write("sub/x", b"12345")
    assert Bucket(home).list() == {"sub/x": 5} == Bucket(home).list("sub/")
    assert (local_copy(home) / "sub" / "x").read_bytes() == b"12345"


def test_a_large_object_comes_in_parts(home, reads, monkeypatch):
    monkeypatch.setattr(fetching, "_PART", 1000)
    content = bytes(i % 251 for i in range(3500))
    Bucket(home).write("large", content)
    parts = []
    reads.extend([meeting(4), lambda bucket, name, start, end: parts.append((start, end))])
    assert (local_copy(home) / "large").read_bytes() == content
    assert sorted(parts) == [(0, 1000), (1000, 2000), (2000, 3000), (3000, 3500)]


def test_all_fetches_together_are_bounded(home, reads):
    for number in range(3):
        for name in range(10):
            Bucket(f"{home}/{number}").write(str(name), b"x")
    lock, under_way, most = threading.Lock(), 0, 0

    def enter(*_):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.02)
        with lock:
            under_way -= 1

    reads.append(enter)
    for number in range(3):
        fetch_ahead(f"{home}/{number}")
    assert [len(list(local_copy(f"{home}/{number}").iterdir())) for number in range(3)] == [10, 10, 10]
    assert 1 < most <= fetching._AT_ONCE


def test_what_takes_long_says_how_far_it_is(home, monkeypatch, capfd):
    Bucket(home).write("one/data", bytes(3 << 20))
    Bucket(home).write("two/data", bytes(3 << 20))
    local_copy(f"{home}/one")
    assert "MiB" not in capfd.readouterr().err
    monkeypatch.setattr(fetching, "_SECONDS_UNTIL_SHOWN", -1.0)
    local_copy(f"{home}/two")
    assert f"MiB of {home}/two 3/3" in capfd.readouterr().err


# ---- ahead -----------------------------------------------------------------------------------------------------


def test_sets_are_fetched_beside_each_other_and_once(home, reads):
    for name in ("a", "b"):
        Bucket(home).write(f"{name}/manifest.json", b"{}")
    sources = [SourceConfig("encoded", path=f"{home}/{name}") for name in ("a", "b")]
    read, here = [], meeting(3)
    reads.extend([here, lambda bucket, *_: read.append(bucket.url)])
    for source in (*sources, SourceConfig("encoded", path="/a/local/path")):
        fetch_source(source, READERS["encoded"])
    here()  # both are under way, and this thread goes on
    for source in sources:
        assert (local_copy(source.path, ("manifest.json",)) / "manifest.json").read_bytes() == b"{}"
    assert sorted(read) == [f"{home}/a", f"{home}/b"] and not fetching._begun


def test_a_run_that_opens_fetches_everything_beside_its_tokenizers(home, reads, tmp_path, monkeypatch):
    for name in ("vqa/manifest.json", "t2i/manifest.json", "weights/model.safetensors"):
        Bucket(home).write(name, b"{}")
    config = load_config("experiments/configs/nano.py", [f"--config.init.folder={home}/weights"])
    with config.unlocked():
        config.data.sources = {name: {"reader": "encoded", "path": f"{home}/{name}"} for name in ("vqa", "t2i")}
        config.stages = {"only": {"steps": 1, "learning_rate": 1e-3, "weights": {"vqa": 1.0, "t2i": 1.0}}}
    together = meeting(4)

    class Opening(Exception):
        pass

    def open_tokenizers(_):
        together()
        raise Opening

    reads.append(together)
    monkeypatch.setattr(programs, "open_tokenizers", open_tokenizers)
    with pytest.raises(Opening):
        programs.open_model(run_config(config), tmp_path / "run")
    assert begun() == {f"{home}/vqa", f"{home}/t2i", f"{home}/weights"}
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    together = meeting(1)
    with pytest.raises(Opening):
        programs.open_model(run_config(config), tmp_path / "run")
    assert begun() == {f"{home}/vqa", f"{home}/t2i"}, "who has checkpoints starts from them"


def test_a_broken_fetch_is_told_where_its_set_is_used(home, reads, monkeypatch):
    monkeypatch.setattr(buckets, "_ATTEMPTS", 1)
    for name in ("good/1", "bad/1", "bad/2", "bad/3"):
        Bucket(home).write(name, b"12345")
    tried = []

    def break_off(bucket, name, *_):
        if bucket.url.endswith("/bad") and name == "2":
            tried.append(name)
            raise UserError(f"cannot read {bucket.url}/{name} (broken off); try again, or name another place")

    reads.append(break_off)
    for name in ("bad", "good"):
        fetch_ahead(f"{home}/{name}")
    assert (local_copy(f"{home}/good") / "1").read_bytes() == b"12345"
    assert f"cannot read {home}/bad/2 (broken off)" in refused(local_copy, f"{home}/bad")
    assert len(cached()) == 1 and tried == ["2"], "nothing is left of it, and it was not begun twice"
    reads.clear()
    fetch_ahead(f"{home}/bad")
    assert len(list(local_copy(f"{home}/bad").iterdir())) == 3


def test_a_connection_that_breaks_off_is_tried_again(home, monkeypatch):
    Bucket(home).write("1", b"12345")
    open_system, left = Bucket._open, [2]

    def breaking(self):
        system = open_system(self)
        cat = system.cat_file

        def cat_file(*args, **options):
            if options and left[0]:
                left[0] -= 1
                raise ConnectionResetError("broken off")
            return cat(*args, **options)

        system.cat_file = cat_file
        return system

    monkeypatch.setattr(Bucket, "_open", breaking)
    assert (local_copy(home) / "1").read_bytes() == b"12345" and left == [0]
    left[0] = buckets._ATTEMPTS
    Bucket(home).write("1", b"123456")
    assert f"cannot read {home}/1 (broken off); try again" in refused(local_copy, home)


@pytest.mark.parametrize("name", ["manifest.json", "data"])
def test_what_changes_on_its_way_is_no_copy(home, reads, name):
    for written in ("manifest.json", "data"):
        Bucket(home).write(written, b"before")
    first = iter([True])
    reads.append(lambda *_: next(first, False) and Bucket(home).write(name, b"after that"))
    assert "was changed while it was fetched; start again" in refused(local_copy, home, ("manifest.json",))
    assert not cached()
    assert (local_copy(home, ("manifest.json",)) / name).read_bytes() == b"after that"


# ---- the cache -------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNIDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMNIDIFF_CACHE_BYTES", "2500")
    return tmp_path / "cache"


def test_copies_under_way_count(cache):
    def fill(folder):
        (folder / "data").write_bytes(bytes(1000))

    old = made_once("old", fill, 1000)
    fetching._in_use.pop(old).close()
    here = meeting(2)

    def together(folder):
        here()
        fill(folder)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda key: made_once(key, together, 1000), ("a", "b")))
    assert cached() == ["a", "b"], "each found room for itself, and neither for both"


def test_what_a_kill_left_makes_way_and_what_is_under_way_does_not(cache):
    for name in ("dead", "alive"):
        (cache / f"{name}.part").mkdir(parents=True)
        (cache / f"{name}.part" / "room").write_bytes(bytes(2000))
    with fetching._locked(cache / "alive.lock"):
        made_once("new", lambda folder: None, 100)
    assert cached() == ["alive.part", "new"]


def test_a_cache_that_cannot_be_written_is_told(cache):
    def full(folder):
        raise OSError(28, "No space left on device")

    said = refused(made_once, "new", full, 10)
    assert "No space left" in said and "OMNIDIFF_CACHE" in said and not cached()


WORKER = """
import os, sys, time
from pathlib import Path
from omnidiff_jax.buckets import Bucket
from omnidiff_jax.fetching import local_copy
url, log, stuck = sys.argv[1:]
read = Bucket.read_part
def read_part(self, name, start, end):
    with open(log, "a") as file:
        file.write(f"{os.getpid()} {name}\\n")
    while stuck == "stuck":
        time.sleep(0.1)
    return read(self, name, start, end)
Bucket.read_part = read_part
print(local_copy(url))
"""


def test_two_processes_fetch_once_and_one_outlives_the_other(home, tmp_path):
    for number in range(3):
        Bucket(home).write(str(number), b"12345")
    log = tmp_path / "log"
    log.touch()

    def start(how=""):
        words = [sys.executable, "-c", WORKER, home, str(log), how]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    stuck = start("stuck")
    with contextlib.ExitStack() as stack:
        stack.callback(stuck.kill)
        deadline = time.monotonic() + SECONDS
        while len(log.read_text().splitlines()) < 3:
            assert stuck.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        others = [start() for _ in range(2)]
        for process in others:
            stack.callback(process.kill)
        with pytest.raises(subprocess.TimeoutExpired):
            others[0].wait(3.0)  # for the one that holds the lock
        stuck.send_signal(signal.SIGKILL)
        places = {process.communicate(timeout=SECONDS)[0].strip() for process in others}
    assert len(places) == 1 and sorted(p.name for p in Path(places.pop()).iterdir()) == ["0", "1", "2"]
    later = [line for line in log.read_text().splitlines() if not line.startswith(f"{stuck.pid} ")]
    assert len(later) == 3 and len({line.split()[0] for line in later}) == 1
    assert len(cached()) == 1
