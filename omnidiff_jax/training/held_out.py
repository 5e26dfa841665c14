"""The loss on samples that are never trained on: the same batches under the same masks, whenever it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
        self.every = every
        self._program, self._batches, self._seed = program, batches, seed
        self._loss = jax.jit(program.loss)

    def due(self, step: int, total: int) -> bool:
        """Whether to measure after `step` of `total` updates; before the first one counts."""
        return step % self.every == 0 or step == total

    def __call__(self, params: Any) -> dict[str, Any]:
        """What is logged of these parameters: "held_out_loss", and what the program reports of the sums, by the same
        prefix. Call it under the run's mesh."""
        key, step = rng.stream(self._seed, "held out"), jnp.int32(0)
        totals: dict[str, Any] = {}
        loss = weight = 0.0
        for batch in self._batches:
            mean, metrics = self._loss(params, batch, key, step)
            share = metrics.pop("weight", 1.0)
            loss, weight = loss + mean * share, weight + share
            for name, value in metrics.items():
                if name.startswith("sum/"):
                    totals[name] = totals.get(name, 0) + value
        sums = {name: np.asarray(value) for name, value in jax.device_get(totals).items()}
        found = {"loss": float(loss) / max(float(weight), 1e-8)} | _told(self._program.report(sums))
        return {f"held_out_{name}": value for name, value in found.items()}


def _told(report: dict[str, Any]) -> dict[str, Any]:
    """What of a step's report says something of a model."""
    return {name: value for name, value in report.items() if name in ("accuracy", "task_loss", "task_accuracy")}
