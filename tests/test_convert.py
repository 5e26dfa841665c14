"""Checkpoints between the released form and Orbax: no bit lost, no number broken, nothing half-written."""

import contextlib
import json
import os

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from released_toys import (
    BF16,
    OMNI_JSON,
    TINY,
    own_config,
    read_folder,
    refused,
    released_tensors,
    same_bits,
    write_file,
    write_folder,
)

from omnidiff_jax.conversion import parts
from omnidiff_jax.conversion.arrays import ArrayFolder
from omnidiff_jax.conversion.components import COMPONENTS
from omnidiff_jax.conversion.rules import to_flax
from omnidiff_jax.conversion.tensor_files import SafetensorsFile
from omnidiff_jax.conversion.to_orbax import Layout, to_orbax
from omnidiff_jax.conversion.to_released import to_released
from omnidiff_jax.errors import UserError
from omnidiff_jax.tokenizers import assets
from omnidiff_jax.tokenizers.speech_encoder import load_speech_encoder


@pytest.mark.parametrize("name", list(TINY))
def test_round_trip_keeps_every_bit(name, tmp_path, monkeypatch):
    """Sizes told from the tensors (and, for the backbone, the hub's config); moved in parts."""
    monkeypatch.setattr(parts, "PART", 512)
    tensors = released_tensors(name, dtype=BF16 if name == "omni" else np.float32)
    config = OMNI_JSON if name == "omni" else None
    source = write_folder(tmp_path / "a", tensors, config, files=3 if name == "omni" else 1)
    summary = to_orbax(source, tmp_path / "b")
    assert (summary.component, summary.tensors) == (name, len(tensors))
    to_released(tmp_path / "b", tmp_path / "c")
    back, owner = read_folder(tmp_path / "c")
    same_bits(tensors, back)
    assert owner == read_folder(source)[1]
    if config:
        assert json.loads((tmp_path / "c" / "config.json").read_text()) == config
    # What Orbax reads is what the rules give.
    params = ocp.StandardCheckpointer().restore(tmp_path / "b")
    component = COMPONENTS[name]
    sizes = component.config({n: t.shape for n, t in tensors.items()}, config or {})
    same_bits(flatten_dict(to_flax(component.rules(sizes), tensors), sep="/"), flatten_dict(params, sep="/"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "manifest"),
    [
        ("adapter", "resampler_projector"),
        ("sensevoice", "sensevoice_small"),
        ("magvit", "magvitv2"),
        ("whisper_vq", "whisper_vq_encoder_glm4voice"),
        ("flow", "flow_glm4voice_decoder"),
        ("hift", "hift_glm4voice_decoder"),
    ],
)
def test_every_released_manifest_comes_back_bit_for_bit(name, manifest, golden, tmp_path):
    """At full size; `make check-7b` does the same for the backbone's."""
    shapes = json.loads((golden / "manifests" / f"{manifest}.json").read_text())["tensors"]
    rng = np.random.default_rng(0)
    tensors = {tensor: rng.standard_normal(shape, np.float32) for tensor, shape in shapes.items()}
    tensors = {tensor: np.asarray(value, np.float32) for tensor, value in tensors.items()}
    summary = to_orbax(write_folder(tmp_path / "a", tensors), tmp_path / "b")
    assert (summary.component, summary.tensors) == (name, len(shapes))
    to_released(tmp_path / "b", tmp_path / "c")
    same_bits(tensors, read_folder(tmp_path / "c")[0])


def test_a_new_folder_is_split_by_size_and_says_its_config(tmp_path):
    tensors = released_tensors("omni")
    source = write_folder(tmp_path / "a", tensors, own_config("omni"))
    to_orbax(source, tmp_path / "b")
    about = json.loads((tmp_path / "b" / "omnidiff.json").read_text())
    about["released"] = None
    (tmp_path / "b" / "omnidiff.json").write_text(json.dumps(about))
    (tmp_path / "b" / "released_files" / "config.json").unlink()
    to_released(tmp_path / "b", tmp_path / "c", shard_bytes=4000)
    names = sorted(p.name for p in (tmp_path / "c").glob("*.safetensors"))
    assert len(names) > 2 and names[0].endswith(f"-of-{len(names):05d}.safetensors")
    assert all(os.path.getsize(tmp_path / "c" / n) < 12000 for n in names)
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert (config["num_key_value_heads"], config["head_dim"]) == (2, 4)
    to_orbax(tmp_path / "c", tmp_path / "d")
    same_bits(tensors, read_folder(tmp_path / "c")[0])
    with contextlib.closing(SafetensorsFile(tmp_path / "c" / names[0])) as file:
        assert file.metadata == {"format": "pt"}


