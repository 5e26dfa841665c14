"""Models by name: packed from a run, found in a folder or as a wheel, refused where they are not what was packed."""

import base64
import hashlib
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny_run import write_config

import omnidiff_jax
from experiments import pack as command
from experiments.checks.untrained import untrained
from experiments.common import load_config
from omnidiff_jax.errors import UserError
from omnidiff_jax.runs.named import MANIFEST, VARIABLE, find_model, named_models
from omnidiff_jax.runs.pack import pack
from omnidiff_jax.runs.stored import newest
from omnidiff_jax.tokenizers.assets import nano_dir
from omnidiff_jax.tokenizers.speech import SpeechDecoder

SETTINGS = {"length": 4, "sampler": {"steps": 2}}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    config = load_config(str(write_config(folder)))
    config.batch_size = 8
    config.tokenizers.text = str(nano_dir("text"))  # a folder of its own, as Commons has
    with config.unlocked():
        config.data.sources.vqa.path = str(folder / "data")
    untrained(config, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def packed(workdir):
    return pack(workdir, "commons", workdir.parent / "out")


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch, tmp_path):
    """No models of whoever runs the tests."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv(VARIABLE, raising=False)


def refused(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_packed_run_answers_by_its_name(workdir, packed, monkeypatch):
    said = refused(omnidiff_jax.load, "commons")
    assert "'commons' is not here; pip install its wheel omnidiff_model_commons-*.whl" in said and VARIABLE in said
    monkeypatch.setenv(VARIABLE, f"/nowhere:{packed.folder.parent}")
    assert named_models()["commons"] == packed.folder and "nano" in named_models()
    model = omnidiff_jax.load("commons", rows=1)
    assert model.decoding == newest(workdir).config.decoding and model.name == "commons"
    assert model.answer("text_qa", text="what is red?", settings=SETTINGS).steps == 2


def test_nothing_of_this_machine_is_packed(workdir, packed):
    about = json.loads((packed.folder / "omnidiff_run.json").read_text())
    assert str(workdir.parent) in json.dumps(newest(workdir).config.tokenizers.speech_encoder)
    for file in packed.folder.rglob("*.json"):
        assert str(workdir.parent) not in file.read_text() and "/tmp" not in file.read_text()
    told = about["tokenizers"]
    assert told["image"] == "nano" and told["text"] == told["speech_decoder"] == "here"
    assert (packed.folder / "text.model").is_file() and not (packed.folder / "image_tokenizer").exists()
    halves = list(packed.folder.rglob("*.safetensors"))
    assert len(halves) == 4 and b'"F32"' not in b"".join(file.read_bytes()[:20000] for file in halves)


def test_in_eight_bits_it_is_smaller_and_answers(workdir, packed, tmp_path, monkeypatch):
    """Kernels of the decoder move by half a scale at most; what makes codes is what it was."""
    eight = pack(workdir, "commons", tmp_path, eight_bits=True)
    assert eight.size < 0.8 * packed.size
    for name in ("speech_tokenizer", "speech_encoder", "text.model"):
        files = [file for file in (packed.folder / name, *(packed.folder / name).rglob("*")) if file.is_file()]
        assert files
        for file in files:
            assert (eight.folder / file.relative_to(packed.folder)).read_bytes() == file.read_bytes()
    one, other = (
        flatten_dict(SpeechDecoder.load(folder / "speech_decoder").params, sep="/")
        for folder in (packed.folder, eight.folder)
    )
    assert one.keys() == other.keys()
    moved = [name for name in one if not np.array_equal(one[name], other[name])]
    assert moved and all(name.endswith("kernel") or one[name].ndim > 1 for name in moved)
    for name in moved:
        most = np.abs(one[name]).max(axis=tuple(range(one[name].ndim - 1)))
        assert (np.abs(one[name] - other[name]) <= 0.501 * most / 127).all()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    answer = omnidiff_jax.load("commons", rows=1).answer("text_qa", text="what is red?", settings=SETTINGS)
    assert answer.steps == 2


def test_the_wheel_brings_the_same_model(packed, tmp_path, monkeypatch):
    place = tmp_path / "site"
    with zipfile.ZipFile(packed.wheel) as archive:
        archive.extractall(place)
    assert hashlib.sha256(packed.wheel.read_bytes()).hexdigest() == packed.sha256
    (about,) = place.glob("omnidiff_model_commons-*.dist-info")
    rows = [line.split(",") for line in (about / "RECORD").read_text().splitlines()]
    for name, digest, size in rows[:-1]:
        content = (place / name).read_bytes()
        told = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        assert digest == f"sha256={told}" and int(size) == len(content)
    there = {file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file()}
    assert there == {row[0] for row in rows}
    assert find_model("commons") is None
    monkeypatch.setattr(sys, "path", [*sys.path, str(place)])
    assert find_model("commons") == place / "omnidiff_model_commons"
    assert "omnidiff_model_commons" not in sys.modules, "found without importing it"


@pytest.fixture
def copy(packed, tmp_path, monkeypatch):
    """A copy that may be damaged."""
    home = tmp_path / "models"
    for file in packed.folder.rglob("*"):
        if file.is_file():
            target = home / "commons" / file.relative_to(packed.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    monkeypatch.setenv(VARIABLE, str(home))
    assert find_model("commons") == home / "commons"
    return home / "commons"


def rename(folder, old, new):
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][new] = manifest["files"].pop(old)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def flip(folder):
    content = bytearray((folder / "text.model").read_bytes())
    content[100] ^= 1
    (folder / "text.model").write_bytes(content)


def lead_out(folder):
    about = folder / "omnidiff_run.json"
    changed = about.read_text().replace('"text": "here"', '"text": "/etc"').encode()
    about.write_bytes(changed)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][about.name] = {"bytes": len(changed), "sha256": hashlib.sha256(changed).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def link(folder):
    content = (folder / "text.model").read_bytes()
    (folder.parent / "outside.model").write_bytes(content)
    (folder / "text.model").unlink()
    (folder / "text.model").symlink_to(folder.parent / "outside.model")


DAMAGES = {
    "is not what was packed": flip,
    "bytes, not the": lambda folder: (folder / "text.model").write_bytes(b"x"),
    "lacks text.model": lambda folder: (folder / "text.model").unlink(),
    "holds weights.pkl, which its package.json does not name": lambda folder: (folder / "weights.pkl").write_bytes(b""),
    "names weights.pkl; a package holds": lambda folder: rename(folder, "config.json", "weights.pkl"),
    "leads out of": lambda folder: rename(folder, "config.json", "../config.json"),
    "is no list of a package's files": lambda folder: (folder / MANIFEST).write_text("[]"),
    "tokenizers.text = '/etc' leads out of it": lead_out,
    "text.model leads out of": link,
}


@pytest.mark.parametrize("said", DAMAGES)
def test_a_package_that_differs_is_refused(copy, said):
    DAMAGES[said](copy)
    if said == "leads out of":
        (copy / "config.json").unlink()
    assert said in refused(omnidiff_jax.load, "commons")


def test_the_command_says_size_and_sum_and_overwrites_nothing(workdir, tmp_path, capfd, refusal):
    command.COMMAND.call(command.run, [f"--workdir={workdir}", "--name=mine", str(tmp_path / "out")])
    said = capfd.readouterr().out
    (wheel,) = (tmp_path / "out").glob("*.whl")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in said and "MB" in said
    assert not [file for file in (tmp_path / "out").iterdir() if file.name.startswith(".")]
    words = f"--workdir={workdir}", "--name=mine"
    assert "is there already" in refusal(command, *words, tmp_path / "out")
    assert "must be a small letter" in refusal(command, words[0], "--name=../mine", tmp_path / "out")


def test_a_tokenizer_that_is_no_data_is_not_packed(workdir, tmp_path):
    stray = Path(newest(workdir).config.tokenizers.speech_decoder) / "notes.py"
    stray.write_text("")
    try:
        assert "notes.py cannot be packed" in refused(pack, workdir, "stray", tmp_path)
    finally:
        stray.unlink()
    assert not list(tmp_path.iterdir())


def test_the_nearest_of_two_of_one_name_is_taken(copy, packed, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"{copy.parent}:{packed.folder.parent}")
    assert find_model("commons") == copy
    assert find_model("nano").name == "nano" and find_model("../nano") is None
    assert np.isfinite(packed.size)
