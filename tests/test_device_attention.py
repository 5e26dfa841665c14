"""Kernels of particular devices: splash interpreted on the CPU, tokamax's XLA, cuDNN's call with XLA in its place."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnidiff_jax.errors import UserError
from omnidiff_jax.models import attention as attentions
from omnidiff_jax.models.device_attention import masked_attention, splash_attention, tokamax_attention
from omnidiff_jax.sharding.mesh import MeshConfig, make_mesh
from omnidiff_jax.sharding.rules import logical_rules

SEGMENTS = np.repeat([1, 2, 3, 0], [9, 14, 6, 7])[None].repeat(2, 0).astype(np.int32)


@pytest.fixture(scope="module")
def qkv():
    rng = np.random.default_rng(0)
    shapes = ((2, 36, 4, 16), (2, 36, 2, 16), (2, 36, 2, 16))
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def value_and_gradients(attend):
    """Of a loss that weighs every output differently, padding included."""

    def loss(q, k, v):
        out = attend(q, k, v)
        return (jnp.sin(out) * jnp.arange(1.0, out.size + 1).reshape(out.shape)).sum() / out.size, out

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def reference(q, k, v):
    return attentions.attention(q, k, v, SEGMENTS, SEGMENTS, backend="xla")


@pytest.fixture(scope="module")
def expected(qkv):
    return value_and_gradients(reference)(*qkv)


def close(actual, expected):
    for mine, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("backend", ["splash", "tokamax"])
def test_kernels_are_exact_packed_and_on_a_mesh(backend, qkv, expected):
    """Lengths that are no multiple of 128, shared key heads, padding; rows and heads on four devices."""
    attend = functools.partial(attentions.attention, backend=backend)
    step = value_and_gradients(lambda q, k, v: attend(q, k, v, SEGMENTS, SEGMENTS))
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    with jax.set_mesh(mesh), logical_rules("fsdp_tensor"):
        close(step(*qkv), expected)
    (_, out), _ = expected
    assert not np.asarray(out)[SEGMENTS == 0].any()


@pytest.mark.parametrize("attend", [splash_attention, tokamax_attention])
def test_kernels_packed_equal_unpacked(attend, qkv):
    """The second segment alone is what it is in its row."""
    alone = slice(9, 23)
    out = jax.jit(attend)(*qkv, SEGMENTS, SEGMENTS)
    single = jax.jit(attend)(*(x[:, alone] for x in qkv), None, None)
    np.testing.assert_allclose(out[:, alone], single, rtol=1e-5, atol=1e-6)


def test_the_mask_given_to_cudnn_is_exact(qkv, expected):
    attend = functools.partial(masked_attention, implementation="xla")
    close(value_and_gradients(lambda q, k, v: attend(q, k, v, SEGMENTS, SEGMENTS))(*qkv), expected)
    close(attend(*qkv, None, None), attentions.attention(*qkv, None, None, backend="xla"))


def test_kernels_refuse_other_devices(qkv):
    with pytest.raises(UserError, match="'cudnn' runs on NVIDIA GPUs, these devices are cpu; use 'chunked'"):
        attentions.attention(*qkv, SEGMENTS, SEGMENTS, backend="cudnn")


def test_a_missing_tokamax_is_named(qkv, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokamax", None)
    with pytest.raises(UserError, match=r"needs its package: pip install 'omnidiff_jax\[tokamax\]'"):
        attentions.attention(*qkv, SEGMENTS, SEGMENTS, backend="tokamax")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cudnn", "tokamax"])
def test_gpu_kernels_packed_equal_the_reference(backend, qkv):
    """On a GPU, in the dtype that training uses: values, gradients, and nothing across segments."""
    low = tuple(jnp.asarray(np.repeat(x, 4, axis=3), jnp.bfloat16) for x in qkv)  # heads of 64
    attend = functools.partial(attentions.attention, backend=backend)
    mine = value_and_gradients(lambda q, k, v: attend(q, k, v, SEGMENTS, SEGMENTS).astype(jnp.float32))(*low)
    theirs = value_and_gradients(lambda q, k, v: reference(q, k, v).astype(jnp.float32))(*low)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=2e-2 * np.abs(b).max())
    (_, out), _ = mine
    assert not np.asarray(out)[SEGMENTS == 0].any()
    moved = tuple(x.at[:, :9].add(1.0) for x in low)  # another first segment
    (_, other), _ = value_and_gradients(lambda q, k, v: attend(q, k, v, SEGMENTS, SEGMENTS).astype(jnp.float32))(*moved)
    np.testing.assert_array_equal(np.asarray(out)[:, 9:], np.asarray(other)[:, 9:])
