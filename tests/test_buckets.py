"""Paths in buckets, against emulators on the loopback: objects, a run's folder, its kills, data and weights."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import stores
from data_world import VOCABULARY, example
from PIL import Image
from test_pods import Pod
from tiny_run import write_config
from toy_training import run

import omnidiff_jax
from experiments import convert, data, evaluate, sample, train
from omnidiff_jax import buckets, fetching, files
from omnidiff_jax.buckets import Bucket, is_remote
from omnidiff_jax.cli import guard
from omnidiff_jax.data.sources import JsonlRecords
from omnidiff_jax.data.storage import EncodedSet, write_set
from omnidiff_jax.errors import UserError
from omnidiff_jax.fetching import local_copy
from omnidiff_jax.media.image import read_image, write_png
from omnidiff_jax.signals import PREEMPTED
from omnidiff_jax.training.operations.metrics import read_metrics
from omnidiff_jax.training.workdir import local_run, open_workdir, steps_in

WORKER = Path(__file__).parent / "run_worker.py"
# Processes take long to say what no kind of store changes; what one does is in the tests of objects and of a run.
in_one_store = pytest.mark.parametrize("store", ["s3", pytest.param("gs", marks=pytest.mark.slow)], indirect=True)


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])


def numbers(folder):
    lines = read_metrics(Path(folder) / "metrics.jsonl")
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


def numbers_in(url, tmp_path):
    file = tmp_path / "fetched.jsonl"
    file.write_bytes(Bucket(url).read("metrics.jsonl") or b"")
    return [{k: v for k, v in line.items() if "second" not in k} for line in read_metrics(file)]


def refused(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


# ---- objects ---------------------------------------------------------------------------------------------------


def test_objects_with_odd_names(home):
    bucket = Bucket(f"{home}/with spaces/größe 模型")
    assert bucket.list() == {} and bucket.read("a") is None
    bucket.write("a b/ü.txt", b"one")
    assert bucket.create("lock", b"first") and not bucket.create("lock", b"second")
    assert bucket.read("lock") == b"first" and bucket.list() == {"a b/ü.txt": 3, "lock": 5}
    bucket.delete("lock", "never there")
    assert list((Bucket(home) / "with spaces").list()) == ["größe 模型/a b/ü.txt"]


def test_a_folder_is_whole_when_its_marker_is_there(home, tmp_path, monkeypatch):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("manifest.json", "a.bin", "z.bin"):
        (folder / name).write_text(name)
    order = []
    put = Bucket.put
    monkeypatch.setattr(Bucket, "put", lambda self, file, name: (order.append(name), put(self, file, name)))
    Bucket(home).put_folder(folder, "set", "manifest.json")
    assert order[-1] == "set/manifest.json" and len(order) == 3
    assert (local_copy(f"{home}/set", ("manifest.json",)) / "z.bin").read_text() == "z.bin"
    Bucket(home).delete("set/manifest.json")
    assert "is not whole" in refused(local_copy, f"{home}/set", ("manifest.json",))
    assert "there is nothing at" in refused(local_copy, f"{home}/other")


def test_copies_are_made_once_and_make_way(home, monkeypatch):
    bucket = Bucket(home)
    for name in ("one", "two"):
        bucket.write(f"{name}/data", bytes(1000))
    fetched = []
    read = Bucket.read_part
    monkeypatch.setattr(
        Bucket, "read_part", lambda self, name, *ends: (fetched.append(name), read(self, name, *ends))[1]
    )
    first = local_copy(f"{home}/one")
    assert local_copy(f"{home}/one") == first and fetched == ["data"]
    single = local_copy(f"{home}/one/data")
    assert single.name == "data" and single.read_bytes() == bytes(1000)
    monkeypatch.setenv("OMNIDIFF_CACHE_BYTES", "1500")
    local_copy(f"{home}/two")
    assert first.exists(), "it is in use"
    for copy in (first, single.parent):
        fetching._in_use.pop(copy).close()
    bucket.write("three/data", bytes(1000))
    local_copy(f"{home}/three")
    assert not first.exists(), "what was not used for longest makes way"
    bucket.write("two/data", b"other")
    assert (local_copy(f"{home}/two") / "data").read_bytes() == b"other"


def test_no_such_bucket(store):
    url = store.replace(stores.BUCKET, "no-such-bucket")
    for function in (Bucket(url).list, Bucket(url).check, lambda: local_copy(url)):
        assert "no such bucket" in refused(function)


@pytest.mark.parametrize("word", ["hdfs://a/b", "http://a/b", "gs://", "s3:///", "file:/tmp/x"])
def test_a_url_is_never_taken_for_a_folder(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for function in (is_remote, files.path, local_copy):
        said = refused(function, word)
        assert word in said and ("paths are local, or begin with" in said or "names no bucket" in said)
    with pytest.raises(UserError), open_workdir(word):
        pass
    assert not list(tmp_path.iterdir())


def test_a_local_path_is_as_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.path("~/a b/ü") == tmp_path / "a b" / "ü"
    assert files.path("C:relative") == Path("C:relative")
    assert "is no path" in refused(files.path, " ")


def test_what_is_missing_is_said(monkeypatch):
    import fsspec

    def absent(*_, **__):
        raise ImportError("No module named 's3fs'")

    monkeypatch.setattr(fsspec, "filesystem", absent)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert "pip install 'omnidiff_jax[s3]'" in refused(Bucket, "s3://bucket/run")


def test_no_credentials(tmp_path):
    """In a process without any: nothing that this machine's user has set may help."""
    names = ("AWS_", "GOOGLE_", "STORAGE_EMULATOR", "CLOUDSDK")
    env = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    env |= {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true", "NO_GCE_CHECK": "true"}
    env |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    code = "import sys; from omnidiff_jax.buckets import Bucket; Bucket(sys.argv[1]).check()"
    for url, variable in (("s3://bucket/run", "AWS_ACCESS_KEY_ID"), ("gs://bucket/run", "GOOGLE_APPLICATION")):
        done = subprocess.run([sys.executable, "-c", code, url], env=env, capture_output=True, text=True, timeout=120)
        assert "no credentials" in done.stderr.splitlines()[-1] and variable in done.stderr.splitlines()[-1]


def test_what_is_not_about_credentials_is_not_told_so(home, monkeypatch):
    """Paths hold the words too: "tokenizers", "authors", "part-401"."""
    found = Bucket(f"{home}/tokenizers/authors/401-403")

    def broken(*args, **kwargs):
        raise ValueError(f"short read of {found.url}")

    monkeypatch.setattr(found._system, "pipe_file", broken)
    said = refused(found.write, "x", b"1")
    assert "short read" in said and "try again" in said


# ---- a run -----------------------------------------------------------------------------------------------------


def test_a_run_in_a_bucket_is_the_run_on_a_disk(home, tmp_path, mesh):
    whole = run(tmp_path / "disk", mesh)
    for stop in (3, 6, None):
        parts = run(f"{home}/run", mesh, stop_after=stop)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), whole, parts))
    assert numbers_in(f"{home}/run", tmp_path) == numbers(tmp_path / "disk")
    names = Bucket(f"{home}/run").list()
    assert steps_in(list(names)) == [10, 8] and "run.lock" not in names
    assert any(name.startswith("tensorboard/") for name in names) and "goodput.json" in names
    assert (local_run(f"{home}/run") / "checkpoints" / "10" / "digest.json").is_file()


