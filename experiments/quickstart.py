"""The main job in one command: data, three training stages, every task scored, and a report to open.

    omnidiff quickstart --workdir=DIR

Goes on where it was interrupted. Leaves scorecard.json, report.html, samples/, metrics.jsonl and checkpoints/ in the
workdir.
"""

import sys
import time

from experiments.common import Command
from experiments.programs import EXAMS, open_model
from omnidiff_jax.evaluation.run import evaluate
from omnidiff_jax.runs.config import run_config
from omnidiff_jax.runs.stored import newest
from omnidiff_jax.training.loop import train
from omnidiff_jax.training.operations.lock import only_run
from omnidiff_jax.training.workdir import open_workdir

COMMAND = Command("quickstart", __doc__)
CONFIG = COMMAND.config("experiments/configs/nano.py")
WORKDIR = COMMAND.string("workdir", "folder of the run", "workdirs/quickstart")
CASES = COMMAND.integer("cases", "held-out cases of each task", 100, minimum=1)


def run() -> None:
    config, word = run_config(CONFIG.value), str(WORKDIR.value)
    seconds, last = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[name], last = now - last, now
        print(f"{name}: {seconds[name]:.0f} s", file=sys.stderr, flush=True)

    with open_workdir(word) as place:
        workdir = place.path
        with only_run(workdir):
            opened = open_model(config, workdir)
            lap("data")
            train(opened, word)
            lap("train")
        step = newest(workdir).step
        exams = {"scenes": EXAMS["scenes"]}
        evaluate(str(workdir), exams, CASES.value or 1, folder=workdir, step=step, seconds=seconds)
    print(f"open {word.rstrip('/')}/report.html")


if __name__ == "__main__":
    COMMAND.main(run)
