"""A training program of three numbers, and a run of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from omnidiff_jax.data.mixture import Stage
from omnidiff_jax.training.config import TrainingConfig
from omnidiff_jax.training.loop import train
from omnidiff_jax.training.operations.guard import GuardConfig
from omnidiff_jax.training.operations.journal import OperationsConfig
from omnidiff_jax.training.optimizer import OptimizerConfig
from omnidiff_jax.training.program import TrainProgram
from omnidiff_jax.training.run import Run

STAGES = {"one": Stage(6, 1e-2), "two": Stage(4, 1e-3)}
OPTIMIZER = OptimizerConfig(frozen=("held/*",), ema_decay=0.5)


class Regression(TrainProgram):
    """Least squares with a frozen offset; batches `bad` hold a NaN, batches `wild` far too large answers."""

    def __init__(self, bad: tuple[int, ...] = (), wild: tuple[int, ...] = ()):
        self.bad, self.wild = bad, wild

    def init(self, key):
        return {"free": {"w": jax.random.normal(key, (3,))}, "held": {"b": jnp.ones(())}}

    def loss(self, params, batch, key, step):
        error = batch["x"] @ params["free"]["w"] + params["held"]["b"] - batch["y"]
        weight = batch["weight"].sum()
        loss = (batch["weight"] * error**2).sum() / weight
        return loss, {"weight": weight, "sum/tokens": weight, "noise": jax.random.uniform(key)}

    def batches(self, seed):
        generator = np.random.default_rng(seed)
        index = 0
        while True:
            x = generator.normal(size=(8, 3)).astype(np.float32)
            if index in self.bad:
                x[0, 0] = np.nan
            weight = generator.uniform(0.5, 1.5, size=8).astype(np.float32)
            y = x.sum(1) * (1000 if index in self.wild else 1)
            yield {"x": x, "y": y, "weight": weight, "index": np.full(8, index)}
            index += 1

    def describe(self, batch):
        return f"sample {int(np.asarray(batch['index'])[0])}"


def run(workdir, devices, program=None, stages=STAGES, **kwargs):
    """Trains in `workdir`; `kwargs` are options of `train`, fields of the config that differ, or `held_out`."""
    held_out = kwargs.pop("held_out", None)
    options = {name: kwargs.pop(name) for name in ("stop_after", "profile", "began") if name in kwargs}
    config = TrainingConfig(
        program="toy",
        seed=3,
        batch_size=8,
        stages=stages,
        optimizer=OPTIMIZER,
        checkpoint_every=4,
        operations=OperationsConfig(GuardConfig(max_in_row=2)),
    )
    opened = Run(dataclasses.replace(config, **kwargs), program or Regression(), devices, held_out=held_out)
    return train(opened, workdir, **options)
