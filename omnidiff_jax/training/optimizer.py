"""AdamW or Muon under per-stage warm-up and cosine schedules, frozen parts by rule, and an optional weight average."""

import fnmatch
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from omnidiff_jax.errors import UserError
from omnidiff_jax.training.config import OptimizerConfig
from omnidiff_jax.training.muon import muon

FlatParams = dict[str, jax.Array]


def stage_schedule(
    lengths: Sequence[int],
    peaks: Sequence[float],
    config: OptimizerConfig,
    finals: Sequence[float | None] | None = None,
) -> optax.Schedule:
    """Learning rate by global step: each stage warms up and decays by itself.

    Args:
        lengths: steps of each stage.
        peaks: peak learning rate of each stage.
        config: warm-up, and the final share where a stage names none.
        finals: learning rate at the end of each stage as a share of its peak.
    """
    if len(lengths) != len(peaks) or not lengths:
        raise UserError(f"{len(lengths)} stage lengths but {len(peaks)} learning rates; give one for each stage")
    pieces, starts, total = [], [], 0
    for length, peak, final in zip(lengths, peaks, finals or [None] * len(lengths), strict=True):
        share = config.final_fraction if final is None else final
        warmup = max(1, round(config.warmup_fraction * length))
        piece = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(length, warmup + 1), peak * share)
        # Counted from 1: a stage's first update would be lost at a rate of 0.
        pieces.append(lambda step, piece=piece: piece(step + 1))
        total += length
        starts.append(total)
    return optax.join_schedules(pieces, starts[:-1])


def split_params(params: Any, frozen: Sequence[str]) -> tuple[FlatParams, FlatParams]:
    """Splits a parameter tree into (trainable, frozen) dicts of "/"-joined path -> array."""
    flat = traverse_util.flatten_dict(params, sep="/")
    held = {k: v for k, v in flat.items() if any(fnmatch.fnmatch(k, p) for p in frozen)}
    return {k: v for k, v in flat.items() if k not in held}, held


def join_params(*parts: FlatParams) -> Any:
    """The inverse of `split_params`."""
    merged: FlatParams = {}
    for part in parts:
        merged |= part
    return traverse_util.unflatten_dict(merged, sep="/")


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clip by global norm, then the algorithm; works on the flat dict of trainable parameters."""
    moments, decay = jnp.dtype(config.moment_dtype), config.weight_decay
    if config.algorithm == "muon":
        update = muon(
            schedule,
            config.matrix_rate,
            config.newton_schulz_steps,
            config.b1,
            config.b2,
            config.eps,
            decay,
            moments,
        )
    else:
        update = optax.adamw(schedule, config.b1, config.b2, config.eps, mu_dtype=moments, weight_decay=decay)
    if config.second_moment_dtype != "float32":
        update = _store_second_moment(update, jnp.dtype(config.second_moment_dtype))
    slowed = (_slowed(config.slow, config.slow_rate),) if config.slow else ()
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update, *slowed)


def _slowed(patterns: Sequence[str], rate: float) -> optax.GradientTransformation:
    """Updates of parameters whose path matches one of the patterns, `rate` times as large."""

    def update(updates: Any, params: Any) -> Any:
        matched = {name for name in updates if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}
        return {name: rate * x if name in matched else x for name, x in updates.items()}

    return optax.stateless(update)


def _store_second_moment(inner: optax.GradientTransformation, dtype: jnp.dtype) -> optax.GradientTransformation:
    """`inner` with Adam's `nu` kept in `dtype` between steps and computed in float32."""

    def cast(state: Any, to: jnp.dtype) -> Any:
        def one(part: Any) -> Any:
            if not isinstance(part, optax.ScaleByAdamState):
                return part
            return part._replace(nu=jax.tree.map(lambda x: x.astype(to), part.nu))

        return jax.tree.map(one, state, is_leaf=lambda part: isinstance(part, optax.ScaleByAdamState))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(updates, cast(state, jnp.dtype("float32")), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(lambda params: cast(inner.init(params), dtype), update)
