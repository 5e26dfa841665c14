"""Files that claim to be weights: cut, foreign, pointing elsewhere, or with code in them."""

import importlib.util
import json
import os
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
from released_toys import (
    BF16,
    read_folder,
    refused,
    released_tensors,
    same_bits,
    write_folder,
)

from omnidiff_jax.conversion.to_orbax import to_orbax
from omnidiff_jax.conversion.to_released import to_released

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 4976698672\n" % (b"0" * 64)
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>" + b"x" * 3000 + b"</body></html>"


def test_a_truncated_shard_is_named(tmp_path):
    source = write_folder(tmp_path / "a", released_tensors("adapter"))
    file = source / "model.safetensors"
    os.truncate(file, file.stat().st_size - 5)
    refused(tmp_path, r"model\.safetensors is not a whole safetensors file: it has \d+ bytes where", source)
    os.truncate(file, 4)
    refused(tmp_path, "hold no header", source)


@pytest.mark.parametrize(
    ("dtype", "bits", "said"),
    [
        ("F8_E4M3", 8, "F8_E4M3, 8-bit floats of a quantized checkpoint"),
        ("F8_E5M2", 8, "F8_E5M2, 8-bit floats of a quantized checkpoint"),
        ("F8_E8M0", 8, "F8_E8M0, 8-bit floats"),
        ("F6_E3M2", 6, "F6_E3M2, 6-bit floats"),
        ("F4", 4, "F4, 4-bit floats"),
        ("U16", 16, "U16, unsigned integers"),
        ("U32", 32, "U32, unsigned integers"),
        ("U64", 64, "U64, unsigned integers"),
        ("C64", 64, "C64, complex numbers"),
        ("Q3_K", 8, "Q3_K, a type that is not known here"),
    ],
)
def test_other_types_of_tensors_are_named(tmp_path, dtype, bits, said):
    (tmp_path / "a").mkdir()
    header = {"mlp.0.weight": {"dtype": dtype, "shape": [4, 2], "data_offsets": [0, bits]}}
    text = json.dumps(header).encode()
    (tmp_path / "a" / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(bits))
    refused(tmp_path, rf"tensor 'mlp\.0\.weight' is {said}.*weights must be BF16, F16, F32 or F64", tmp_path / "a")


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LFS, "is a git-lfs pointer in place of the weights; .*git lfs pull"),
        (PAGE, "is a web page in place of the weights"),
        (b"\n <html>denied</html>", "is a web page"),
        (b'{"error": "Repository not found"}', "is JSON in place of the weights"),
        (b"GGUF\x03\0\0\0" + bytes(64), "is a GGUF file"),
        (b"", "is an empty file"),
    ],
)
def test_files_that_are_no_weights_are_named(tmp_path, name, content, said):
    """With torch and without it: nothing is unpickled to find out."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_bytes(content)
    refused(tmp_path, rf"{name} {said}", tmp_path / "a")


@pytest.mark.parametrize(
    "file", ["../secret.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", "config.json"]
)
def test_an_index_may_not_point_elsewhere(tmp_path, file):
    source = write_folder(tmp_path / "a", released_tensors("adapter"), files=2)
    index = source / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["mlp.0.weight"] = file
    index.write_text(json.dumps(content))
    refused(tmp_path, r"index\.json: tensor 'mlp\.0\.weight' points to", source)


def test_an_index_may_not_lie(tmp_path):
    source = write_folder(tmp_path / "a", released_tensors("adapter"), files=2)
    index = source / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": content["weight_map"] | {"ghost": "model-00001-of-00002.safetensors"}}))
    refused(tmp_path, "tensor 'ghost' is in model-00001-of-00002.safetensors, but it is in no file", source)
    del content["weight_map"]["mlp.0.weight"]
    index.write_text(json.dumps(content))
    refused(tmp_path, r"does not list 1 tensors of its files, such as 'mlp\.0\.weight'", source)


def archive(path, content):
    """A torch file by hand: the archive that `torch.save` makes, around any pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data.pkl", content)
        file.writestr("model/version", "3\n")


def test_a_torch_file_under_the_name_of_safetensors_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    archive(tmp_path / "a" / "model.safetensors", pickle.dumps({}))
    refused(tmp_path, "is a torch file by another name", tmp_path / "a")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


BOMB = pickle.dumps({"mlp.0.weight": Bomb()}, protocol=2)
TORCH = importlib.util.find_spec("torch") is not None


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin"])
@pytest.mark.parametrize("form", ["archive", "pickle"])
@pytest.mark.parametrize("torch", ["absent", "recorded", "present"])
def test_code_in_a_pickle_is_not_run(tmp_path, monkeypatch, name, form, torch):
    """With torch, without it, and always asking it for tensors alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    if form == "archive":
        archive(tmp_path / "a" / name, BOMB)
    else:
        (tmp_path / "a" / name).write_bytes(BOMB)
    asked = []

    def load(path, **options):
        asked.append(options)
        raise pickle.UnpicklingError("Weights only load failed")

    match = rf"{name} is not a torch file of tensors alone \(code in it is not run\)"
    if torch == "absent":
        monkeypatch.setitem(sys.modules, "torch", None)
        match = rf"{name} needs torch to be read: pip install 'omnidiff_jax\[torch\]'"
    elif torch == "recorded":
        monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=load))
    elif not TORCH:
        pytest.skip("extra torch: make test-torch")
    refused(tmp_path, match, tmp_path / "a")
    assert [options["weights_only"] for options in asked] == [True] * (torch == "recorded")
    assert not (tmp_path / "exploded").exists()
    pickle.loads(BOMB)
    assert (tmp_path / "exploded").exists(), "the file is one that explodes where it is read carelessly"


class Float8:
    """A tensor of a type that numpy has no name for, as torch refuses it."""

    ndim, dtype, layout, shape = 2, "torch.float8_e4m3fn", "torch.strided", (4, 2)

    def __getitem__(self, rows):
        return self

    def contiguous(self):
        return self

    def numpy(self):
        raise TypeError("Got unsupported ScalarType Float8_e4m3fn")


def test_types_of_torch_that_are_not_read_are_named(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    archive(tmp_path / "a" / "model.pt", b"")
    fake = types.SimpleNamespace(load=lambda *_, **__: {"mlp.0.weight": Float8()}, Tensor=Float8, bfloat16="bfloat16")
    monkeypatch.setitem(sys.modules, "torch", fake)
    refused(tmp_path, r"model\.pt: tensor 'mlp\.0\.weight' is torch\.float8_e4m3fn .*which is not read", tmp_path / "a")


def test_torch_files_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = released_tensors("adapter", dtype=BF16)
    (tmp_path / "a").mkdir()
    state = {n: torch.from_numpy(t.view(np.int16)).view(torch.bfloat16) for n, t in tensors.items()}
    torch.save({"state_dict": state}, tmp_path / "a" / "model.pt")
    to_orbax(tmp_path / "a", tmp_path / "b")
    to_released(tmp_path / "b", tmp_path / "c")
    same_bits(tensors, read_folder(tmp_path / "c")[0])
