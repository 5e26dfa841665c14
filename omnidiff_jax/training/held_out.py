"""The loss on samples that are never trained on: the same batches under the same masks, whenever it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from omnidiff_jax import rng
from omnidiff_jax.training.program import TrainProgram


class HeldOutLoss:
    """The training objective of held-out batches. Nothing of a run changes by measuring it.

    Attributes:
        every: steps between measurements.
    """

    def __init__(self, program: TrainProgram, batches: Sequence[Any], every: int, seed: int):
        """Args:
        program: whose loss it is; its groups are those of the batches.
        batches: on the mesh; their masks hang on what they hold and on the program's seed alone.
        every: steps between measurements.
        seed: of a loss that draws numbers.
        """

        def loss(params: Any, batch: Any) -> Any:
            return program.loss(params, batch, rng.stream(seed, "held out"), jnp.int32(0))

        self.every = every
        self._program, self._batches = program, batches
        # Whole on every device, as the step's metrics are, so that each process can read them.
        self._loss = jax.jit(loss, out_shardings=PartitionSpec())

    def due(self, step: int, total: int) -> bool:
        """Whether to measure after `step` of `total` updates; before the first one counts."""
        return step % self.every == 0 or step == total

    def __call__(self, params: Any) -> dict[str, Any]:
        """What is logged of these parameters: "held_out_loss", and what the program reports of the sums, by the same
        prefix. Call it under the run's mesh."""
        sums: dict[str, np.ndarray] = {}
        loss = weight = 0.0
        for batch in self._batches:
            # Fetched one by one: CPU processes may take the collectives of one program under way for another's.
            mean, metrics = jax.device_get(self._loss(params, batch))
            share = float(metrics.pop("weight", 1.0))
            loss, weight = loss + float(mean) * share, weight + share
            for name, value in metrics.items():
                if name.startswith("sum/"):
                    sums[name] = sums.get(name, 0.0) + np.asarray(value, np.float64)
        found = {"loss": loss / max(weight, 1e-8)} | _told(self._program.report(sums))
        return {f"held_out_{name}": value for name, value in found.items()}


def _told(report: dict[str, Any]) -> dict[str, Any]:
    """What of a step's report says something of a model."""
    return {name: value for name, value in report.items() if name in ("accuracy", "task_loss", "task_accuracy")}
