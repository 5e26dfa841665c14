"""Weights in eight bits: what a product loses, what stays exact, where the pieces lie, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from jax.sharding import NamedSharding
from tiny_run import write_config

import omnidiff_jax
from experiments.checks.untrained import untrained
from experiments.common import load_config
from omnidiff_jax.codecs.tokenizers import open_tokenizers
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.backbone import BackboneConfig
from omnidiff_jax.models.omni import OmniConfig, OmniModel, init_params
from omnidiff_jax.models.quantized import Weights, check_devices, contract, quantize_array, quantize_params
from omnidiff_jax.runs import stored
from omnidiff_jax.runs.stored import newest, open_here, restore, restore_quantized
from omnidiff_jax.sharding.mesh import MeshConfig, make_mesh
from omnidiff_jax.sharding.rules import logical_rules, param_specs
from omnidiff_jax.training import initial, lora, model_program

pytest.importorskip("qwix")

CONFIG = OmniConfig(
    BackboneConfig(
        vocab_size=96, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, hidden=64, init_stddev=0.2,
        dtype="float32", remat="none",
    ),
    None,
)  # fmt: skip
TOKENS = jnp.arange(24, dtype=jnp.int32).reshape(2, 12)


@pytest.fixture(scope="module")
def boxed():
    return jax.jit(lambda key: init_params(CONFIG, key))(jax.random.key(0))


@pytest.fixture(scope="module")
def params(boxed):
    return meta.unbox(boxed)


def logits(config, params, start=0, stop=None):
    def run(params):
        model = OmniModel(config)
        ones = jnp.ones_like(TOKENS)
        positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
        embeds = model.apply({"params": params}, TOKENS, method=lambda m, t: m.backbone.embed(t))
        hidden = model.apply({"params": params}, embeds, positions, ones, method=lambda m, *x: m.backbone(*x))
        return model.apply({"params": params}, hidden, start, stop, method="logits")

    return np.asarray(jax.jit(run)(params))


def back(params):
    """The float parameters that quantized ones stand for."""
    return jax.tree.map(
        lambda x: x.values.astype(jnp.float32) * x.scales if isinstance(x, Weights) else x,
        params,
        is_leaf=lambda x: isinstance(x, Weights),
    )


def test_every_large_matrix_is_held_in_bytes(params):
    held = quantize_params(params, "int8_weights")
    kinds = {
        "/".join(key.key for key in path): x.dtype
        for path, x in jax.tree_util.tree_flatten_with_path(back_values(held))[0]
    }
    large = {name for name in kinds if "kernel" in name or name in ("backbone/embedding", "backbone/head")}
    assert {name for name, dtype in kinds.items() if dtype == jnp.int8} == large
    assert len(large) == 9
    for x in jax.tree.leaves(held, is_leaf=lambda x: isinstance(x, Weights)):
        if isinstance(x, Weights):
            assert x.scales.size * 4 <= x.values.size  # a scale for many values


def back_values(held):
    return jax.tree.map(
        lambda x: x.values if isinstance(x, Weights) else x, held, is_leaf=lambda x: isinstance(x, Weights)
    )


@pytest.mark.parametrize("scan", [True, False])
def test_products_are_those_of_the_rounded_weights(params, scan):
    config = dataclasses.replace(CONFIG, backbone=dataclasses.replace(CONFIG.backbone, scan_layers=scan))
    held = quantize_params(params, "int8_weights")
    ours = logits(config, held)
    np.testing.assert_allclose(ours, logits(config, back(held)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits(config, held, 10, 40), ours[..., 10:40], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("word", "most"), [("int8_weights", 0.01), ("int8", 0.014)])
def test_little_is_lost(params, word, most):
    """A value is off by at most half of 1/127 of its channel's largest: 0.7 % of a normal one's deviation."""
    kernel = params["backbone"]["layers"]["mlp"]["gate"]["kernel"]
    held = quantize_params(params, word)["backbone"]["layers"]["mlp"]["gate"]["kernel"]
    x = jax.random.normal(jax.random.key(2), (64, 32))
    exact = np.asarray(x @ kernel[0])
    found = np.asarray(contract(x, jax.tree.map(lambda x: x[0], held), 1, (None, None)))
    assert 1e-3 < np.linalg.norm(found - exact) / np.linalg.norm(exact) < most


def test_activations_have_a_scale_each(params):
    """A token whose values are a thousand times larger loses no more than another."""
    kernel = quantize_params(params, "int8")["backbone"]["layers"]["mlp"]["gate"]["kernel"]
    kernel = jax.tree.map(lambda x: x[0], kernel)
    x = jax.random.normal(jax.random.key(1), (4, 32)) * jnp.array([[1e-3], [1.0], [1e3], [1e5]])
    exact = np.asarray(x @ back(kernel))
    found = np.asarray(contract(x, kernel, 1, (None, None)))
    assert (np.abs(found - exact).max(axis=1) / np.abs(exact).max(axis=1) < 0.02).all()


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
def test_pieces_lie_where_the_float_ones_lay(boxed, params):
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2, sequence=1), jax.devices()[:4])
    specs = param_specs(boxed, "fsdp_tensor", mesh)
    laid = jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), params, specs)
    held, alone = quantize_params(laid, "int8"), quantize_params(params, "int8")
    for x, spec in zip(
        jax.tree.leaves(held, is_leaf=lambda x: isinstance(x, Weights)), jax.tree.leaves(specs), strict=True
    ):
        if isinstance(x, Weights):
            assert x.values.sharding.is_equivalent_to(NamedSharding(mesh, spec), x.values.ndim)
            assert x.scales.sharding.mesh == mesh
    jax.tree.map(np.testing.assert_array_equal, held, alone)
    with jax.set_mesh(mesh), logical_rules("fsdp_tensor"):
        np.testing.assert_allclose(logits(CONFIG, held), logits(CONFIG, alone), rtol=1e-4, atol=1e-5)


def test_abstract_parameters_have_the_real_ones_shapes(params):
    abstract = quantize_params(jax.eval_shape(lambda: params), "int8")
    jax.tree.map(
        lambda x, y: np.testing.assert_equal((x.shape, x.dtype), (y.shape, y.dtype)),
        abstract,
        quantize_params(params, "int8"),
    )


def test_refusals(params):
    with pytest.raises(UserError, match="did you mean 'int8'"):
        quantize_params(params, "int9")
    if jax.default_backend() == "cpu":
        with pytest.raises(UserError, match="cpu has no products of float8"):
            check_devices("fp8")
        with pytest.raises(UserError, match="fp8"):
            omnidiff_jax.load("nano", quantize="fp8")


def opened(config, folder):
    untrained(config, folder)
    found = newest(folder)
    return found, open_here(found.config, open_tokenizers(found.config.tokenizers))


def same_but_for_a_step(ours, theirs):
    """Equal, but where rounding of the floats moved a value over a boundary."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if one.dtype != jnp.int8:
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
            continue
        steps = np.abs(np.asarray(one, np.int32) - np.asarray(other, np.int32))
        assert steps.max() <= 1 and steps.mean() < 1e-3


