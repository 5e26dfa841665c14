"""Matrices in int8 and fp8: exact products of what is held, layouts, every door that loads a model, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax.core import meta
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding
from tiny_run import untrained, write_config

import omnidiff_jax
from experiments.common import load_config
from omnidiff_jax.codecs.tokenizers import open_tokenizers
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.backbone import BackboneConfig
from omnidiff_jax.models.linear import Linear
from omnidiff_jax.models.omni import OmniConfig, OmniModel, example_inputs, init_params
from omnidiff_jax.models.quantization import QUANTIZATIONS, Quantized, quantize_array, quantize_params, shared_axes
from omnidiff_jax.runs.stored import newest, open_here, read_quantized, restore, restore_quantized
from omnidiff_jax.sharding import axes
from omnidiff_jax.sharding.mesh import MeshConfig, make_mesh
from omnidiff_jax.sharding.rules import logical_rules, param_specs
from omnidiff_jax.training import initial, lora, model_program

BACKBONE = BackboneConfig(
    vocab_size=96, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, hidden=64, dtype="float32", remat="none"
)
MODEL = OmniConfig(BACKBONE, speech_encoder=None)
MATRICES = {
    "backbone/embedding", "backbone/head",
    *(f"backbone/layers/attention/{name}/kernel" for name in ("query", "key", "value", "out")),
    *(f"backbone/layers/mlp/{name}/kernel" for name in ("gate", "up", "down")),
}  # fmt: skip


@pytest.fixture(scope="module")
def boxed():
    return jax.jit(init_params, static_argnums=0)(MODEL, jax.random.key(0))


def plain(tree):
    """The parameters with what is held in small numbers as floats again, exactly."""
    return jax.tree.map(
        lambda x: qwix.dequantize(x.array) if isinstance(x, Quantized) else x,
        tree,
        is_leaf=lambda x: isinstance(x, Quantized),
    )


def logits(params, config=MODEL):
    tokens = jnp.arange(24)[None] * 3
    inputs = dataclasses.replace(
        example_inputs(config), tokens=tokens, segment_ids=tokens * 0 + 1, positions=jnp.arange(24)[None]
    )
    model = OmniModel(config)
    hidden = model.apply({"params": params}, inputs)
    return model.apply({"params": params}, hidden, method="logits")


def test_which_parameters_are_held_in_small_numbers(boxed):
    flat = flatten_dict(quantize_params(meta.unbox(boxed), "int8"), sep="/")
    assert {path for path, leaf in flat.items() if isinstance(leaf, Quantized)} == MATRICES
    for path in MATRICES:
        whole, scales = flat[path].array.qvalue, flat[path].array.scale
        assert whole.dtype == jnp.int8 and scales.dtype == jnp.float32
        shared = shared_axes(path)
        assert scales.shape == tuple(1 if axis in shared else size for axis, size in enumerate(whole.shape))
    assert shared_axes("adapter/proj/kernel") is None and shared_axes("speech_encoder/blocks/ffn_in/kernel") is None


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_a_matrix_is_off_by_half_a_step_at_most(name):
    array = jax.random.normal(jax.random.key(1), (3, 16, 5, 4)) * jnp.arange(1.0, 4.0)[:, None, None, None]
    held = quantize_array(array.at[1, :, 2, 1].set(0.0), (1,), QUANTIZATIONS[name]).array
    off = np.abs(np.asarray(qwix.dequantize(held)) - np.asarray(array.at[1, :, 2, 1].set(0.0)))
    largest = np.abs(np.asarray(array.at[1, :, 2, 1].set(0.0))).max(axis=1, keepdims=True)
    # Half a step of int8 is 1 / 254 of the largest; float8_e4m3fn has three bits behind the point.
    assert np.all(off <= largest * (1 / 254 if name != "fp8" else 1 / 28) + 1e-7)


def test_int8w_computes_with_what_is_held(boxed):
    held = quantize_params(meta.unbox(boxed), "int8w")
    np.testing.assert_allclose(jax.jit(logits)(held), jax.jit(logits)(plain(held)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("contract", [1, 2])
def test_int8_multiplies_whole_numbers(contract):
    linear = Linear((6, 4), (axes.HEADS, axes.HEAD_DIM, None, None)[:2] + (None,) * contract, contract, use_bias=False)
    x = jax.random.normal(jax.random.key(0), (2, 5, *(8, 3)[:contract])).at[1, 3].set(0.0)
    kernel = jax.random.normal(jax.random.key(1), (*(8, 3)[:contract], 6, 4))
    held = quantize_array(kernel, tuple(range(contract)), QUANTIZATIONS["int8"])

    def steps(values, over):
        values = np.asarray(values, np.float64)
        scale = np.abs(values).max(axis=over, keepdims=True) / 127.5
        scale = np.asarray(np.where(scale == 0, 1, scale), np.float32)
        return np.clip(np.round(values / scale), -128, 127), scale

    inner = tuple(range(2, 2 + contract))
    found = linear.apply({"params": {"kernel": held}}, x)
    given = qwix.quantize(x, jnp.int8, channelwise_axes=[0, 1])
    numbers, scale = np.asarray(given.qvalue, np.float64), np.asarray(given.scale)
    whole = np.tensordot(numbers, np.asarray(held.array.qvalue, np.float64), axes=contract)
    expected = whole * scale.reshape(2, 5, 1, 1) * np.asarray(held.array.scale).reshape(1, 1, 6, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(numbers - steps(x, inner)[0]).max() <= 1
    # What a row gets does not depend on the rows beside it.
    np.testing.assert_array_equal(linear.apply({"params": {"kernel": held}}, x[1:, 2:3]), found[1:, 2:3])


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_scanned_or_not_float32_or_bfloat16_and_parts_of_the_head(boxed, name):
    params = meta.unbox(boxed)
    held, floats = quantize_params(params, name), jax.jit(logits)(params)
    found = jax.jit(logits)(held)
    spread = float(jnp.std(floats))
    limit = 0.15 if name == "fp8" else 0.05
    assert 0 < float(jnp.abs(found - floats).mean()) < limit * spread
    for changes in ({"scan_layers": False}, {"dtype": "bfloat16"}):
        other = dataclasses.replace(MODEL, backbone=dataclasses.replace(BACKBONE, **changes))
        near = jax.jit(logits, static_argnums=1)(held, other)
        assert near.dtype == jnp.float32
        if "dtype" not in changes:
            np.testing.assert_allclose(near, found, rtol=1e-4, atol=1e-5)
        assert float(jnp.abs(near - floats).mean()) < limit * spread
    rows = jax.random.normal(jax.random.key(2), (7, 32))
    whole, part = (OmniModel(MODEL).apply({"params": held}, rows, *span, method="logits") for span in ((), (40, 72)))
    np.testing.assert_allclose(part, whole[:, 40:72], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_tensor"])
def test_layouts_follow_the_floats(boxed, strategy):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2) if strategy == "fsdp_tensor" else MeshConfig(fsdp=8))
    specs = param_specs(boxed, strategy, mesh)
    params = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), meta.unbox(boxed), specs)
    with jax.set_mesh(mesh), logical_rules(strategy):
        held = quantize_params(params, "int8")
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
        abstract = quantize_params(shapes, "int8")
        found = jax.jit(logits)(held)
    told = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding.spec), held)
    assert told == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding.spec), abstract)
    gate, floats = held["backbone"]["layers"]["mlp"]["gate"]["kernel"].array, params["backbone"]["layers"]["mlp"]
    assert gate.qvalue.sharding.spec == floats["gate"]["kernel"].sharding.spec
    assert gate.qvalue.addressable_shards[0].data.nbytes * 8 == gate.qvalue.nbytes
    alone = quantize_params(meta.unbox(boxed), "int8")
    assert all(
        np.array_equal(ours, theirs) for ours, theirs in zip(jax.tree.leaves(held), jax.tree.leaves(alone), strict=True)
    )
    np.testing.assert_allclose(found, jax.jit(logits)(alone), rtol=1e-4, atol=1e-5)


# ---- loading ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    file = write_config(tmp_path_factory.mktemp("quantized"))
    config = load_config(str(file))
    config.batch_size = 8
    return config


def opened(folder):
    found = newest(folder)
    return found, open_here(found.config, open_tokenizers(found.config.tokenizers))


def same_but_for_a_step(found, expected):
    """Equal, but where rounding of the floats may have moved a number over a boundary."""
    ours, theirs = flatten_dict(found, sep="/"), flatten_dict(expected, sep="/")
    assert ours.keys() == theirs.keys() and MATRICES <= {p for p, x in ours.items() if isinstance(x, Quantized)}
    for path, leaf in theirs.items():
        if not isinstance(leaf, Quantized):
            np.testing.assert_array_equal(ours[path], leaf, err_msg=path)
            continue
        assert ours[path].activations == leaf.activations
        np.testing.assert_allclose(ours[path].array.scale, leaf.array.scale, rtol=1e-4, err_msg=path)
        steps = np.abs(np.asarray(ours[path].array.qvalue, np.int32) - np.asarray(leaf.array.qvalue, np.int32))
        assert steps.max() <= 1 and steps.mean() < 1e-3, path


def test_lora_is_added_before_matrices_are_quantised(config, tmp_path, monkeypatch):
    def trained_lora(params, config, key):
        fresh = lora.init_lora(params, config, key)
        return jax.tree.map(lambda x: x + 0.1, fresh)

    changed = config.copy_and_resolve_references()
    changed.lora.rank = 2
    with monkeypatch.context() as patched:
        patched.setattr(model_program, "init_lora", trained_lora)
        untrained(changed, tmp_path / "run")
    found, run = opened(tmp_path / "run")
    assert run.program.lora.rank == 2
    floats = restore(found, run)
    expected = quantize_params(run.program.whole(floats), "int8")
    same_but_for_a_step(restore_quantized(found, run, QUANTIZATIONS["int8"]), expected)


def test_one_array_is_held_in_floats_at_a_time_and_image_rows_are_sums(config, tmp_path, monkeypatch):
    untrained(config, tmp_path / "run")
    found, run = opened(tmp_path / "run")
    assert run.program.image_factors
    expected = quantize_params(run.program.whole(restore(found, run)), "int8w")
    events = []
    read, quantize = initial._load, omnidiff_jax.runs.stored.quantize_leaf
    monkeypatch.setattr(initial, "_load", lambda store, path, *rest: (events.append(path), read(store, path, *rest))[1])
    monkeypatch.setattr(
        omnidiff_jax.runs.stored, "quantize_leaf", lambda path, *rest: (events.append(path), quantize(path, *rest))[1]
    )
    held = restore_quantized(found, run, QUANTIZATIONS["int8w"])
    same_but_for_a_step(held, expected)
    assert events[::2] == events[1::2]  # each is quantised before the next one is read
    sizes = [leaf.size for path in events[::2] if isinstance(leaf := flatten_dict(held, sep="/")[path], jax.Array)]
    assert events[0] in MATRICES and sizes == sorted(sizes, reverse=True)
    # The same weights, taken for a folder of weights.
    again = read_quantized(initial.InitConfig(folder=str(tmp_path / "run")), run, QUANTIZATIONS["int8w"])
    assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(held)))


def test_a_quantised_model_answers_alike_alone_and_among_others():
    model = omnidiff_jax.load("nano", rows=2, quantization="int8")
    settings = {"steps": 4, "length": 12}
    requests = [{"task": "text_qa", "text": text, "settings": settings} for text in ("hello", "who are you", "one")]
    together = model.answer_many(requests)
    alone = [model.answer(**request) for request in requests]
    assert [a.text for a in together] == [a.text for a in alone]


def test_unknown_words_and_devices_without_it_are_refused():
    with pytest.raises(UserError, match="unknown quantization 'int8x'; did you mean 'int8'"):
        omnidiff_jax.load("nano", quantization="int8x")
    with pytest.raises(UserError, match=r"float8_e4m3fn is for devices .*H100.*this one is 'cpu'; use int8 or int8w"):
        omnidiff_jax.load("nano", quantization="fp8")
    with pytest.raises(UserError, match="unknown quantization"):
        quantize_params({}, "int4")
    QUANTIZATIONS["fp8"].check("NVIDIA H100 80GB HBM3")