def test_arrays_are_cut_for_the_mesh_and_land_on_it(tmp_path):
    source = write_folder(tmp_path / "a", released_tensors("omni"), OMNI_JSON)
    to_orbax(source, tmp_path / "b", layout=Layout({"fsdp": 4, "tensor": 2}, "fsdp_tensor"))
    spec = json.loads((tmp_path / "b" / "backbone.layers.mlp.up.kernel" / ".zarray").read_text())
    assert (spec["shape"], spec["chunks"]) == ([3, 16, 24], [1, 4, 12])
    mesh = jax.make_mesh((8,), ("fsdp",))
    shape = jax.ShapeDtypeStruct((40, 16), np.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    metadata = ocp.StandardCheckpointer().metadata(tmp_path / "b").item_metadata.tree
    target = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), metadata)
    target["backbone"]["embedding"] = shape
    restored = ocp.StandardCheckpointer().restore(tmp_path / "b", target)
    assert len(restored["backbone"]["embedding"].sharding.device_set) == 8
    table = read_folder(source)[0]["model.embed_tokens.weight"]
    np.testing.assert_array_equal(restored["backbone"]["embedding"], table)


def test_casting_touches_only_floats(tmp_path):
    tensors = released_tensors("adapter")
    to_orbax(write_folder(tmp_path / "a", tensors), tmp_path / "b", dtype=BF16)
    to_released(tmp_path / "b", tmp_path / "c")
    same_bits({n: t.astype(BF16) for n, t in tensors.items()}, read_folder(tmp_path / "c")[0])


def test_tokenizers_load_from_converted_folders(tmp_path):
    """Kept buffers do not get in the way, and the arrays are those of the rules."""
    for name in ("magvit", "whisper_vq", "sensevoice", "flow", "hift"):
        tensors = released_tensors(name)
        source = write_folder(tmp_path / f"{name}_released", tensors, own_config(name))
        (source / "am.mvn").write_text(f"<AddShift> 14 14\n[ {'0.5 ' * 560} ]\n<Rescale> 14 14\n[ {'2.0 ' * 560} ]\n")
        to_orbax(source, tmp_path / name)
        params = COMPONENTS[name].abstract(TINY[name])
        config, loaded = assets.load(tmp_path / name, type(TINY[name]), lambda config, shapes=params: shapes)
        assert config == TINY[name]
        expected = flatten_dict(to_flax(COMPONENTS[name].rules(TINY[name]), tensors), sep="/")
        found = flatten_dict(loaded, sep="/")
        same_bits(found, {path: expected[path] for path in found})
    encoder, _, frontend = load_speech_encoder(tmp_path / "sensevoice")
    assert encoder == TINY["sensevoice"] and frontend.config.cmvn_scale[:2] == (2.0, 2.0)


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16, np.float64])
@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_what_is_not_finite_is_named_unless_allowed(tmp_path, dtype, value, said):
    tensors = released_tensors("adapter", dtype=dtype)
    tensors["mlp.0.weight"][3, 2] = value
    source = write_folder(tmp_path / "a", tensors)
    refused(tmp_path, rf"'mlp\.0\.weight' holds {said}.*--allow_nan", source)
    to_orbax(source, tmp_path / "out", allow_nan=True)
    with pytest.raises(UserError, match=rf"'mlp\.0\.weight' holds {said}"):
        to_released(tmp_path / "out", tmp_path / "back")
    to_released(tmp_path / "out", tmp_path / "back", allow_nan=True)
    same_bits(tensors, read_folder(tmp_path / "back")[0])


