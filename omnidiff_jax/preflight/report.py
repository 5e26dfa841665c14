"""A program compiled ahead of time, as numbers: memory, operations, traffic, and the time they cannot undercut."""

import dataclasses
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from omnidiff_jax.errors import UserError
from omnidiff_jax.preflight.flops import matmul_flops
from omnidiff_jax.preflight.targets import Chip, Target, granules_of
from omnidiff_jax.preflight.traffic import Collective, carries_logits, read_program

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclasses.dataclass(frozen=True)
class Job:
    """What is compiled.

    Attributes:
        name: `train` or `sample`.
        trace: () -> a traced jit function (`jitted.trace(…)` on abstract arguments).
        mesh: of the target's devices; in force while tracing and compiling.
        useful_flops: of all devices in a step by the usual count: no recomputation, every position through the head.
        trips: rounds of the loops whose number is known only at run time, the outermost first; the last number stands
            for all loops further in.
        vocabulary, width: V and D, to tell logits from parameters; V = 0 where logits may move.
        rounds_only: traffic is that of the outermost such loops, not of what is done once around them.
    """

    name: str
    trace: Callable[[], Any]
    mesh: Mesh
    useful_flops: float
    trips: tuple[float, ...]
    vocabulary: int
    width: int
    rounds_only: bool = False


@dataclasses.dataclass(frozen=True)
class Report:
    """Bytes are of one device; seconds are lower bounds.

    Attributes:
        fits: peak_bytes <= device_bytes.
        peak_bytes: what the compiler says the program holds at most; if it refused, what it would have needed.
        device_bytes: what a program may use.
        argument_bytes: parameters, optimizer state and batch.
        flops_per_device: of matrix products, recomputation included.
        useful_flops_per_device: see `Job`.
        bytes_accessed: between memory and cores; where CPU devices stand in, arguments read and results written once.
        collectives: None where the compiler refused the program.
        logits: the collectives that move whole-vocabulary logits; there should be none.
        seconds: of each bound: compute, memory, network.
        step_seconds: the largest of them.
        mfu_ceiling: useful operations a second at `step_seconds` over the chip's peak.
        compile_seconds: tracing included.
        problem: the compiler's first line where it refused.
    """

    fits: bool
    peak_bytes: float
    device_bytes: float
    argument_bytes: float
    flops_per_device: float
    useful_flops_per_device: float
    bytes_accessed: float | None
    collectives: tuple[Collective, ...] | None
    logits: tuple[Collective, ...]
    seconds: dict[str, float]
    step_seconds: float
    mfu_ceiling: float
    compile_seconds: float
    problem: str = ""


def compile_job(job: Job, target: Target) -> Report:
    """Compiles a job for its target; nothing is executed.

    Raises:
        jax.errors.JaxRuntimeError: the compiler refused for another reason than memory.
    """
    began = time.perf_counter()
    devices, chip = job.mesh.size, target.chip
    problem, traffic = "", None
    with jax.set_mesh(job.mesh):
        traced = job.trace()
        lowered = traced.lower()
        arguments = _argument_bytes(traced, job.mesh)
        try:
            compiled, text = _compile(lowered, target)
            stats = compiled.memory_analysis()
            peak = _peak(stats)
            arguments = float(stats.argument_size_in_bytes)
            granules = granules_of(job.mesh, target)
            traffic = read_program(text, granules, job.trips, target.stand_in, job.rounds_only)
            if target.stand_in:  # a CPU's kernels say nothing about a GPU's
                traffic = dataclasses.replace(traffic, bytes=arguments + stats.output_size_in_bytes)
        except jax.errors.JaxRuntimeError as error:
            peak, problem = _needed(str(error)), _first_line(str(error))
            if not peak:
                raise
    elapsed = time.perf_counter() - began
    flops = matmul_flops(traced.jaxpr, job.trips) / devices
    seconds = {"compute": flops / chip.flops}
    if traffic is not None:
        seconds["memory"] = traffic.bytes / chip.bandwidth
        seconds["network"] = sum(_exchange_seconds(c, chip, devices) for c in traffic.collectives)
    step = max(seconds.values())
    ways = tuple(n for n in job.mesh.shape.values() if n > 1)
    useful = job.useful_flops / devices
    return Report(
        fits=peak <= chip.memory,
        peak_bytes=peak,
        device_bytes=chip.memory,
        argument_bytes=arguments,
        flops_per_device=flops,
        useful_flops_per_device=useful,
        bytes_accessed=traffic.bytes if traffic else None,
        collectives=traffic.collectives if traffic else None,
        logits=carries_logits(traffic.collectives, job.vocabulary, job.width, ways)
        if traffic and job.vocabulary
        else (),
        seconds=seconds,
        step_seconds=step,
        mfu_ceiling=useful / (chip.flops * step) if step else 0.0,
        compile_seconds=elapsed,
        problem=problem,
    )


