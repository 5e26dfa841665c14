"""A small run in a process of its own, as a command runs it: `python run_worker.py WORKDIR PAUSE [fault number]`.

Faults, met while the sixth batch is made: `limit BYTES` = no file may grow beyond so many, as on a full disk; `gone` =
the checkpoints' folder is not a folder any more; `raise` = a bug.
"""

import os
import resource
import signal
import sys
import time

import jax
import jax.numpy as jnp
from toy_training import Regression, run

from omnidiff_jax.cli import guard
from omnidiff_jax.data.mixture import Stage
from omnidiff_jax.signals import leave


class Faulty(Regression):
    def __init__(self, workdir, pause, fault="", number="0"):
        super().__init__()
        self.workdir, self.pause, self.fault, self.number = workdir, float(pause), fault, int(number)

    def init(self, key):
        big = jax.random.normal(key, (200_000,))
        return {"free": {"w": jax.random.normal(key, (3,)), "big": big}, "held": {"b": jnp.ones(())}}

    def batches(self, seed):
        for index, batch in enumerate(super().batches(seed)):
            time.sleep(self.pause)
            if index == 5:
                self.meet()
            yield batch

    def meet(self):
        checkpoints = os.path.join(self.workdir, "checkpoints")
        if self.fault == "limit":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.number, self.number))
        elif self.fault == "gone":
            os.rename(checkpoints, checkpoints + ".moved")
            open(checkpoints, "w").close()
        elif self.fault == "raise":
            raise RuntimeError("a bug")


def main():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    run(sys.argv[1], mesh, Faulty(*sys.argv[1:]), stages={"only": Stage(20, 1e-2)})


if __name__ == "__main__":
    leave(lambda: guard("toy", main))
