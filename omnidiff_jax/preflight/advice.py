"""Which knob would make a program fit, by the arithmetic of what each one holds."""

import dataclasses

import jax
import numpy as np

from omnidiff_jax.preflight.report import Report
from omnidiff_jax.preflight.targets import SLICES, Target
from omnidiff_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the knobs stand at.

    Attributes:
        remat, attention: of the backbone.
        rows: rows of a microbatch on one device.
        accumulate: microbatches a step.
        chunk: rows of logits at once.
        vocabulary: V on one device.
        width: D.
        trainable: values of trainable parameters on one device.
        dots: bytes that remat = "dots" keeps on one device: the results of the layers' projections.
        optimizer: its settings.
        sharding: rule table.
    """

    remat: str
    attention: str
    rows: int
    accumulate: int
    chunk: int
    vocabulary: int
    width: int
    trainable: int
    dots: float
    optimizer: OptimizerConfig
    sharding: str


def per_device(state: object) -> int:
    """Values of a tree of sharded abstract arrays that one device holds."""
    return sum(int(np.prod(x.sharding.shard_shape(x.shape))) for x in jax.tree.leaves(state))


def advise(report: Report, settings: Settings, target: Target) -> list[str]:
    """Changes that would save memory, the cheapest in time first, with what each is worth where that is arithmetic.

    For a program that fits: what the memory left over would buy.
    """
    if report.fits:
        return _room(report, settings)
    over = report.peak_bytes - report.device_bytes
    s, found = settings, []
    temporary = max(report.peak_bytes - report.argument_bytes, 0.0)

    def say(text: str, saves: float | None = None) -> None:
        worth = "" if saves is None else f": saves {_gib(saves)}" + (", enough" if saves >= over else "")
        found.append(text + worth)

    if s.attention == "xla":
        say("config.model.attention = 'splash' on TPUs, 'cudnn' on GPUs, 'chunked' anywhere: no whole score matrices")
    if s.optimizer.moment_dtype == "float32":
        say("config.optimizer.moment_dtype = 'bfloat16'", 2.0 * s.trainable)
    if s.optimizer.second_moment_dtype == "float32" and s.optimizer.b2 <= 0.99:
        say("config.optimizer.second_moment_dtype = 'bfloat16'", 2.0 * s.trainable)
    if s.chunk > 256:
        say(f"config.loss.chunk = {s.chunk // 2}", 4.0 * s.chunk * s.vocabulary)
    if s.remat not in ("full", "offload"):
        say("config.model.remat = 'full'")
    if s.rows > 1:
        say(f"config.accumulate = {2 * s.accumulate}: halves the activations of a microbatch")
    if not s.sharding.startswith("fsdp_tensor"):
        head = 4.0 * s.width * s.vocabulary * 0.5
        say("config.sharding = 'fsdp_tensor' with config.mesh.tensor = 2", min(head, temporary))
    if s.rows == 1 and "sequence" not in s.sharding:
        say("config.sharding = 'fsdp_sequence' with config.mesh.sequence = 2: halves a row's activations")
    if s.optimizer.moments_on == "device" and not target.kind == "cpu":
        bytes_each = 8.0 - 2.0 * (s.optimizer.moment_dtype != "float32")
        say("config.optimizer.moments_on = 'host'", bytes_each * s.trainable)
    if s.remat == "full":
        say("config.model.remat = 'offload': layer inputs wait in the host's memory")
    if bigger := larger_slice(target):
        say(f"--topology={bigger}: half the state on each device", report.argument_bytes / 2)
    return found


def _room(report: Report, settings: Settings) -> list[str]:
    """A tenth of the memory stays free: what the compiler needs for it is known only when it has compiled."""
    spare = 0.9 * report.device_bytes - report.peak_bytes
    if settings.remat not in ("full", "offload") or settings.dots > spare:
        return []
    return [f"config.model.remat = 'dots': no layer is computed twice, for about {_gib(settings.dots)}"]


def larger_slice(target: Target) -> str:
    """The next topology of the same kind, "" for none."""
    if not target.is_tpu:
        return ""
    shape = target.topology.partition(":")[2].partition("*")[0]
    later = SLICES[target.kind][SLICES[target.kind].index(shape) + 1 :]
    return f"{target.kind}:{later[0]}" if later else ""


def _gib(count: float) -> str:
    return f"{count / (1 << 30):.1f} GiB"
