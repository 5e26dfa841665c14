"""Torch files of before 1.6, read as data: what is in them, and that nothing else gets out of them."""

import collections
import os
import pickle

import legacy_files
import numpy as np
import pytest
from legacy_files import arrays, content, tensor

from omnidiff_jax.conversion.legacy_torch import read_legacy
from omnidiff_jax.errors import UserError

ONES = np.ones(6, np.float32)


def test_tensors_are_what_was_written(tmp_path):
    expected = arrays()
    found = read_legacy(legacy_files.write(tmp_path / "x.pth", expected))
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].flags.writeable
        np.testing.assert_array_equal(found[name], value)


def test_tensors_are_what_torch_writes(tmp_path):
    torch = pytest.importorskip("torch", reason="the extra torch")
    state = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3)).state_dict()
    state["turned"] = torch.arange(12.0).reshape(3, 4).T
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    found = read_legacy(tmp_path / "x.pth")
    assert list(found) == list(state)
    for name, value in state.items():
        np.testing.assert_array_equal(found[name], value.numpy())


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb",)


REFUSED = {
    "code": ({"a": Bomb()}, "asks for 'posix.mkdir'"),
    "a function of torch": ({"a": collections.Counter()}, "collections.Counter"),
    "a number": ({"a": 1}, "'a' is no tensor"),
    "a list": ([1], "no dictionary"),
    "a name of numbers": ({1: tensor("0", ONES)}, "a name is no text"),
    "negative": ({"a": tensor("0", ONES, shape=(-1, -6))}, "no sizes"),
    "axes": ({"a": tensor("0", ONES, shape=(1,) * 9, strides=(1,) * 9)}, "no sizes"),
    "more than its storage": ({"a": tensor("0", ONES, shape=(7,))}, "more than its storages|too small|incompatible"),
    "a step over the end": ({"a": tensor("0", ONES, shape=(2,), strides=(6,))}, "incompatible"),
    "an offset": ({"a": tensor("0", ONES, offset=1)}, "incompatible|too small"),
    "repeated": ({"a": tensor("0", ONES, shape=(1 << 40,), strides=(0,))}, "more than its storages"),
    "another size": ({"a": tensor("0", ONES, count=1 << 40, shape=(1 << 40,))}, "not what its tensors say"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    state, fault = REFUSED[name]
    (tmp_path / "x.pth").write_bytes(content(state))
    with pytest.raises(UserError, match=fault) as raised:
        read_legacy(tmp_path / "x.pth")
    assert "\n" not in str(raised.value) and not (tmp_path / "bomb").exists()


def test_two_sizes_of_one_storage(tmp_path):
    few, many = tensor("0", ONES, count=3, shape=(3,)), tensor("0", ONES)
    (tmp_path / "x.pth").write_bytes(content({"a": few, "b": many}))
    with pytest.raises(UserError, match="a storage has two sizes"):
        read_legacy(tmp_path / "x.pth")


def test_files_that_are_cut_off_or_something_else(tmp_path):
    path = tmp_path / "x.pth"
    whole = content({"a": tensor("0", ONES)})
    for end in range(0, len(whole), 3):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match="no whole state dict"):
            read_legacy(path)
    for damaged in (
        whole + b"x",
        b"PK\x03\x04" + whole,
        pickle.dumps({}),
        content({"a": tensor("0", ONES)}, keys=["1"]),
        content({"a": tensor("0", ONES)}, keys=["0", "0"]),
        content({"a": tensor("0", ONES)}, keys=[[]]),
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="no whole state dict"):
            read_legacy(path)
    path.write_bytes(whole)
    assert read_legacy(path, len(whole))["a"].shape == (6,)
    with pytest.raises(UserError, match="more than the 10 that are read"):
        read_legacy(path, 10)
    with pytest.raises(UserError, match="cannot read"):
        read_legacy(tmp_path / "none.pth")


def test_damaged_bytes_are_refused_or_read(tmp_path):
    path, rng = tmp_path / "x.pth", np.random.default_rng(0)
    whole = legacy_files.write(path, arrays()).read_bytes()
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for at in rng.integers(len(whole), size=3):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_legacy(path)
        except UserError:
            refused += 1
    assert refused > 100
