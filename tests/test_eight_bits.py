"""Matrices in files as int8 with scales: written, read as the floats they stand for, and others' refused."""

import json

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from released_toys import BF16, own_config, refused, released_tensors, same_bits, write_folder
from safetensors.numpy import load_file

from omnidiff_jax.conversion.released import EIGHT_BITS
from omnidiff_jax.conversion.sources import open_released
from omnidiff_jax.conversion.to_orbax import to_orbax
from omnidiff_jax.conversion.to_released import to_released
from omnidiff_jax.eight_bits import SCALE, from_eight_bits, in_eight_bits
from omnidiff_jax.errors import UserError

INT8 = np.dtype(np.int8)
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


@given(arrays(np.float32, array_shapes(min_dims=1, max_dims=4, max_side=5), elements=FLOATS), st.data())
def test_a_number_moves_by_half_a_scale_at_most(value, data):
    axis = data.draw(st.integers(-value.ndim, value.ndim - 1))
    steps, scales = in_eight_bits(value, axis)
    assert steps.dtype == INT8 and steps.min(initial=0) >= -127
    assert scales.shape == tuple(n if a == axis % value.ndim else 1 for a, n in enumerate(value.shape))
    error = np.abs(from_eight_bits(steps, scales) - value)
    assert (error <= scales * np.float32(0.5001) + np.float32(1e-37)).all()
    mirrored, same = in_eight_bits(-value, axis)
    np.testing.assert_array_equal(mirrored, -steps)
    np.testing.assert_array_equal(same, scales)


@pytest.fixture
def converted(tmp_path):
    """(tensors of a tiny model, the same as arrays of Orbax)."""
    tensors = released_tensors("omni")
    to_orbax(write_folder(tmp_path / "source", tensors, own_config("omni")), tmp_path / "arrays")
    return tensors, tmp_path / "arrays"


def test_what_is_written_is_read_as_its_floats(converted, tmp_path):
    tensors, arrays_ = converted
    summary = to_released(arrays_, tmp_path / "eight", dtype=INT8)
    held = load_file(tmp_path / "eight" / "model.safetensors")
    matrices = {name.removesuffix(SCALE) for name in held if name.endswith(SCALE)}
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.layers.2.mlp.up_proj.weight"} <= matrices
    assert {held[name].dtype for name in matrices} == {INT8}
    assert {held[name].dtype for name in held.keys() - matrices if not name.endswith(SCALE)} == {np.dtype(np.float16)}
    assert summary.bytes == sum(value.nbytes for value in held.values())
    assert json.loads((tmp_path / "eight" / "config.json").read_text())["quantization_config"] == EIGHT_BITS
    with open_released(tmp_path / "eight") as folder:
        assert folder.shapes.keys() == tensors.keys()
        for name in matrices:
            steps, scales = in_eight_bits(tensors[name])
            np.testing.assert_array_equal(folder.read(name), from_eight_bits(steps, scales))
            np.testing.assert_array_equal(folder.read(name, 1, 3), from_eight_bits(steps, scales)[1:3])
            assert folder.dtype(name) == np.float32


def test_it_goes_back_and_again_to_the_same_bytes(converted, tmp_path):
    """As floats it says nothing of eight bits any more."""
    _, arrays_ = converted
    to_released(arrays_, tmp_path / "eight", dtype=INT8)
    to_orbax(tmp_path / "eight", tmp_path / "back")
    to_released(tmp_path / "back", tmp_path / "again", dtype=INT8)
    same_bits(*(load_file(tmp_path / name / "model.safetensors") for name in ("eight", "again")))
    to_released(tmp_path / "back", tmp_path / "floats", dtype=np.dtype(np.float32))
    assert "quantization_config" not in json.loads((tmp_path / "floats" / "config.json").read_text())
    to_orbax(tmp_path / "floats", tmp_path / "other")


