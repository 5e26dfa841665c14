"""Paths in object stores: what is read, written, whole or refused, against an S3 on loopback."""

import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from buckets_on_loopback import Store, s3
from toy_training import run

from omnidiff_jax import files
from omnidiff_jax.buckets import Bucket, scheme_of
from omnidiff_jax.errors import UserError
from omnidiff_jax.training.workdir import steps_in


@pytest.fixture(scope="module")
def store():
    with s3() as found:
        yield found


@pytest.fixture
def bucket(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request) -> str:
    """URL of an empty bucket; this process finds it."""
    for name, value in store.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMNIDIFF_CACHE", str(tmp_path / "cache" / "copies"))
    name = f"b{abs(hash(request.node.name)) % 10**9}"
    store.client.create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])


def one_line(error: pytest.ExceptionInfo[UserError], *words: str) -> None:
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("word", ["hdfs://a/b", "http://a/b", "gs://", "s3:///", "gcs:/a"])
def test_what_looks_like_a_url_is_never_a_folder(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        files.local_copy(word)
    one_line(error, word)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["a b/ü/データ", "~/x", "./a:b", "C"])
def test_spaces_and_letters_of_any_script_are_local_paths(word):
    assert scheme_of(word) == ""
    assert files.path(word) == Path(os.path.expanduser(word))


@pytest.mark.parametrize("name", ["run", "a b/ü データ"])
def test_files_and_folders_come_back_as_they_went(bucket, tmp_path, name):
    with files.written(f"{bucket}/{name}", "manifest.json") as place:
        files.write_bytes(place / "manifest.json", b"{}")
        files.write_bytes(place / "in ä" / "x.bin", b"12345")
    near = files.local_copy(f"{bucket}/{name}", ("manifest.json",))
    assert (near / "in ä" / "x.bin").read_bytes() == b"12345"
    assert files.local_copy(f"{bucket}/{name}/in ä/x.bin").read_bytes() == b"12345"
    Bucket(f"{bucket}/{name}").write("in ä/x.bin", b"123456")
    assert (files.local_copy(f"{bucket}/{name}") / "in ä" / "x.bin").read_bytes() == b"123456"


def test_a_folder_without_its_marker_is_not_whole(bucket):
    Bucket(f"{bucket}/set").write("part-0", b"1")
    with pytest.raises(UserError) as error:
        files.local_copy(f"{bucket}/set", ("manifest.json",))
    one_line(error, "not whole", "manifest.json")


def test_copies_make_way_for_others(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("OMNIDIFF_CACHE_BYTES", "2500")
    places = []
    for number in range(4):
        Bucket(f"{bucket}/{number}").write("x", bytes(1000))
        places.append(files.local_copy(f"{bucket}/{number}"))
        os.utime(places[-1], (number, number))
    assert [place.is_dir() for place in places] == [False, False, True, True]


def test_manifests_of_buckets_do_not_lead_out_of_them():
    assert files.safe_join("s3://b/media", "a/../x.wav") == "s3://b/media/x.wav"
    for name in ("../x", "a/../../x", "/etc/passwd", ""):
        with pytest.raises(UserError):
            files.safe_join("s3://b/media", name)


def test_no_such_bucket_is_one_line(bucket):
    with pytest.raises(UserError) as error:
        Bucket("s3://nobody-made-this/run").check()
    one_line(error, "s3://nobody-made-this", "no such bucket")


def test_no_credentials_are_one_line(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError) as error:
        Bucket(f"{bucket}/run").write("x", b"1")
    one_line(error, "no credentials", "AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL")


def test_what_is_not_about_credentials_is_not_told_so(bucket, monkeypatch):
    """Paths hold the words too: "tokenizers", "authors", "part-401"."""
    found = Bucket(f"{bucket}/tokenizers/authors/401-403")

    def broken(*args, **kwargs):
        raise ValueError(f"short read of {found.url}")

    monkeypatch.setattr(found._system, "pipe_file", broken)
    with pytest.raises(UserError) as error:
        found.write("x", b"1")
    one_line(error, "short read", "try again")


@pytest.mark.parametrize(("scheme", "module"), [("gs", "gcsfs"), ("s3", "s3fs")])
def test_a_missing_extra_is_one_line(scheme, module, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, module, None)
    importlib.import_module("fsspec.registry")._registry.pop(scheme, None)
    with pytest.raises(UserError) as error:
        Bucket(f"{scheme}://b/run")
    one_line(error, "pip install 'omnidiff_jax[")


def test_run_in_a_bucket_equals_one_on_disk(bucket, tmp_path, mesh, store):
    whole = run(tmp_path / "whole", mesh)
    for stop in (3, 7, None):
        parts = run(f"{bucket}/a run", mesh, stop_after=stop)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.all(a == b)), whole, parts))
    lines = [json.loads(line) for line in (Bucket(f"{bucket}/a run").read("metrics.jsonl") or b"").splitlines()]
    steps = [line["step"] for line in lines if "step" in line]
    assert steps == sorted(set(steps))
    assert not [name for name in store.names(bucket[5:]) if "lock" in name]


