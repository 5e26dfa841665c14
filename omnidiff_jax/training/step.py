"""The jitted training step: accumulate, clip, update; refuse a step that is not finite."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from omnidiff_jax import rng
from omnidiff_jax.training import optimizer as opt

# (params, batch, key, step) -> (mean loss, metrics). `metrics["weight"]`, where present, is what the mean was taken
# over; metrics named "sum/..." are added over microbatches and hosts, all others averaged by weight.
LossFn = Callable[[Any, Any, jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


@struct.dataclass
class TrainState:
    """Everything a step changes.

    Attributes:
        step: int32 scalar, updates tried so far.
        params: parameter tree, frozen parts included.
        opt_state: optax state over the flat dict of trainable parameters.
        ema: flat dict of averaged trainable parameters, or None.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any = None


def init_state(params: Any, tx: optax.GradientTransformation, config: opt.OptimizerConfig) -> TrainState:
    trainable, _ = opt.split_params(params, config.frozen)
    ema = dict(trainable) if config.ema_decay else None
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(trainable), ema)


def eval_params(state: TrainState) -> Any:
    """Parameters to sample with: the weight average where one is kept."""
    if state.ema is None:
        return state.params
    flat, _ = opt.split_params(state.params, ())
    return opt.join_params(flat, state.ema)


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    config: opt.OptimizerConfig,
    *,
    seed: int,
    accumulate: int = 1,
    shardings: Any = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Builds `step(state, batch, limit=inf) -> (state, metrics)`, pure, to be jitted with the state donated.

    Args:
        loss_fn: see `LossFn`.
        accumulate: microbatches a step; every leaf of `batch` has leading axis accumulate * rows. The update equals
            the one of the undivided batch.
        shardings: flat dict like the trainable parameters: how their gradients are to lie; None leaves it to the
            compiler, which adds up whole ones on every device.

    The metric `finite` is False where loss or gradient norm was not finite, `accepted` also where the loss was above
    `limit`. A step that is not accepted leaves parameters, moments and average as they were; only the step counter
    moves on.
    """

    def grads_of(params: Any, batch: Any, key: jax.Array, step: jax.Array):
        trainable, held = opt.split_params(params, config.frozen)

        def inner(part):
            loss, metrics = loss_fn(opt.join_params(part, held), batch, key, step)
            weight = metrics.pop("weight", jnp.ones(()))
            return loss * weight, (loss, weight, metrics)

        (_, (loss, weight, metrics)), grads = jax.value_and_grad(inner, has_aux=True)(trainable)
        if shardings is not None:
            grads = jax.lax.with_sharding_constraint(grads, shardings)
        summed = {k: v if k.startswith("sum/") else v * weight for k, v in metrics.items()}
        return grads, loss * weight, weight, summed

    def train_step(
        state: TrainState, batch: Any, limit: float | jax.Array = jnp.inf
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(rng.stream(seed, "train"), state.step)
        if accumulate == 1:
            grads, loss, weight, summed = grads_of(state.params, batch, key, state.step)
        else:
            # Every accumulate-th row, so that each device's rows stay where they are.
            parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

            def body(carry, part_and_index):
                part, index = part_and_index
                out = grads_of(state.params, part, jax.random.fold_in(key, index), state.step)
                return jax.tree.map(jnp.add, carry, out), None

            first = jax.tree.map(lambda x: x[0], parts)
            shapes = jax.eval_shape(lambda p: grads_of(state.params, p, key, state.step), first)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            (grads, loss, weight, summed), _ = jax.lax.scan(body, zeros, (parts, jnp.arange(accumulate)))
        scale = 1.0 / jnp.maximum(weight, 1e-8)
        grads = jax.tree.map(lambda g: g * scale, grads)
        metrics = {k: v if k.startswith("sum/") else v * scale for k, v in summed.items()}
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        trainable, held = opt.split_params(state.params, config.frozen)
        updates, opt_state = tx.update(grads, state.opt_state, trainable)
        updated = optax.apply_updates(trainable, updates)
        ema = state.ema
        if config.ema_decay:
            ema = optax.incremental_update(updated, state.ema, 1.0 - config.ema_decay)
        new = TrainState(state.step + 1, opt.join_params(updated, held), opt_state, ema)
        accepted = finite & (loss * scale <= limit)
        old = dataclasses.replace(state, step=state.step + 1)
        kept = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, old)
        return kept, metrics | {"loss": loss * scale, "grad_norm": grad_norm, "finite": finite, "accepted": accepted}

    return train_step