def _compile(lowered: Any, target: Target) -> tuple[Any, str]:
    """The compiled program, and the text to count its collectives in.

    Where CPU devices stand in, that is the partitioned program before it is made one for CPUs, whose compiler turns
    bfloat16 into float32, what is sent included.
    """
    with _uncached(), tempfile.TemporaryDirectory() as folder:
        if not target.stand_in or target.devices == 1:
            compiled = lowered.compile()
            return compiled, compiled.as_text()
        compiled = lowered.compile(
            compiler_options={"xla_dump_to": folder, "xla_dump_hlo_pass_re": "^spmd-partitioning$"}
        )
        found = sorted(Path(folder).glob("*.after_spmd-partitioning.*"))
        if not found:
            raise UserError(f"XLA of jax {jax.__version__} wrote no partitioned program; use a cpu: topology instead")
        return compiled, found[-1].read_text()


@contextmanager
def _uncached() -> Iterator[None]:
    """Without jax's compilation cache: a program from it took no time, and wrote nothing."""
    config: Any = jax.config
    used = config.jax_enable_compilation_cache
    config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it asks for the setting once
    try:
        yield
    finally:
        config.update("jax_enable_compilation_cache", used)
        compilation_cache.reset_cache()


def _peak(stats: Any) -> float:
    """The compiler's peak where it gives one that holds the arguments; else the sum of all it allocates."""
    held = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    return float(max(stats.peak_memory_in_bytes, held + stats.temp_size_in_bytes))


def _argument_bytes(traced: Any, mesh: Mesh) -> float:
    """Bytes of the arguments on one device, from their shardings."""
    total = 0.0
    for leaf in jax.tree.leaves(traced.args_info if hasattr(traced, "args_info") else ()):
        aval: Any = getattr(leaf, "aval", getattr(leaf, "_aval", leaf))
        sharding = getattr(aval, "sharding", None)
        shape = aval.shape if sharding is None else sharding.shard_shape(aval.shape)
        total += math.prod(shape) * getattr(aval.dtype, "itemsize", 4)
    return total


def _needed(message: str) -> float:
    """Bytes that a program which does not fit would use, arguments included, from libtpu's message (what it calls
    temporaries is all there is); 0 where the message is another."""
    told = r"Used ([\d.]+)([KMGT])i?B? of [\d.]+[KMGT]", r"required for HLO temporaries \(([\d.]+)([KMGT])i?B?\)"
    found = [match for pattern in told if (match := re.search(pattern, message))]
    return float(found[0][1]) * _UNITS[found[0][2]] if found else 0.0


def _first_line(message: str) -> str:
    return " ".join(message.strip().splitlines()[0].split())[:300]


def _exchange_seconds(collective: Collective, chip: Chip, devices: int) -> float:
    if collective.crosses:
        return collective.bytes / chip.network
    # A group has the links of the axes of the torus that it lies along; sides are taken to be equal.
    axes = math.ceil(chip.torus * math.log(max(collective.group, 2)) / math.log(max(devices, 2)) - 1e-9)
    return collective.bytes / (chip.link * min(axes, chip.torus) / chip.torus)
