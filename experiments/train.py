"""Trains what a config describes: the any-to-any model through its three stages, or one of the tokenizers.

    omnidiff train --config=experiments/configs/nano.py --workdir=DIR
    omnidiff train --config=experiments/configs/tokenizers/image.py --workdir=DIR

Goes on from the newest whole checkpoint in the workdir. Leaves metrics.jsonl, goodput.json, TensorBoard events, logs/
and checkpoints/; a tokenizer is also exported to DIR/export, in the form that `config.tokenizers` takes.

As one of several processes (SLURM, Open MPI and TPU pods are recognised) it joins the others; the workdir is then a
folder that all of them see. SIGTERM saves and ends with status 75; started again it goes on. See docs/operations.md.
"""

import json
import time
from pathlib import Path

import jax

from experiments.common import Command
from experiments.processes import process_flags
from experiments.programs import TEXT_TOKENIZERS, open_program
from omnidiff_jax.compilation import use_cache
from omnidiff_jax.config import build
from omnidiff_jax.files import write_bytes, written
from omnidiff_jax.sharding.distributed import is_primary
from omnidiff_jax.training.loop import train
from omnidiff_jax.training.operations.goodput import process_age
from omnidiff_jax.training.operations.lock import only_run
from omnidiff_jax.training.operations.profiling import parse_steps
from omnidiff_jax.training.run import Run
from omnidiff_jax.training.step import TrainState, eval_params
from omnidiff_jax.training.workdir import open_workdir

COMMAND = Command("train", __doc__)
CONFIG = COMMAND.config("experiments/configs/nano.py")
WORKDIR = COMMAND.string("workdir", "folder of the run", required=True)
JOIN = process_flags(COMMAND)
PROFILE = COMMAND.string("profile", "trace these steps of this start for xprof: a number such as 5, or 10-12")


def run() -> None:
    began = time.perf_counter() - process_age()
    config, word = CONFIG.value, str(WORKDIR.value)
    profile = parse_steps(PROFILE.value)
    if (program := config.get("program")) in TEXT_TOKENIZERS:
        with written(f"{word}/export", "text.model") as export:
            build(TEXT_TOKENIZERS[program], config).train(export)
        return
    JOIN()
    use_cache(config.get("compilation_cache", ""))
    with open_workdir(word) as place:
        with only_run(place.path):  # before its data is built
            opened = open_program(config, place.path)
            state = train(opened, word, profile=profile, began=began)
        if is_primary():
            validate(opened, state, place.path)


def validate(opened: Run, state: TrainState, workdir: Path) -> None:
    """What a program leaves when it is trained: the tokenizers an export and numbers on held-out data."""
    # One process computes alone from here on; what is exported is replicated, so it has a whole copy.
    params = jax.tree.map(lambda x: x.addressable_data(0) if x.is_fully_replicated else x, eval_params(state))
    report = opened.program.validate(params)
    opened.program.export(params, workdir / "export")
    if report:
        write_bytes(workdir / "validation.json", (json.dumps(report, indent=2) + "\n").encode())
        print("  ".join(f"{name} {value:.4g}" for name, value in report.items()))


if __name__ == "__main__":
    COMMAND.main(run)
