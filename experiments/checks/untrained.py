"""A run of initial weights: what a size costs to load, to serve and to go on with can be measured before any training.

omnidiff untrained --config=experiments/configs/nano.py --workdir=DIR --config.model.width=512
"""

import dataclasses
from pathlib import Path

import jax
from ml_collections import ConfigDict

from experiments.common import Command
from omnidiff_jax import rng
from omnidiff_jax.codecs.tokenizers import open_tokenizers
from omnidiff_jax.config import to_dict
from omnidiff_jax.runs.config import run_config
from omnidiff_jax.runs.stored import open_here
from omnidiff_jax.training.checkpoint import CheckpointConfig, Checkpointer
from omnidiff_jax.training.optimizer import make_optimizer
from omnidiff_jax.training.step import init_state

COMMAND = Command("untrained", __doc__)
CONFIG = COMMAND.config()
WORKDIR = COMMAND.string("workdir", "folder to make the run in", required=True)


def run() -> None:
    untrained(CONFIG.value, Path(str(WORKDIR.value)))


def untrained(config: ConfigDict, workdir: Path) -> None:
    """A checkpoint of the config's initial state, as training would have saved it."""
    typed = run_config(config)
    tokenizers = open_tokenizers(typed.tokenizers)
    named = dataclasses.replace(typed.tokenizers, fingerprint=tokenizers.fingerprint)
    typed = dataclasses.replace(typed, tokenizers=named)
    opened = open_here(typed, tokenizers)
    optimizer = typed.optimizer_used
    with jax.set_mesh(opened.mesh):
        make = jax.jit(
            lambda key: init_state(opened.program.init(key), make_optimizer(optimizer, lambda step: 0.0), optimizer)
        )
        saver = Checkpointer(workdir, CheckpointConfig())
        saver.save(1, make(rng.stream(typed.seed, "init")), {}, to_dict(typed))
        saver.wait()
        saver.close()


if __name__ == "__main__":
    COMMAND.main(run)
