"""What can be trained: the backbone and each tokenizer are one `TrainProgram`, run by the same loop."""

import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from omnidiff_jax.sharding.mesh import batch_sharding


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
        return jax.tree.map(lambda x: jax.device_put(x, batch_sharding(mesh)), batch)

    def report(self, metrics: dict[str, np.ndarray]) -> dict[str, Any]:
        """Turns fetched step metrics into what is logged; "sum/..." metrics are the program's to interpret."""
        return {k: float(v) for k, v in metrics.items() if not k.startswith("sum/") and np.ndim(v) == 0}

    def flops(self, batch: Any, tokens: float) -> float | None:
        """Floating-point operations of a step over `tokens` positions that hold something; None = not counted."""
        return None

    def describe(self, batch: Any) -> str:
        """Names the samples of a batch, for the message about a step that was refused."""
        return "unnamed samples"
