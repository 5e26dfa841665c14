"""How a run lies on the mesh: the shardings of its state, the state as shapes, and the jitted step over it."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omnidiff_jax import rng
from omnidiff_jax.errors import UserError
from omnidiff_jax.training.config import TrainingConfig
from omnidiff_jax.training.optimizer import make_optimizer, split_params, stage_schedule
from omnidiff_jax.training.run import Run
from omnidiff_jax.training.step import TrainState, init_state, make_train_step


def state_shardings(state: TrainState, specs: Any, mesh: Mesh, moments_on: str = "device") -> TrainState:
    """Shardings of a train state: moments and averages lie as their parameters do, counters are replicated.

    Args:
        state: abstract or concrete state.
        specs: tree of `PartitionSpec` like `state.params`.
        moments_on: see `OptimizerConfig`.

    Raises:
        UserError: moments on the host of devices that cannot reach it.
    """
    spec_of: dict[str, Any] = split_params(specs, ())[0]
    shape_of = {k: v.shape for k, v in split_params(state.params, ())[0].items()}

    def place(path: Any, leaf: Any) -> NamedSharding:
        names = [getattr(k, "key", None) for k in path]
        matches = [n for n in names if isinstance(n, str) and n in spec_of and shape_of[n] == leaf.shape]
        if moments_on == "host" and matches and getattr(path[0], "name", None) == "opt_state":
            return NamedSharding(mesh, spec_of[matches[-1]], memory_kind=_host_memory(mesh))
        return NamedSharding(mesh, spec_of[matches[-1]] if matches else PartitionSpec())

    params = jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda s: isinstance(s, PartitionSpec))
    rest = jax.tree_util.tree_map_with_path(place, dataclasses.replace(state, params=None))
    return dataclasses.replace(rest, params=params)


def _host_memory(mesh: Mesh) -> str:
    device = mesh.devices.flat[0]
    kinds = {memory.kind for memory in device.addressable_memories()}
    if device.platform == "cpu" or "pinned_host" not in kinds:
        raise UserError(
            f"optimizer.moments_on = 'host' needs devices beside a host's memory; these are {device.platform}: "
            "use 'device'"
        )
    return "pinned_host"


def abstract_state(run: Run) -> Any:
    """The train state as shapes with shardings, without computing anything."""
    optimizer = run.config.optimizer_used
    tx = make_optimizer(optimizer, schedule(run.config))
    # Nothing may run where the mesh is of devices that are not there, not even the making of a key.
    shapes = jax.eval_shape(lambda: init_state(run.program.init(rng.stream(run.config.seed, "init")), tx, optimizer))
    shardings = state_shardings(
        shapes, run.program.param_specs(shapes.params, run.mesh), run.mesh, optimizer.moments_on
    )
    return jax.tree.map(lambda s, h: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=h), shapes, shardings)


def learning_rates(config: TrainingConfig) -> np.ndarray:
    """float32 [steps]: what `schedule` gives each step, as numbers for the log. Call it outside of a mesh."""
    return np.asarray(jax.jit(schedule(config))(np.arange(sum(stage.steps for stage in config.plan))))


# Without it XLA copies the moments of embedding and head before it updates them in place.
CPU_OPTIONS: dict[str, bool | str] = {"xla_cpu_copy_insertion_use_region_analysis": True}


def jitted_step(run: Run, state: Any) -> Any:
    """The step that training runs, `(state, batch, limit=inf) -> (state, metrics)`, jitted with the state donated.

    Args:
        run: its program and config.
        state: from `abstract_state`; its shardings are those of the new state. Metrics are whole on every device.
    """
    config, optimizer = run.config, run.config.optimizer_used
    tx = make_optimizer(optimizer, schedule(config))
    shardings = jax.tree.map(lambda s: s.sharding, state)
    update = make_train_step(
        run.program.loss,
        tx,
        optimizer,
        seed=config.seed,
        accumulate=config.accumulate,
        shardings=split_params(shardings.params, optimizer.frozen)[0],
    )
    mesh = shardings.step.mesh
    out = shardings, NamedSharding(mesh, PartitionSpec())
    options = CPU_OPTIONS if mesh.devices.flat[0].platform == "cpu" else None
    if optimizer.moments_on == "device":
        return jax.jit(update, donate_argnums=0, out_shardings=out, compiler_options=options)
    near = jax.tree.map(lambda s: s.with_memory_kind("device"), shardings.opt_state)

    def fetch_and_update(state: TrainState, batch: Any, *limit: Any) -> Any:
        return update(dataclasses.replace(state, opt_state=jax.device_put(state.opt_state, near)), batch, *limit)

    return jax.jit(fetch_and_update, donate_argnums=0, out_shardings=out, compiler_options=options)


def schedule(config: TrainingConfig) -> Any:
    """Learning rate by step (from 0) of all stages."""
    lengths, peaks, finals = zip(*((s.steps, s.learning_rate, s.final_fraction) for s in config.plan), strict=True)
    return stage_schedule(lengths, peaks, config.optimizer_used, finals)