@pytest.mark.parametrize(
    ("found", "wanted", "fits", "beyond"),
    [
        (np.float32, np.float16, 65519.0, 65520.0),
        (BF16, np.float16, 65280.0, 65536.0),
        (np.float32, BF16, 3.394e38, 3.4e38),
        (np.float64, np.float32, 3.4028235e38, 1e39),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_cast_never_makes_a_finite_number_infinite(tmp_path, found, wanted, fits, beyond, sign):
    """Neither way, nor beside infinities that are allowed."""
    tensors, wanted = released_tensors("adapter", dtype=found), np.dtype(wanted)
    tensors["mlp.2.weight"][1, 5] = sign * fits
    source = write_folder(tmp_path / "a", tensors)
    to_orbax(source, tmp_path / "b", dtype=wanted)
    to_released(tmp_path / "b", tmp_path / "c")
    same_bits({n: t.astype(wanted) for n, t in tensors.items()}, read_folder(tmp_path / "c")[0])
    for other in (beyond, np.inf):
        tensors["mlp.2.weight"][0, 0] = other
        tensors["mlp.2.weight"][1, 5] = sign * beyond
        (source / "model.safetensors").unlink()
        write_file(source / "model.safetensors", tensors)
        match = r"'mlp\.2\.weight' holds numbers up to [\de.+]+, and the largest \w+ is .*another --dtype"
        with pytest.raises(UserError, match=match):
            to_orbax(source, tmp_path / "d", dtype=wanted, allow_nan=True)
    to_orbax(source, tmp_path / "d", allow_nan=True)
    with pytest.raises(UserError, match=match):
        to_released(tmp_path / "d", tmp_path / "e", dtype=wanted, allow_nan=True)


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16, np.float64])
def test_the_largest_number_is_found_wherever_it_lies(dtype):
    rng = np.random.default_rng(0)
    values = rng.standard_normal(200_003).astype(dtype)
    assert parts.largest(values) == np.abs(values.astype(np.float64)).max()
    for at in (0, 65535, 65536, 200_002):
        changed = values.copy()
        changed[at] = -7.5
        assert parts.largest(changed) == 7.5
        changed[at - 1] = np.inf
        assert parts.largest(changed) == np.inf and parts.largest(changed, finite=True) == 7.5
        changed[at - 2] = np.nan
        assert np.isnan(parts.largest(changed)) and parts.largest(changed, finite=True) == 7.5
    assert parts.largest(values[:0]) == 0.0 == parts.largest(np.zeros((), dtype))


@pytest.mark.parametrize("dtype", [np.int32, np.int8, np.uint8, np.bool_, np.int64])
def test_weights_that_are_no_floats_are_refused(tmp_path, dtype):
    tensors = released_tensors("adapter")
    tensors["mlp.0.weight"] = np.ones(tensors["mlp.0.weight"].shape, dtype)
    kind = np.dtype(dtype).name
    refused(tmp_path, rf"'mlp\.0\.weight' holds {kind}, and .* floats", write_folder(tmp_path / "a", tensors))


def test_an_existing_folder_is_left_alone(tmp_path):
    source = write_folder(tmp_path / "a", released_tensors("adapter"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        to_orbax(source, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "precious"
    with pytest.raises(UserError, match="does not say what it holds"):
        to_released(source, tmp_path / "other")


def test_a_disk_that_fails_leaves_nothing(tmp_path, monkeypatch):
    source = write_folder(tmp_path / "a", released_tensors("adapter"))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ArrayFolder, "write", full)
    refused(tmp_path, "No space left on device; free space", source)


def test_the_command_converts_both_ways(tmp_path, omnidiff):
    source = write_folder(tmp_path / "a", released_tensors("adapter"))
    done = omnidiff("convert", "--from=released", "--to=orbax", source, tmp_path / "b")
    assert done.returncode == 0 and "adapter: 4 tensors" in done.stdout, done.stderr
    wrong = omnidiff("convert", "--from=orbax", "--to=orbax", source, tmp_path / "c")
    assert wrong.returncode == 2 and "both orbax" in wrong.stderr