@pytest.fixture(scope="module")
def run_config(tmp_path_factory):
    config = load_config(str(write_config(tmp_path_factory.mktemp("quantized"))))
    config.batch_size, config.optimizer.algorithm = 8, "adamw"
    return config


def test_loading_holds_one_float_array_at_a_time_and_image_rows_are_sums(run_config, tmp_path, monkeypatch):
    found, run = opened(run_config, tmp_path / "run")
    assert run.program.image_factors
    whole, events = quantize_params(run.program.whole(restore(found, run)), "int8"), []

    def told(function, place):
        def told_function(*arguments):
            events.append(arguments[place])
            return function(*arguments)

        return told_function

    monkeypatch.setattr(initial, "_load", told(initial._load, 1))
    monkeypatch.setattr(stored, "quantize_array", told(quantize_array, 0))
    same_but_for_a_step(restore_quantized(found, run, "int8"), whole)
    assert len(events) > 20 and events[::2] == events[1::2]  # quantized before the next one is read
    shapes = jax.eval_shape(run.program.init, jax.random.key(0))
    sizes = [leaf_of(shapes, path).size for path in events[::2]]
    assert sizes == sorted(sizes, reverse=True)


def leaf_of(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return tree


def test_lora_is_added_before_its_matrices_are_quantized(run_config, tmp_path, monkeypatch):
    def trained(*arguments):
        return jax.tree.map(lambda x: x + 0.1, lora.init_lora(*arguments))

    monkeypatch.setattr(model_program, "init_lora", trained)
    config = run_config.copy_and_resolve_references()
    config.lora.rank = 2
    found, run = opened(config, tmp_path / "run")
    floats = restore(found, run)
    whole = quantize_params(run.program.whole(floats), "int8")
    same_but_for_a_step(restore_quantized(found, run, "int8"), whole)
    query = "backbone/layers/attention/query/kernel"
    assert np.abs(leaf_of(back(whole), query) - leaf_of(floats, query)).max() > 0.01


def test_the_shipped_model_answers():
    model = omnidiff_jax.load("nano", rows=1, quantize="int8")
    answer = model.answer("text_qa", text="small red circle top left, on white. what color is the circle")
    assert (answer.text, answer.finish) == ("red", "end")
