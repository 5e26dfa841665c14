"""Speed of the real training step on one batch: tokens a second, MFU against a measured ceiling, memory, compiling."""

import dataclasses
import resource
import statistics
import time
from typing import Any

import jax
import numpy as np

from omnidiff_jax import rng
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.flops import COUNT, peak_flops
from omnidiff_jax.sharding.mesh import batch_sharding
from omnidiff_jax.training.layout import abstract_state, jitted_step
from omnidiff_jax.training.operations.goodput import Compilations
from omnidiff_jax.training.optimizer import make_optimizer
from omnidiff_jax.training.run import Run
from omnidiff_jax.training.step import init_state


@dataclasses.dataclass(frozen=True)
class TrainSpeed:
    """What the train step was measured at.

    Attributes:
        tokens_per_second: tokens that hold something, over all devices.
        mfu: `flops_per_step` / median step time / (`matmul_flops_measured` x devices).
        mfu_of_peak: the same over the data sheet's dense bfloat16 FLOP/s; None where that is not known (CPUs).
        peak_bytes: largest memory of a device; on CPUs, of the process.
        compile_seconds: tracing, lowering and compiling the step.
        matmul_flops_measured: FLOP/s of one device on plain matrix products, in this run.
        step_seconds: median of the measured steps.
        steps: seconds of each measured step.
        tokens: that hold something, in the batch.
        recompilations: programs compiled after the second step.
        flops_per_step, flops_count: what MFU counts.
        device, devices, layers: what was measured.
    """

    tokens_per_second: float
    mfu: float
    mfu_of_peak: float | None
    peak_bytes: int
    compile_seconds: float
    matmul_flops_measured: float
    step_seconds: float
    steps: tuple[float, ...]
    tokens: int
    recompilations: int
    flops_per_step: float
    flops_count: str
    device: str
    devices: int
    layers: int


class Trainer:
    """The step that `training.loop` would run, on one batch that stays.

    Attributes:
        target: the train state as shapes with shardings.
        state: the train state, once started.
    """

    def __init__(self, run: Run, batch: Any):
        """Puts a batch on the mesh and traces nothing yet.

        Args:
            run: whose step it is.
            batch: numpy; its rows are split over the mesh's batch axes.
        """
        self.program, self._optimizer, self._mesh = run.program, run.config.optimizer_used, run.mesh
        self.batch = jax.device_put(batch, batch_sharding(run.mesh))
        with jax.set_mesh(run.mesh):
            self.target = abstract_state(run)
        self._step = jitted_step(run, self.target)
        self.state: Any = None

    def compile(self) -> tuple[float, int]:
        """Compiles without running; returns seconds, and bytes that a device would need (0 where unknown)."""
        began = time.perf_counter()
        with jax.set_mesh(self._mesh):
            compiled = self._step.lower(self.target, self.batch).compile()
        return time.perf_counter() - began, planned_bytes(compiled)

    def start(self) -> None:
        """Makes the state."""
        tx = make_optimizer(self._optimizer, lambda step: 1e-5)
        with jax.set_mesh(self._mesh):
            make = jax.jit(
                lambda key: init_state(self.program.init(key), tx, self._optimizer),
                out_shardings=jax.tree.map(lambda s: s.sharding, self.target),
            )
            self.state = jax.block_until_ready(make(rng.stream(0, "init")))

    def step(self) -> float:
        """One step, to its end; returns its seconds."""
        began = time.perf_counter()
        with jax.set_mesh(self._mesh):
            self.state, metrics = self._step(self.state, self.batch)
            loss = float(jax.block_until_ready(metrics["loss"]))
        if not np.isfinite(loss):
            raise UserError(f"the measured step has loss {loss}; a speed without a result is none")
        return time.perf_counter() - began


def measure(trainer: Trainer, steps: int, layers: int, compile_seconds: float, ceiling: float) -> TrainSpeed:
    """Warms up with two steps, then measures `steps` of them.

    Args:
        ceiling: `matmul_flops` of one device.
    """
    trainer.start()
    with Compilations() as compilations:
        for _ in range(2):
            trainer.step()
        warm = compilations.count
        seconds = tuple(trainer.step() for _ in range(steps))
        late = compilations.count - warm
    devices = jax.devices()
    tokens = int((np.asarray(trainer.batch.inputs.segment_ids) > 0).sum())
    flops = trainer.program.flops(trainer.batch, tokens) or 0.0
    median = statistics.median(seconds)
    rate, peak = flops / median / len(devices), peak_flops(devices[0])
    return TrainSpeed(
        tokens / median,
        rate / ceiling,
        rate / peak if peak else None,
        peak_bytes(),
        compile_seconds,
        ceiling,
        median,
        seconds,
        tokens,
        late,
        flops,
        COUNT,
        devices[0].device_kind,
        len(devices),
        layers,
    )


def planned_bytes(compiled: Any) -> int:
    """What a compiled program holds of a device's memory by the compiler's plan; 0 where it does not tell."""
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return int(held + memory.temp_size_in_bytes)


def peak_bytes() -> int:
    """The largest memory use of a device so far; of this process where devices do not tell."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [entry["peak_bytes_in_use"] for entry in stats if "peak_bytes_in_use" in entry]
    return max(peaks) if peaks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_bytes() -> int | None:
    """Memory that a device gives to programs; None where it does not tell (CPUs)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit")
