"""Checkpoints between the released form and Orbax: no bit lost, nothing left over, nothing half-written."""

import contextlib
import importlib.util
import json
import os
import pickle
import sys
import types
import zipfile

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
    released_tensors,
    same_bits,
    write_file,
    write_folder,
)

from omnidiff_jax.conversion import parts
from omnidiff_jax.conversion.arrays import ABOUT, ArrayFolder
from omnidiff_jax.conversion.components import COMPONENTS, recognise
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


FLOW_YAML = """
flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec
    input_frame_rate: 25
    encoder: !new:cosyvoice.transformer.encoder.BlockConformerEncoder
        block_size: 7
    length_regulator: !new:cosyvoice.flow.length_regulator.InterpolateRegulator
        sampling_ratios: [1, 1, 1, 1]
    decoder: !new:cosyvoice.flow.flow_matching.ConditionalCFM
        cfm_params: !new:omegaconf.DictConfig
            content: {solver: euler, t_scheduler: cosine, inference_cfg_rate: 0.5}
        estimator: !new:cosyvoice.flow.decoder.ConditionalDecoder
            attention_head_dim: 16
            num_heads: 4
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    sampling_rate: 16000
    upsample_rates: [4, 8]
    resblock_dilation_sizes: [[1, 2, 4], [1, 2, 4], [1, 2, 4]]
    audio_limit: 0.9
    istft_params: {n_fft: 16, hop_len: 8}
"""


def test_speech_decoders_take_from_their_yaml_what_shapes_do_not_tell(tmp_path):
    configs = {}
    for name in ("flow", "hift"):
        source = write_folder(tmp_path / f"{name}_released", released_tensors(name))
        (source / "config.yaml").write_text(FLOW_YAML)
        to_orbax(source, tmp_path / name)
        configs[name] = json.loads((tmp_path / name / ABOUT).read_text())["config"]
    flow, hift = configs["flow"], configs["hift"]
    assert flow["code_rate"] == 25 and flow["guidance"] == 0.5 and flow["encoder"]["block_size"] == 7
    assert (flow["estimator"]["heads"], flow["estimator"]["head_dim"]) == (4, 16)
    assert flow["drop_rate"] == 0.2, "what the file leaves out is as released"
    assert hift["sample_rate"] == 16000 and hift["upsample_rates"] == [4, 8] and hift["limit"] == 0.9
    assert hift["hop"] == 8 and hift["resblock_dilations"] == [[1, 2, 4]] * 3 and hift["slope"] == 0.1


# ---- bad input ----------------------------------------------------------------------------------------------


def refused(tmp_path, match, source, **options):
    with pytest.raises(UserError, match=match) as error:
        to_orbax(source, tmp_path / "out", **options)
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == [source.name], "something is left behind"


def test_a_truncated_shard_is_named(tmp_path):
    source = write_folder(tmp_path / "a", released_tensors("adapter"))
    file = source / "model.safetensors"
    os.truncate(file, file.stat().st_size - 5)
    refused(tmp_path, r"model\.safetensors is not a whole safetensors file: it has \d+ bytes where", source)
    os.truncate(file, 4)
    refused(tmp_path, "hold no header", source)


def test_missing_and_left_over_tensors_are_listed(tmp_path):
    tensors = released_tensors("adapter")
    del tensors["mlp.2.weight"]
    source = write_folder(tmp_path / "a", tensors)
    refused(tmp_path, r"lacks 1 tensors: mlp\.2\.weight", source)
    (source / "model.safetensors").unlink()
    extra = {"mlp.4.weight": np.ones((2, 2), np.float32)}
    write_file(source / "model.safetensors", released_tensors("adapter") | extra)
    refused(tmp_path, r"1 tensors have no rule .*mlp\.4\.weight", source)


def test_a_missing_layer_is_named(tmp_path):
    tensors = {n: t for n, t in released_tensors("omni").items() if ".layers.1." not in n}
    refused(tmp_path, "lacks layer 1 of the stack", write_folder(tmp_path / "a", tensors, OMNI_JSON))


def test_a_wrong_shape_is_named(tmp_path):
    tensors = released_tensors("omni") | {"lm_head.weight": np.zeros((41, 16), np.float32)}
    source = write_folder(tmp_path / "a", tensors, OMNI_JSON)
    refused(tmp_path, r"'lm_head\.weight' has shape \[41, 16\] where the config says \[40, 16\]", source)


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


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (None, r"config\.json is missing, and tensors do not tell the number of attention heads, rope_theta"),
        ({"hidden_size": None}, "config.json says nothing of the backbone"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            r"quantization_config says .*quantized \(gptq\)",
        ),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling = .* is not supported"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type = 'yarn' is not supported"),
        ({"rope_parameters": {"rope_theta": 5e5}}, "rope_theta = 1000000.0 is not supported; only 500000.0"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings = True is not supported"),
        ({"num_attention_heads": 2}, "has shape"),
        ({"num_attention_heads": 0}, "heads = 0 must be at least 1"),
        ({"rope_theta": -1.0}, "rope_theta = -1.0 must be above 0"),
        ({"rms_norm_eps": float("nan")}, "norm_epsilon = nan must be a finite number"),
    ],
)
def test_an_architecture_is_not_invented(tmp_path, change, match):
    config = None if change is None else {k: v for k, v in (OMNI_JSON | change).items() if v is not None}
    refused(tmp_path, match, write_folder(tmp_path / "a", released_tensors("omni"), config))


