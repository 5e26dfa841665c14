"""The adapter gives the released projector's numbers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from omnidiff_jax.conversion import adapter as table
from omnidiff_jax.conversion import rules as conversion
from omnidiff_jax.models.adapter import Adapter, AdapterConfig

TINY = AdapterConfig(inputs=64, outputs=112, dtype="float32")


def shapes(config):
    init = Adapter(config).init
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, config.inputs)))["params"]


def test_released_projector(golden):
    fixture = np.load(golden / "03_resampler_projector.npz")
    tensors = {k.removeprefix("params/"): fixture[k] for k in fixture.files if k.startswith("params/")}
    params = conversion.to_flax(table.rules(), tensors, like=shapes(TINY))
    for name, tensor in conversion.to_torch(table.rules(), params).items():
        np.testing.assert_array_equal(tensor, tensors[name])

    def run(config):
        return np.asarray(jax.jit(Adapter(config).apply)({"params": params}, fixture["in/x"]))

    np.testing.assert_allclose(run(TINY), fixture["out/y"], atol=1e-4 * np.abs(fixture["out/y"]).max())
    half = run(dataclasses.replace(TINY, dtype="bfloat16"))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), fixture["out/y_bf16"], atol=0.02 * np.abs(half).max())


def test_full_size_has_the_released_tensors(golden):
    manifest = json.loads((golden / "manifests" / "resampler_projector.json").read_text())["tensors"]
    found = conversion.torch_shapes(table.rules(), shapes(AdapterConfig()))
    assert found == {name: tuple(shape) for name, shape in manifest.items()}
