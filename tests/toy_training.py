"""A training program of three numbers, and a run of it."""

import jax
import jax.numpy as jnp
import numpy as np

from omnidiff_jax.training.checkpoint import CheckpointConfig
from omnidiff_jax.training.layout import LoopConfig
from omnidiff_jax.training.loop import train
from omnidiff_jax.training.operations.guard import GuardConfig
from omnidiff_jax.training.operations.journal import OperationsConfig
from omnidiff_jax.training.optimizer import OptimizerConfig
from omnidiff_jax.training.program import StagePlan, TrainProgram

STAGES = (StagePlan("one", 6, 1e-2), StagePlan("two", 4, 1e-3))
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


def run(workdir, mesh, program=None, stages=STAGES, **kwargs):
    operations = kwargs.pop("operations", OperationsConfig(GuardConfig(max_in_row=2)))
    config = LoopConfig(seed=3, checkpoint=CheckpointConfig(every=4), operations=operations)
    return train(program or Regression(), config, OPTIMIZER, stages, workdir, mesh, **kwargs)
