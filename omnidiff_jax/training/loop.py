"""The training loop: one for the backbone and every tokenizer."""

import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omnidiff_jax import rng
from omnidiff_jax.errors import UserError
from omnidiff_jax.training import checkpoint as ckpt
from omnidiff_jax.training.metrics import MetricsWriter, Progress
from omnidiff_jax.training.optimizer import OptimizerConfig, make_optimizer, split_params, stage_schedule
from omnidiff_jax.training.program import BatchStream, StagePlan, TrainProgram, stage_at
from omnidiff_jax.training.step import TrainState, init_state, make_train_step


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Attributes:
    seed: of parameters, order of data and masks.
    accumulate: microbatches a step.
    log_every: steps between lines of `metrics.jsonl`.
    max_refused: steps refused in a row (not finite) before the run stops.
    checkpoint: see `CheckpointConfig`.
    """

    seed: int = 0
    accumulate: int = 1
    log_every: int = 1
    max_refused: int = 5
    checkpoint: ckpt.CheckpointConfig = dataclasses.field(default_factory=ckpt.CheckpointConfig)


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


class Interrupt:
    """Turns SIGTERM into a flag, so that a preempted run saves before it goes."""

    def __init__(self):
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, signum: int, frame: Any) -> None:
        self.requested = True

    def __exit__(self, *exc: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)


def abstract_state(program: TrainProgram, config: LoopConfig, optimizer: OptimizerConfig, stages, mesh: Mesh) -> Any:
    """The train state as shapes with shardings, without computing anything."""
    tx = make_optimizer(optimizer, _schedule(stages, optimizer))
    # Nothing may run where the mesh is of devices that are not there, not even the making of a key.
    shapes = jax.eval_shape(lambda: init_state(program.init(rng.stream(config.seed, "init")), tx, optimizer))
    shardings = state_shardings(shapes, program.param_specs(shapes.params, mesh), mesh, optimizer.moments_on)
    return jax.tree.map(lambda s, h: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=h), shapes, shardings)


def jitted_step(
    program: TrainProgram, config: LoopConfig, optimizer: OptimizerConfig, stages: tuple[StagePlan, ...], state: Any
) -> Any:
    """The step that training runs, `(state, batch) -> (state, metrics)`, jitted with the state donated.

    Args:
        state: from `abstract_state`; its shardings are those of the new state.
    """
    tx = make_optimizer(optimizer, _schedule(stages, optimizer))
    update = make_train_step(program.loss, tx, optimizer, seed=config.seed, accumulate=config.accumulate)
    shardings = jax.tree.map(lambda s: s.sharding, state)
    if optimizer.moments_on == "device":
        return jax.jit(update, donate_argnums=0, out_shardings=(shardings, None))
    near = jax.tree.map(lambda s: s.with_memory_kind("device"), shardings.opt_state)

    def fetch_and_update(state: TrainState, batch: Any) -> Any:
        return update(dataclasses.replace(state, opt_state=jax.device_put(state.opt_state, near)), batch)

    return jax.jit(fetch_and_update, donate_argnums=0, out_shardings=(shardings, None))


def _schedule(stages: tuple[StagePlan, ...], optimizer: OptimizerConfig):
    lengths, peaks, finals = zip(*((s.steps, s.learning_rate, s.final_fraction) for s in stages), strict=True)
    return stage_schedule(lengths, peaks, optimizer, finals)


def train(
    program: TrainProgram,
    config: LoopConfig,
    optimizer: OptimizerConfig,
    stages: tuple[StagePlan, ...],
    workdir: str | os.PathLike[str],
    mesh: Mesh,
    *,
    run_config: Mapping[str, Any] | None = None,
    same_config: tuple[str, ...] = (),
    initial_params: Any = None,
    stop_after: int | None = None,
) -> TrainState:
    """Trains all stages, going on from the newest checkpoint in `workdir` if there is one.

    Args:
        run_config: stored in every checkpoint.
        same_config: keys of `run_config` that a checkpoint must agree on to be resumed.
        initial_params: start from these instead of `program.init` (ignored when resuming).
        stop_after: stop (and save) once this many updates are done, as a preemption would.

    Returns:
        The state after the last step.

    Raises:
        UserError: checkpoint of another config, save failed, or too many steps that were not finite.
    """
    total = sum(s.steps for s in stages)
    tx = make_optimizer(optimizer, _schedule(stages, optimizer))
    stored_config = dict(run_config or {})
    with jax.set_mesh(mesh), Interrupt() as interrupt:
        target = abstract_state(program, config, optimizer, stages, mesh)
        shardings = jax.tree.map(lambda s: s.sharding, target)
        saver = ckpt.Checkpointer(workdir, config.checkpoint)
        batches = program.batches(config.seed)
        stream: Any = batches if hasattr(batches, "get_state") else BatchStream(batches)
        start = 0
        if saver.latest() is not None:
            where = f"{workdir}, checkpoint {saver.latest()}"
            ckpt.check_same_config(saver.config(), stored_config, same_config, where)
            state, position, start = saver.restore(target)
            stream.set_state(position)
        else:
            if initial_params is None:
                make = jax.jit(lambda key: init_state(program.init(key), tx, optimizer), out_shardings=shardings)
                state = make(rng.stream(config.seed, "init"))
            else:
                make = jax.jit(lambda p: init_state(p, tx, optimizer), out_shardings=shardings)
                state = make(initial_params)
        step_fn = jitted_step(program, config, optimizer, stages, target)
        writer, progress = MetricsWriter(workdir, start), Progress(total, start)
        logger = _Logger(program, config, stages, writer, progress)
        try:
            step = start
            end = total if stop_after is None else min(total, stop_after)
            while step < end and not interrupt.requested:
                began = time.perf_counter()
                batch = next(stream)
                waited = time.perf_counter() - began
                if step == start or stage_at(stages, step) is not stage_at(stages, step - 1):
                    stage = stage_at(stages, step)
                    progress.say(f"stage {stage.name}: {stage.steps} steps, peak learning rate {stage.learning_rate:g}")
                state, metrics = step_fn(state, program.place(batch, mesh))
                step += 1
                logger.after_dispatch(step, metrics, batch, waited)
                if config.checkpoint.every and step % config.checkpoint.every == 0 and step < end:
                    logger.flush()
                    saver.save(step, state, stream.get_state(), stored_config)
            logger.flush()
            if saver.latest() != step:
                saver.save(step, state, stream.get_state(), stored_config)
            saver.wait()
            if interrupt.requested:
                print(f"stopped by SIGTERM after step {step}; start again to go on", file=sys.stderr)
                raise SystemExit(0)
        finally:
            progress.close()
            writer.close()
            stream.close()
            saver.close()
    return state


class _Logger:
    """Fetches a step's metrics only after the next one was dispatched, so that the device never waits for the host."""

    def __init__(self, program, config: LoopConfig, stages, writer: MetricsWriter, progress: Progress):
        self._program, self._config, self._stages = program, config, stages
        self._writer, self._progress = writer, progress
        self._pending: tuple[int, Any, Any, float] | None = None
        self._refused = 0
        self._last = time.perf_counter()

    def after_dispatch(self, step: int, metrics: Any, batch: Any, waited: float) -> None:
        self.flush()
        self._pending = (step, metrics, batch, waited)

    def flush(self) -> None:
        if self._pending is None:
            return
        step, device_metrics, batch, waited = self._pending
        self._pending = None
        metrics = {k: np.asarray(v) for k, v in jax.device_get(device_metrics).items()}
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        finite = bool(metrics.pop("finite"))
        stage = stage_at(self._stages, step - 1)
        values: dict[str, Any] = {"stage": stage.name, "loss": float(metrics["loss"])}
        values |= self._program.report(metrics)
        tokens = metrics.get("sum/tokens")
        if tokens is not None:
            values["tokens_per_second"] = float(tokens) / seconds
        values |= {"seconds": seconds, "data_wait_seconds": waited}
        if not finite:
            self._refuse(step, batch, values)
        else:
            self._refused = 0
        if step % self._config.log_every == 0 or not finite:
            self._writer.write(step, values)
        rate = f"  {values['tokens_per_second']:.0f} tokens/s" if "tokens_per_second" in values else ""
        self._progress.update(step, f"{stage.name}  loss {values['loss']:.4f}{rate}")

    def _refuse(self, step: int, batch: Any, values: dict[str, Any]) -> None:
        self._refused += 1
        who = self._program.describe(batch)
        values["refused"] = who
        self._progress.say(f"step {step} refused: loss or gradient is not finite (parameters kept); batch: {who}")
        if self._refused >= self._config.max_refused:
            self._writer.write(step, values)
            raise UserError(
                f"{self._refused} steps in a row were not finite, the last at step {step}; batch: {who}; "
                "lower the learning rate or look at these samples"
            )