@in_one_store
def test_a_kill_and_a_preemption_lose_nothing(home, tmp_path):
    worker = [sys.executable, str(WORKER)]
    subprocess.run([*worker, str(tmp_path / "disk"), "0"], check=True, capture_output=True, timeout=300)
    bucket = Bucket(f"{home}/run")
    for sent, after in ((signal.SIGKILL, 8), (signal.SIGTERM, 12)):
        # The one that was killed may have gone further than it was seen to; the next must be under way, too.
        after = max(after, 1 + max(steps_in(list(bucket.list())), default=0))
        process = subprocess.Popen([*worker, bucket.url, "0.15"], stderr=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + 200
            while max(steps_in(list(bucket.list())), default=0) < after:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            process.send_signal(sent)
            said = process.communicate()[1]
        assert process.returncode == {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: PREEMPTED}[sent]
        assert ("run.lock" in bucket.list()) == (sent == signal.SIGKILL), "held by somebody dead, or given back"
    assert "resuming from checkpoint 8" in said or "resuming from checkpoint 12" in said
    assert max(steps_in(list(bucket.list()))) > 12, "the step of the preemption was saved, and came home"
    done = subprocess.run([*worker, bucket.url, "0"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "resuming from checkpoint" in done.stderr
    assert numbers_in(bucket.url, tmp_path) == numbers(tmp_path / "disk")


@pytest.mark.parametrize("error", [ConnectionResetError("broken off"), PermissionError("AccessDenied: write")])
def test_an_upload_that_fails_leaves_the_older_checkpoint_the_newest(home, mesh, tmp_path, monkeypatch, error):
    url = f"{home}/run-{type(error).__name__}"
    run(url, mesh, stop_after=4)
    monkeypatch.setattr(buckets, "_ATTEMPTS", 1)
    open_system, puts = Bucket._open, []

    def breaking(self):
        system = open_system(self)
        put = system.put_file

        def put_file(file, name, **options):
            if "/checkpoints/8/" in name:
                puts.append(name)
                if len(puts) > 3:
                    raise error
            return put(file, name, **options)

        system.put_file = put_file
        return system

    with monkeypatch.context() as patched:
        patched.setattr(Bucket, "_open", breaking)
        said = refused(run, url, mesh)
    assert "/checkpoints/8/" in said and ("refused" in said or "broken off" in said)
    assert steps_in(list(Bucket(url).list())) == [4] and len(puts) == 4
    run(url, mesh)
    run(tmp_path / "whole", mesh)
    assert numbers_in(url, tmp_path) == numbers(tmp_path / "whole")


def test_a_damaged_checkpoint_makes_way(home, mesh, tmp_path, capfd):
    run(f"{home}/run", mesh, stop_after=8)
    bucket = Bucket(f"{home}/run")
    victim = next(name for name in bucket.list() if name.startswith("checkpoints/8/state/") and "/d/" in name)
    bucket.write(victim, b"x" * bucket.list()[victim])
    run(f"{home}/run", mesh)
    assert "checkpoints/8 is damaged" in capfd.readouterr().err
    run(tmp_path / "whole", mesh)
    assert numbers_in(f"{home}/run", tmp_path) == numbers(tmp_path / "whole")


def test_one_run_in_a_bucket(home, mesh):
    with open_workdir(f"{home}/run") as place, open_workdir(f"{home}/run") as again:
        assert place is again
        code = f"import sys; sys.path.insert(0, {str(WORKER.parent)!r}); import run_worker; run_worker.main()"
        words = [sys.executable, "-c", code, f"{home}/run", "0"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=200)
        assert done.returncode and "is in use" in done.stderr.splitlines()[-1]
    assert "run.lock" not in Bucket(f"{home}/run").list()


@in_one_store
@pytest.mark.multihost
def test_two_processes_in_a_bucket(home, tmp_path):
    pods = [
        Pod(tmp_path / name, **settings) for name, settings in (("disk", {}), ("bucket", {"workdir": f"{home}/run"}))
    ]
    pods[0].finish(pods[0].start(2))
    processes = pods[1].start(2, pause=0.05)
    bucket, deadline = Bucket(f"{home}/run"), time.monotonic() + 300
    while not steps_in(list(bucket.list())):
        assert all(p.poll() is None for p in processes) and time.monotonic() < deadline, pods[1].output
        time.sleep(0.05)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait()
    pods[1].finish(pods[1].start(2))
    assert numbers_in(f"{home}/run", tmp_path) == pods[0].numbers


# ---- data ------------------------------------------------------------------------------------------------------


def test_sets_manifests_and_media_are_read_from_a_bucket(home, tmp_path):
    manifest = write_set(tmp_path / "set", [example(i, "read") for i in range(5)], VOCABULARY.fingerprint)
    Bucket(home).put_folder(tmp_path / "set", "sets/read", "manifest.json")
    found = EncodedSet(local_copy(f"{home}/sets/read", ("manifest.json",)), VOCABULARY.fingerprint)
    assert len(found) == 5 and found.fingerprint == manifest.content
    write_png(tmp_path / "a.png", np.full((4, 5, 3), 7, np.uint8))
    Bucket(home).put(tmp_path / "a.png", "raw/media/a.png")
    turns = [{"role": "user", "content": "what\n<|image|>"}, {"role": "assistant", "content": "a"}]
    lines = [{"messages": turns, "images": [name]} for name in ("media/a.png", "../outside.png")]
    Bucket(home).write("raw/set.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    records = JsonlRecords(f"{home}/raw/set.jsonl")
    assert (read_image(records[0].images[0]) == 7).all()
    with pytest.raises(Exception, match="path leads out"):
        records[1]


def test_an_sdvi_set_is_built_of_a_manifest_and_pictures_in_a_bucket(home, tmp_path):
    write_png(tmp_path / "a.png", np.full((4, 5, 3), 7, np.uint8))
    Bucket(home).put(tmp_path / "a.png", "raw/a.png")
    turns = [{"role": "user", "content": "what is it\n<|image|>"}, {"role": "assistant", "content": "a cat"}]
    lines = [{"messages": turns, "images": [name]} for name in ("a.png", "absent.png")]
    Bucket(home).write("raw/set.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    command(data, "build", str(tmp_path / "sdvi"), "--task=spoken_vqa", f"--sdvi={home}/raw/set.jsonl")
    (record,) = JsonlRecords(tmp_path / "sdvi" / "data.jsonl")
    assert record.task == "spoken_vqa" and (read_image(record.images[0]) == 7).all()


def test_results_are_written_to_a_bucket(home):
    Bucket(home).write("scorecard.json", b"old")
    with files.updated(home, ("scorecard.json", "absent")) as folder:
        assert (folder / "scorecard.json").read_text() == "old"
        files.write_bytes(folder / "scorecard.json", b"new")
    with contextlib.suppress(KeyError), files.updated(home, ()) as folder:
        files.write_bytes(folder / "half", b"half")
        raise KeyError
    assert Bucket(home).list() == {"scorecard.json": 3} and Bucket(home).read("scorecard.json") == b"new"


# ---- commands --------------------------------------------------------------------------------------------------


def command(module, *words):
    assert guard(module.COMMAND.program, lambda: module.COMMAND.call(module.run, list(map(str, words)))) == 0


@in_one_store
def test_every_command_takes_a_bucket(home, tmp_path, capfd):
    """Sets are built into it and trained from; the run answers, is scored and converted."""
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    write_png(tmp_path / "a.png", picture)
    turns = [{"role": "user", "content": "what is it\n<|image|>"}, {"role": "assistant", "content": "a cross"}]
    (tmp_path / "set.jsonl").write_text(8 * (json.dumps({"messages": turns, "images": ["a.png"]}) + "\n"))
    base = write_config(tmp_path)
    config = tmp_path / "vqa.py"
    stages = 'type(config)({"only": {"steps": 3, "learning_rate": 1e-3, "weights": {"vqa": 1.0}}})'
    config.write_text(
        base.read_text().replace(
            "    return config", f"    config.batch_size = 8\n    config.stages = {stages}\n    return config"
        )
    )
    for name in ("a.png", "set.jsonl"):
        Bucket(f"{home}/raw").put(tmp_path / name, name)
    url = f"{home}/run with spaces"
    command(data, "build", f"{home}/sets", f"--config={config}", "--task=vqa", f"--jsonl={home}/raw/set.jsonl")
    assert "vqa/manifest.json" in Bucket(f"{home}/sets").list()
    words = ["--config.data.set=encoded", f"--config.data.folder={home}/sets", "--config.checkpoint_every=2"]
    words.append("--config.held_out.every=0")
    command(train, f"--config={config}", f"--workdir={url}", *words)
    assert steps_in(list(Bucket(url).list())) == [3, 2]
    command(sample, f"--workdir={url}", "--task=t2i", "--text=a cross", f"--out={tmp_path / 'x.png'}")
    command(evaluate, f"--workdir={url}", "--exam=scenes", "--task=t2i", "--cases=2")
    scorecard = json.loads(Bucket(url).read("scorecard.json"))
    assert scorecard["step"] == 3 and scorecard["exams"]["scenes"]["n"] == 2 == scorecard["tasks"]["t2i"]["n"]
    command(convert, "--from=run", "--to=released", url, f"{home}/released")
    command(convert, "--from=released", "--to=orbax", f"{home}/released", f"{home}/orbax")
    capfd.readouterr()
    first, second = (omnidiff_jax.load(f"{home}/{name}") for name in ("released", "run with spaces"))
    pictures = [model.answer("t2i", text="a cross").image.tobytes() for model in (first, second)]
    assert pictures[0] == pictures[1] == Image.open(tmp_path / "x.png").tobytes()
    assert "omnidiff.json" in Bucket(f"{home}/orbax").list()
