"""The training loop: one for the backbone and every tokenizer."""

import contextlib
import os
import sys
import time
from typing import Any

import jax
import numpy as np

from omnidiff_jax import rng
from omnidiff_jax.config import to_dict
from omnidiff_jax.data.mixture import stage_at
from omnidiff_jax.errors import UserError
from omnidiff_jax.progress import Progress
from omnidiff_jax.sharding.distributed import is_primary
from omnidiff_jax.signals import PREEMPTED, check
from omnidiff_jax.training import checkpoint as ckpt
from omnidiff_jax.training.layout import abstract_state, jitted_step, learning_rates, schedule
from omnidiff_jax.training.operations.goodput import Compilations, Goodput
from omnidiff_jax.training.operations.guard import Rewind
from omnidiff_jax.training.operations.host_log import HostLog
from omnidiff_jax.training.operations.interrupt import Interrupt
from omnidiff_jax.training.operations.journal import Journal, seconds_of, steps_of
from omnidiff_jax.training.operations.lock import RunLock, only_run
from omnidiff_jax.training.operations.metrics import MetricsWriter
from omnidiff_jax.training.operations.profiling import Profiler
from omnidiff_jax.training.operations.watchdog import Watchdog
from omnidiff_jax.training.optimizer import make_optimizer
from omnidiff_jax.training.program import BatchStream
from omnidiff_jax.training.run import Run
from omnidiff_jax.training.step import TrainState, eval_params, init_state
from omnidiff_jax.training.workdir import Workdir, open_workdir


def train(
    run: Run,
    workdir: str | os.PathLike[str],
    *,
    stop_after: int | None = None,
    profile: tuple[int, int] | None = None,
    began: float | None = None,
    afterwards: float = 0.0,
) -> TrainState:
    """Trains all stages, going on from the newest whole checkpoint in `workdir` if there is one.

    Every process of a run calls it with the same arguments; `workdir` is one folder that all of them see.

    Args:
        run: what is trained.
        workdir: folder of its checkpoints, metrics and logs.
        stop_after: stop (and save) once this many updates are done, as a preemption would.
        profile: steps of this start, (first, last) from 1, of which a trace is written to `workdir/profile`.
        began: `time.perf_counter()` at which this start began, for the accounts in `goodput.json`.
        afterwards: work that follows the training, as so many steps, for the time that is said to be left.

    Returns:
        The state after the last step.

    Raises:
        UserError: another run trains in `workdir`, its checkpoint is of another config, a save failed, a full disk, or
            a step that the guard does not let pass.
        SystemExit: SIGTERM came; the state is saved, if a step was done, and the status is `PREEMPTED`.
    """
    check()
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(open_workdir(workdir))
        lock = stack.enter_context(only_run(place.path))
        place.keep(run.config.checkpoint)
        rates = learning_rates(run.config)
        stack.enter_context(jax.set_mesh(run.mesh))
        stack.enter_context(ckpt.one_error_a_failure())
        # Before anything is written, so that a refused run leaves nothing behind.
        saver = stack.enter_context(contextlib.closing(ckpt.Checkpointer(place.path, run.config.checkpoint)))
        newest = saver.latest()
        if newest is not None:
            run.check_same(saver.config(newest), f"{workdir}, checkpoint {newest}")
        return _Start(run, place, profile, began, saver, stack).train(newest, stop_after, lock, rates, afterwards)


class _Start:
    """One start of a run: its jitted step, its state, and everything that watches it."""

    def __init__(self, run: Run, place: Workdir, profile, began, saver, stack):
        workdir = place.path
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
        batches: Any = run.program.batches(config.seed)
        self.stream = enter(contextlib.closing(batches if hasattr(batches, "get_state") else BatchStream(batches)))
        self.place, self.workdir, self._stack = place, workdir, stack
        self.recompilations = 0

    def train(
        self, newest: int | None, stop_after: int | None, lock: RunLock, rates: np.ndarray, afterwards: float
    ) -> TrainState:
        config, saver, optimizer = self.config, self.saver, self.config.optimizer_used
        tx, initial_params = make_optimizer(optimizer, schedule(config)), self.run.initial_params
        stored_config = to_dict(config)
        target = abstract_state(self.run)
        shardings = jax.tree.map(lambda s: s.sharding, target)
        self.step_fn = jitted_step(self.run, target)
        step = newest or 0
        # Without a checkpoint nothing is kept, not even what was measured before the first step.
        writer = MetricsWriter(self.workdir, -1 if newest is None else step) if is_primary() else None
        progress = Progress(self.total, step, afterwards=afterwards) if is_primary() else None
        self.journal = Journal(
            self.program, self.stages, config.operations, self.goodput, self.log, writer, progress, rates
        )
        for part in (writer, progress):
            if part is not None:
                self._stack.enter_context(contextlib.closing(part))
        if newest is not None:
            if writer is not None:
                self.goodput.lose(steps_of(writer.dropped), seconds_of(writer.dropped))
            self.journal.say(f"resuming from checkpoint {newest} of {self.total} steps")
            state, data = self._restore(target, newest)
            self.stream.set_state(data)
        elif initial_params is None:
            make = jax.jit(lambda key: init_state(self.program.init(key), tx, optimizer), out_shardings=shardings)
            state = make(rng.stream(config.seed, "init"))
        else:
            make = jax.jit(lambda p: init_state(p, tx, optimizer), out_shardings=shardings, donate_argnums=0)
            state = make(initial_params(target.params))

        start, end = step, self.total if stop_after is None else min(self.total, stop_after)
        self.held_out = self.run.held_out() if self.run.held_out else None
        if newest is None:
            self._measure(step, state)
        self.goodput.enter("step")
        while step < end:
            try:
                lock.check()
                self.place.check()
                state = self._step(state, step, start)
                step += 1
                if self.held_out is not None and self.held_out.due(step, self.total):
                    self.journal.flush()
                    self._measure(step, state)  # before the save, so that a resume from it has the line
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
        journal.count_rejected(getattr(self.stream, "rejected", {}), getattr(self.stream, "first_rejected", {}))
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

    def _measure(self, step: int, state: TrainState) -> None:
        """The held-out loss after `step`, where one is measured."""
        if self.held_out is None:
            return
        began = time.perf_counter()
        with self.goodput.phase("held_out"):
            values = self.held_out(eval_params(state))
        self.journal.measured(step, values, time.perf_counter() - began)
        self.watchdog.beat(f"measuring the held-out loss after step {step}")

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