TRAIN = """
    import sys

    import jax
    from toy_training import run

    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    run(sys.argv[1], mesh)
"""


def test_a_killed_run_in_a_bucket_goes_on_bit_for_bit(bucket, tmp_path, mesh, store):
    whole = run(tmp_path / "whole", mesh)
    env = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parents[1]}"}
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(TRAIN), f"{bucket}/run"], env=env)
    limit = time.monotonic() + 60
    while child.poll() is None and time.monotonic() < limit:
        if any(name.startswith("run/checkpoints/") for name in store.names(bucket[5:])):
            break
        time.sleep(0.02)
    assert child.poll() is None, "the run ended before it was killed"
    child.send_signal(signal.SIGKILL)
    child.wait()
    parts = run(f"{bucket}/run", mesh)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.all(a == b)), whole, parts))


@pytest.mark.parametrize("reason", [OSError("connection reset"), PermissionError("403 Forbidden")])
def test_an_upload_that_breaks_off_leaves_the_older_checkpoint_the_newest(bucket, tmp_path, mesh, reason, monkeypatch):
    whole = run(tmp_path / "whole", mesh)
    run(f"{bucket}/run", mesh, stop_after=4)
    put = Bucket.put

    def refused(self, file, name):
        if name.startswith("checkpoints/8/state/"):
            with self._told(f"write {self.url}/{name}"):
                raise reason
        put(self, file, name)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "put", refused)
        with pytest.raises(UserError) as error:
            run(f"{bucket}/run", mesh)
    one_line(error, "checkpoints/8")
    assert steps_in(list(Bucket(f"{bucket}/run").list())) == [4]
    parts = run(f"{bucket}/run", mesh)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.all(a == b)), whole, parts))


def test_a_damaged_checkpoint_in_a_bucket_makes_way_for_the_one_before(bucket, mesh, tmp_path, capfd):
    whole = run(tmp_path / "whole", mesh)
    run(f"{bucket}/run", mesh, stop_after=8)
    found = Bucket(f"{bucket}/run")
    largest = max(((size, name) for name, size in found.list("checkpoints/8/").items() if "/state/" in name))
    found.write(largest[1], bytes(largest[0]))
    parts = run(f"{bucket}/run", mesh)
    assert "checkpoints/8 is damaged" in capfd.readouterr().err
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.all(a == b)), whole, parts))


def test_damaged_checkpoints_of_one_step_are_all_kept(tmp_path, mesh):
    for _ in range(2):
        run(tmp_path, mesh, stop_after=8)
        digest = tmp_path / "checkpoints" / "8" / "digest.json"
        digest.write_text("{")
    run(tmp_path, mesh, stop_after=8)
    assert sorted(found.name for found in (tmp_path / "damaged_checkpoints").iterdir()) == ["8", "8.2"]


def test_a_checkpoint_that_goes_while_it_is_uploaded_stops_no_run(bucket, tmp_path, mesh, monkeypatch):
    whole = run(tmp_path / "whole", mesh)
    put = Bucket.put

    def slow(self, file, name):
        if name.startswith("checkpoints/4/"):
            file.unlink(missing_ok=True)
        put(self, file, name)

    monkeypatch.setattr(Bucket, "put", slow)
    parts = run(f"{bucket}/run", mesh)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.all(a == b)), whole, parts))
    names = list(Bucket(f"{bucket}/run").list())
    assert steps_in(names) == [10, 8]
    assert not [name for name in names if name.startswith("checkpoints/4/")]