@pytest.mark.parametrize("scale", ["channel", "tensor"])
def test_weights_of_compressed_tensors_are_read(tmp_path, scale):
    """In two files, the scales in the other one, as its shards may be."""
    tensors, rng = released_tensors("omni", dtype=BF16), np.random.default_rng(1)
    names = [name for name in tensors if name.endswith("_proj.weight")]
    expected = {name: value.astype(np.float32) for name, value in tensors.items()}
    for name in names:
        tensors[name] = rng.integers(-127, 128, tensors[name].shape, np.int8)
        shape = (len(tensors[name]), 1) if scale == "channel" else (1,)
        tensors[name + SCALE] = rng.random(shape, np.float32).astype(BF16)
        expected[name] = tensors[name] * tensors[name + SCALE].astype(np.float32)
    told = json.loads(json.dumps(EIGHT_BITS))
    told["config_groups"]["group_0"]["weights"]["strategy"] = scale
    told["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8, "dynamic": True, "strategy": "token"}
    source = write_folder(tmp_path / "a", tensors, own_config("omni") | {"quantization_config": told}, files=2)
    with open_released(source) as folder:
        assert folder.shapes.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(folder.read(name).astype(np.float32), value)
            np.testing.assert_array_equal(folder.read(name, 2, 5).astype(np.float32), value[2:5])
    to_orbax(source, tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "pack-quantized"}, r"quantized \(compressed-tensors, pack-quantized\)"),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
        (
            {"sparsity_config": {"format": "sparse-24-bitmask"}},
            "or in int8 by compressed-tensors with a scale a channel",
        ),
        ({"config_groups": {}}, "compressed-tensors"),
        ({"num_bits": 4}, "compressed-tensors"),
        ({"symmetric": False}, "compressed-tensors"),
        ({"strategy": "group"}, "compressed-tensors"),
    ],
)
def test_what_is_held_otherwise_is_refused(tmp_path, change, said):
    told = json.loads(json.dumps(EIGHT_BITS))
    inner = told["config_groups"]["group_0"]["weights"]
    for key, value in change.items():
        (inner if key in inner else told)[key] = value
    config = own_config("omni") | {"quantization_config": told}
    refused(tmp_path, said, write_folder(tmp_path / "a", released_tensors("omni"), config))


@pytest.mark.parametrize(
    ("scales", "said"),
    [
        (np.ones((40, 2), np.float32), r"'lm_head\.weight_scale' is float32\[40, 2\], no scale for each row"),
        (np.ones((40, 1), np.int32), r"is int32\[40, 1\], no scale"),
        (None, "'lm_head.weight' holds int8"),
    ],
)
def test_scales_that_fit_nothing_are_named(tmp_path, scales, said):
    tensors = released_tensors("omni") | {"lm_head.weight": np.zeros((40, 16), np.int8)}
    tensors |= {} if scales is None else {"lm_head.weight_scale": scales}
    refused(tmp_path, said, write_folder(tmp_path / "a", tensors, own_config("omni")))


def test_numbers_without_a_place_are_refused(tmp_path, omnidiff):
    tensors = released_tensors("omni")
    tensors["lm_head.weight"][3, 2] = np.inf
    to_orbax(write_folder(tmp_path / "a", tensors, own_config("omni")), tmp_path / "b", allow_nan=True)
    with pytest.raises(UserError, match=r"'lm_head\.weight' holds infinite numbers"):
        to_released(tmp_path / "b", tmp_path / "c", dtype=INT8)
    with pytest.raises(UserError, match="int8 has no place for NaN"):
        to_released(tmp_path / "b", tmp_path / "c", dtype=INT8, allow_nan=True)
    assert not (tmp_path / "c").exists()
    done = omnidiff("convert", "--from=released", "--to=orbax", "--dtype=int8", tmp_path / "a", tmp_path / "d")
    assert done.returncode == 2 and "--dtype=int8 is a form of released files" in done.stderr
