"""What can be trained: the backbone and each tokenizer are one `TrainProgram`, run by the same loop."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One stage of a run: its share of the steps and its peak learning rate.

    Attributes:
        name: for logs and the report.
        steps: updates in this stage.
        learning_rate: peak of its warm-up + cosine.
        final_fraction: learning rate at its end as a share of the peak; None = the optimizer's.
    """

    name: str
    steps: int
    learning_rate: float
    final_fraction: float | None = None


def scale_stages(stages: tuple[StagePlan, ...], total_steps: int | None) -> tuple[StagePlan, ...]:
    """Stages whose steps are scaled in proportion to add up to `total_steps`; one left without a step drops out."""
    planned = sum(s.steps for s in stages)
    if total_steps is None or total_steps <= 0 or total_steps >= planned:
        return stages
    bounds = np.round(np.cumsum([s.steps for s in stages]) * total_steps / planned).astype(int)
    lengths = np.diff(bounds, prepend=0)
    return tuple(dataclasses.replace(s, steps=int(n)) for s, n in zip(stages, lengths, strict=True) if n)


def stage_at(stages: tuple[StagePlan, ...], step: int) -> StagePlan:
    """The stage that update number `step` (from 0) belongs to; the last one after the end."""
    end = 0
    for stage in stages:
        end += stage.steps
        if step < end:
            return stage
    return stages[-1]


class BatchStream:
    """Batches that can be put back to where they were: state is a small JSON-serialisable dict."""

    def __init__(self, batches: Iterator[Any]):
        self._batches = batches
        self._taken = 0

    def __iter__(self) -> "BatchStream":
        return self

    def __next__(self) -> Any:
        batch = next(self._batches)
        self._taken += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """State after the last batch that `next` returned."""
        return {"taken": self._taken}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a state by drawing again what had been drawn; streams with cheaper ways override it."""
        while self._taken < state["taken"]:
            next(self)

    def close(self) -> None:
        """Stops background work, if any."""


class TrainProgram:
    """Base of everything trainable; subclasses give parameters, a loss and batches."""

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters, an unboxed tree of arrays."""
        raise NotImplementedError

    def loss(self, params: Any, batch: Any, key: jax.Array, step: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean loss and metrics of one (micro)batch; pure. See `step.LossFn`."""
        raise NotImplementedError

    def batches(self, seed: int) -> Iterator[Any]:
        """Infinite, deterministic stream of batches: trees of numpy or global arrays; may be a `BatchStream`."""
        raise NotImplementedError

    def validate(self, params: Any) -> dict[str, float]:
        """Numbers on held-out data, at the end of a run."""
        return {}

    def export(self, params: Any, directory: str | os.PathLike[str]) -> None:
        """Writes the form that samplers load; nothing by default."""

    def param_specs(self, params: Any, mesh: Mesh) -> Any:
        """Tree of `PartitionSpec` like `params`; replicated by default."""
        return jax.tree.map(lambda _: PartitionSpec(), params)

    def place(self, batch: Any, mesh: Mesh) -> Any:
        """Puts a batch on the mesh; leading axis over data and fsdp where the mesh has them."""
        axes = tuple(a for a in ("data", "fsdp") if a in mesh.shape)
        sharding = NamedSharding(mesh, PartitionSpec(axes or None))
        return jax.tree.map(lambda x: jax.device_put(x, sharding), batch)

    def report(self, metrics: dict[str, np.ndarray]) -> dict[str, Any]:
        """Turns fetched step metrics into what is logged; "sum/..." metrics are the program's to interpret."""
        return {k: float(v) for k, v in metrics.items() if not k.startswith("sum/") and np.ndim(v) == 0}

    def flops(self, batch: Any, tokens: float) -> float | None:
        """Floating-point operations of a step over `tokens` positions that hold something; None = not counted."""
        return None

    def describe(self, batch: Any) -> str:
        """Names the samples of a batch, for the message about a step that was refused."""
        return "unnamed samples"
