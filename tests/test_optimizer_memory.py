"""Moments in half precision or on the host: what is stored, what is computed, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from omnidiff_jax.config import build
from omnidiff_jax.errors import UserError
from omnidiff_jax.sharding.mesh import MeshConfig, make_mesh
from omnidiff_jax.training.layout import state_shardings
from omnidiff_jax.training.optimizer import OptimizerConfig, make_optimizer
from omnidiff_jax.training.step import init_state


def trained(config, steps=40):
    """A few steps on a noisy quadratic; the optimizer's state and the parameters."""
    tx = make_optimizer(config, optax.constant_schedule(0.05))
    params = {"w": jnp.linspace(-1.0, 1.0, 64)}
    state = tx.init(params)

    @jax.jit
    def step(params, state, key):
        gradients = {"w": params["w"] - 0.3 + 0.1 * jax.random.normal(key, (64,))}
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for key in jax.random.split(jax.random.key(0), steps):
        params, state = step(params, state, key)
    return state[1][0], params["w"]


def test_half_precision_moments_train_alike():
    whole, expected = trained(OptimizerConfig())
    half, found = trained(OptimizerConfig(moment_dtype="bfloat16", second_moment_dtype="bfloat16"))
    assert whole.mu["w"].dtype == whole.nu["w"].dtype == jnp.float32
    assert half.mu["w"].dtype == half.nu["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(half.nu["w"].astype(jnp.float32), whole.nu["w"], rtol=0.1)
    np.testing.assert_allclose(found, expected, atol=0.02)
    with pytest.raises(UserError, match="b2 = 0.999 must be at most 0.99 for second_moment_dtype"):
        build(OptimizerConfig, {"b2": 0.999, "second_moment_dtype": "bfloat16"})


def test_moments_on_the_host_need_a_host():
    """A CPU is its own host."""
    config = OptimizerConfig(moments_on="host")
    params = {"w": jnp.zeros(8)}
    tx = make_optimizer(config, optax.constant_schedule(1.0))
    state = jax.eval_shape(lambda p: init_state(p, tx, config), params)
    mesh = make_mesh(MeshConfig())
    with pytest.raises(UserError, match="moments_on = 'host' needs devices beside a host's memory; these are cpu"):
        state_shardings(state, {"w": PartitionSpec()}, mesh, config.moments_on)
    near = state_shardings(state, {"w": PartitionSpec()}, mesh)
    assert {s.spec for s in jax.tree.leaves(near.opt_state)} == {PartitionSpec()}
