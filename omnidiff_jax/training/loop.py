"""The training loop: one for the backbone and every tokenizer."""

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omnidiff_jax import rng
from omnidiff_jax.config import difference, to_dict
from omnidiff_jax.data.mixture import stage_at
from omnidiff_jax.errors import UserError
from omnidiff_jax.sharding.distributed import is_primary
from omnidiff_jax.training import checkpoint as ckpt
from omnidiff_jax.training.config import TrainingConfig
from omnidiff_jax.training.goodput import Compilations, Goodput
from omnidiff_jax.training.guard import Rewind
from omnidiff_jax.training.journal import Journal, seconds_of
from omnidiff_jax.training.metrics import MetricsWriter, Progress
from omnidiff_jax.training.optimizer import make_optimizer, split_params, stage_schedule
from omnidiff_jax.training.profiling import Profiler
from omnidiff_jax.training.program import BatchStream
from omnidiff_jax.training.run import Run
from omnidiff_jax.training.step import TrainState, init_state, make_train_step
from omnidiff_jax.training.watchdog import PREEMPTED, HostLog, Interrupt, Watchdog


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


def train(
    run: Run,
    workdir: str | os.PathLike[str],
    *,
    stop_after: int | None = None,
    profile: tuple[int, int] | None = None,
    began: float | None = None,
) -> TrainState:
    """Trains all stages, going on from the newest whole checkpoint in `workdir` if there is one.

    Every process of a run calls it with the same arguments; `workdir` is one folder that all of them see.

    Args:
        run: what is trained.
        workdir: folder of its checkpoints, metrics and logs.
        stop_after: stop (and save) once this many updates are done, as a preemption would.
        profile: steps of this start, (first, last) from 1, of which a trace is written to `workdir/profile`.
        began: `time.perf_counter()` at which this start began, for the accounts in `goodput.json`.

    Returns:
        The state after the last step.

    Raises:
        UserError: checkpoint of another config, save failed, or a step that the guard does not let pass.
        SystemExit: SIGTERM came; the state is saved and the status is `PREEMPTED`.
    """
    with jax.set_mesh(run.mesh), contextlib.ExitStack() as stack:
        # First of all, so that a refused run leaves nothing behind.
        saver = stack.enter_context(contextlib.closing(ckpt.Checkpointer(workdir, run.config.checkpoint)))
        newest = saver.latest()
        if newest is not None:
            _check_same(run, saver.config(newest), f"{workdir}, checkpoint {newest}")
        return _Start(run, workdir, profile, began, saver, stack).train(newest, stop_after)


def _check_same(run: Run, stored: Mapping[str, Any], where: str) -> None:
    """Refuses to go on from a checkpoint of another config, naming the first field that differs, with both values."""
    if found := difference(run.stored(stored), run.config):
        path, old, new = found
        raise UserError(
            f"{where} was trained with config.{path} = {old!r}, this config has {new!r}; give it the value of before, "
            "or use another --workdir"
        )