@pytest.mark.parametrize("rope", [{"rope_theta": 2e4}, {"rope_theta": None, "rope_parameters": {"rope_theta": 2e4}}])
def test_rope_is_read_where_it_stands(tmp_path, rope):
    config = {k: v for k, v in (OMNI_JSON | rope).items() if v is not None}
    summary = to_orbax(write_folder(tmp_path / "a", released_tensors("omni"), config), tmp_path / "b")
    assert json.loads((tmp_path / "b" / ABOUT).read_text())["config"]["backbone"]["rope_theta"] == 2e4
    assert summary.assumed == {}


def test_what_nobody_tells_is_named(tmp_path, omnidiff):
    """In the summary, in one line of the command, and in the config that is written for the next reader."""
    config = {k: v for k, v in OMNI_JSON.items() if k not in ("rope_theta", "rms_norm_eps", "encoder_conf")}
    source = write_folder(tmp_path / "a", released_tensors("omni"), config)
    guessed = {"backbone.norm_epsilon": 1e-6, "backbone.rope_theta": 1e6, "speech_encoder.heads": 4}
    assert to_orbax(source, tmp_path / "b").assumed == guessed
    assert json.loads((tmp_path / "b" / ABOUT).read_text())["assumed"] == guessed
    (tmp_path / "b" / "released_files" / "config.json").unlink()
    to_released(tmp_path / "b", tmp_path / "c")
    assert json.loads((tmp_path / "c" / "config.json").read_text())["omnidiff"]["assumed"] == guessed
    assert to_orbax(tmp_path / "c", tmp_path / "d").assumed == guessed, "it is not forgotten on the way"
    done = omnidiff("convert", "--from=released", "--to=orbax", source, tmp_path / "e")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("convert: ")]
    assert "neither tensors nor config tell backbone.norm_epsilon = 1e-06, backbone.rope_theta = 1000000.0" in line


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        (
            "omni",
            {"rope_theta": 1e4},
            r"rope_theta = 10000\.0, but backbone.rope_theta = 1000000\.0 in its omnidiff group",
        ),
        ("omni", {"num_attention_heads": 8}, "num_attention_heads = 8, but backbone.heads = 4"),
        ("omni", {"encoder_conf": {"attention_heads": 8}}, "encoder_conf.attention_heads = 8, but"),
        ("omni", {"rope_scaling": {"factor": 2}}, "rope_scaling = .* is not supported"),
        ("omni", {"quantization_config": {"quant_method": "awq"}}, "quantized"),
        ("whisper_vq", {"encoder_attention_heads": 2}, "encoder_attention_heads = 2, but heads = 1"),
    ],
)
def test_a_config_may_not_contradict_itself(tmp_path, name, change, match):
    """A folder that was exported here says its sizes twice; whoever edits one is told of the other."""
    tensors = released_tensors(name)
    source = write_folder(tmp_path / "a", tensors, own_config(name))
    to_orbax(source, tmp_path / "b")
    (tmp_path / "b" / "released_files" / "config.json").unlink()
    to_released(tmp_path / "b", tmp_path / "c")
    exported = tmp_path / "c" / "config.json"
    to_orbax(tmp_path / "c", tmp_path / "d")
    exported.write_text(json.dumps(json.loads(exported.read_text()) | change))
    with pytest.raises(UserError, match=match):
        to_orbax(tmp_path / "c", tmp_path / "e")


@pytest.mark.parametrize("dtype", [np.int32, np.int8, np.uint8, np.bool_, np.int64])
def test_weights_that_are_no_floats_are_refused(tmp_path, dtype):
    tensors = released_tensors("adapter")
    tensors["mlp.0.weight"] = np.ones(tensors["mlp.0.weight"].shape, dtype)
    kind = np.dtype(dtype).name
    refused(tmp_path, rf"'mlp\.0\.weight' holds {kind}, and .* floats", write_folder(tmp_path / "a", tensors))


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


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 4976698672\n" % (b"0" * 64)
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>" + b"x" * 3000 + b"</body></html>"


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


def test_a_torch_file_under_the_name_of_safetensors_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    archive(tmp_path / "a" / "model.safetensors", pickle.dumps({}))
    refused(tmp_path, "is a torch file by another name", tmp_path / "a")


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


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        (("solver: euler", "solver: midpoint"), "cfm_params: solver = 'midpoint' is not supported"),
        (("num_heads: 4", "num_heads: 3"), "64 wide, which is not 3 heads of 16"),
    ],
)
def test_speech_decoders_of_another_kind_are_refused(tmp_path, changed, match):
    source = write_folder(tmp_path / "a", released_tensors("flow"))
    (source / "config.yaml").write_text(FLOW_YAML.replace(*changed))
    refused(tmp_path, match, source)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def archive(path, content):
    """A torch file by hand: the archive that `torch.save` makes, around any pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data.pkl", content)
        file.writestr("model/version", "3\n")


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


def test_unknown_tensors_are_refused(tmp_path):
    source = write_folder(tmp_path / "a", {"what.weight": np.ones(3, np.float32)})
    refused(tmp_path, r"no known checkpoint has these tensors \(what\.weight", source)
    refused(tmp_path, "did you mean 'magvit'", source, component="magvitt")
    assert recognise(["model.embed_tokens.weight"]).name == "omni"


def test_the_command_converts_both_ways(tmp_path, omnidiff):
    source = write_folder(tmp_path / "a", released_tensors("adapter"))
    done = omnidiff("convert", "--from=released", "--to=orbax", source, tmp_path / "b")
    assert done.returncode == 0 and "adapter: 4 tensors" in done.stdout, done.stderr
    wrong = omnidiff("convert", "--from=orbax", "--to=orbax", source, tmp_path / "c")
    assert wrong.returncode == 2 and "both orbax" in wrong.stderr