class _Start:
    """One start of a run: its jitted step, its state, and everything that watches it."""

    def __init__(self, run: Run, workdir, profile, began, saver, stack):
        self.run, self.program, self.config, self.mesh = run, run.program, run.config, run.mesh
        self.stages = run.config.plan
        self.total = sum(s.steps for s in self.stages)
        config = run.config
        enter = stack.enter_context
        self.goodput = enter(Goodput(workdir, began, keep=is_primary()))
        self.interrupt = enter(Interrupt())
        self.log = enter(HostLog(workdir))
        self.watchdog = enter(Watchdog(config.operations.hang_seconds, config.operations.hang, self.log))
        self.compilations = enter(Compilations())
        self.profiler = enter(Profiler(workdir, profile))
        self.saver = saver
        batches = run.program.batches(config.seed)
        self.stream = enter(contextlib.closing(batches if hasattr(batches, "get_state") else BatchStream(batches)))
        self.workdir, self._stack = workdir, stack
        self.recompilations = 0

    def train(self, newest: int | None, stop_after: int | None) -> TrainState:
        config, saver, optimizer = self.config, self.saver, self.config.optimizer_used
        tx, initial_params = make_optimizer(optimizer, schedule(config)), self.run.initial_params
        stored_config = to_dict(config)
        target = abstract_state(self.run)
        shardings = jax.tree.map(lambda s: s.sharding, target)
        self.step_fn = jitted_step(self.run, target)
        step = newest or 0
        writer = MetricsWriter(self.workdir, step) if is_primary() else None
        progress = Progress(self.total, step) if is_primary() else None
        self.journal = Journal(self.program, self.stages, config.operations, self.goodput, self.log, writer, progress)
        for part in (writer, progress):
            if part is not None:
                self._stack.enter_context(contextlib.closing(part))
        if newest is not None:
            if writer is not None:
                self.goodput.lose(len(writer.dropped), seconds_of(writer.dropped))
            state, data = self._restore(target, newest)
            self.stream.set_state(data)
        elif initial_params is None:
            make = jax.jit(lambda key: init_state(self.program.init(key), tx, optimizer), out_shardings=shardings)
            state = make(rng.stream(config.seed, "init"))
        else:
            make = jax.jit(lambda p: init_state(p, tx, optimizer), out_shardings=shardings, donate_argnums=0)
            state = make(initial_params(target.params))

        start, end = step, self.total if stop_after is None else min(self.total, stop_after)
        self.goodput.enter("step")
        while step < end:
            try:
                state = self._step(state, step, start)
                step += 1
                stopping = self.interrupt.requested(step) or step >= end
                if stopping or (config.checkpoint.every and step % config.checkpoint.every == 0):
                    self.journal.flush()
                    self._save(step, state, stored_config)
                if stopping:
                    break
            except Rewind as rewind:
                saver.wait()
                newest = saver.latest()
                if newest is None:
                    raise UserError(f"{rewind}; there is no checkpoint to rewind to") from rewind
                self.journal.say(f"{rewind}; rewinding to checkpoint {newest}, with the data that comes next")
                state, _ = self._restore(target, newest)
                self.journal.rewind(newest)
                step = newest
        with self.goodput.phase("save"):
            saver.wait()
        self.goodput.enter("other")
        self.goodput.facts["recompilations"] = self.recompilations
        self.log.write(self.goodput.line())
        if progress is not None:
            print(self.goodput.line(), file=sys.stderr)
        if step < end:
            print(f"stopped by SIGTERM after step {step}; start again to go on", file=sys.stderr)
            raise SystemExit(PREEMPTED)
        return state

    def _step(self, state: TrainState, step: int, start: int) -> TrainState:
        """Dispatches update number `step` (from 0)."""
        journal, goodput = self.journal, self.goodput
        idle = journal.device_idle()
        goodput.enter("data_wait")
        batch = next(self.stream)
        waited = goodput.enter("step")
        journal.count_rejected(getattr(self.stream, "rejected", {}))
        stalled = waited if idle or journal.device_idle() else 0.0
        goodput.move(waited - stalled, "data_wait", "step")  # the device had work all the while
        number = stage_at(self.stages, step)
        if step == start or number != stage_at(self.stages, step - 1):
            stage = self.stages[number]
            journal.say(f"stage {stage.name}: {stage.steps} steps, peak learning rate {stage.learning_rate:g}")
        batch = self.program.place(batch, self.mesh)
        limit = journal.limit(step + 1)
        limits = (np.float32(limit),) if journal.guard.limits_on_device else ()
        compiled = self.compilations.count
        with goodput.phase("compile" if step == start else "step"), self.profiler.step(step - start + 1):
            state, metrics = self.step_fn(state, batch, *limits)
        self.watchdog.beat(f"dispatching step {step + 1}")
        if self.compilations.count > compiled and step >= start + 2:
            self.recompilations += 1
            journal.say(f"step {step + 1} compiled the training step again: its batch has another shape or sharding")
        journal.after_dispatch(step + 1, metrics, batch, limit, waited, stalled)
        self.watchdog.beat(f"finishing step {step}")
        return state

    def _save(self, step: int, state: TrainState, stored_config: dict[str, Any]) -> None:
        position = {"data": self.stream.get_state(), "guard": self.journal.guard.get_state()}
        began = time.perf_counter()
        with self.goodput.phase("save"):
            self.saver.save(step, state, position, stored_config)
        self.journal.note(save_seconds=time.perf_counter() - began)
        self.log.write(f"saving checkpoint {step}; training stood for {time.perf_counter() - began:.2f} s")
        self.watchdog.beat(f"saving checkpoint {step}")

    def _restore(self, target: Any, step: int) -> tuple[TrainState, dict[str, Any]]:
        """State and data position of a checkpoint; the guard goes back too."""
        began = time.perf_counter()
        with self.goodput.phase("restore"):
            state, position, _ = self.saver.restore(target, step)
        self.journal.guard.set_state(position["guard"])
        self.journal.note(restore_seconds=time.perf_counter() - began)
        self.log.write(f"restored checkpoint {step} in {time.perf_counter() - began:.2f} s")
        return state, position["data"]
