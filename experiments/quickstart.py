"""The main job in one command: data, three training stages, every task scored, and a report to open.

    omnidiff quickstart --workdir=DIR                                                from the shipped weights: minutes
    omnidiff quickstart --workdir=DIR --config=experiments/configs/nano.py           from nothing: hours

Goes on where it was interrupted. Leaves scorecard.json, report.html, samples/, metrics.jsonl and checkpoints/ in the
workdir.
"""

import sys
import time

from experiments.common import Command
from experiments.programs import EXAMS, open_model
from omnidiff_jax.evaluation.run import evaluate
from omnidiff_jax.runs.config import RunConfig, run_config
from omnidiff_jax.runs.stored import newest
from omnidiff_jax.training.loop import train
from omnidiff_jax.training.operations.lock import only_run
from omnidiff_jax.training.workdir import open_workdir

COMMAND = Command("quickstart", __doc__)
CONFIG = COMMAND.config("experiments/configs/quickstart.py")
WORKDIR = COMMAND.string("workdir", "folder of the run", "workdirs/quickstart")
CASES = COMMAND.integer("cases", "held-out cases of each task", 100, minimum=1)
# What a case costs all exams together, as training steps of nano on the same machine (docs/quickstart.md).
STEPS_PER_CASE = 2.5


def run() -> None:
    config, word = run_config(CONFIG.value), str(WORKDIR.value)
    seconds, last = {}, time.perf_counter()
    cases = CASES.value or 1
    print(plan(config, word, cases), file=sys.stderr, flush=True)

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
            train(opened, word, afterwards=STEPS_PER_CASE * cases)
            lap("train")
        step = newest(workdir).step
        exams = {"scenes": EXAMS["scenes"]}
        evaluate(str(workdir), exams, cases, folder=workdir, step=step, seconds=seconds, note=rests_on(config))
    print(f"open {word.rstrip('/')}/report.html")


def plan(config: RunConfig, word: str, cases: int) -> str:
    """What will be done, before anything is."""
    samples = sum(source.examples for source in config.sources.values())
    steps = sum(stage.steps for stage in config.plan)
    begins = f"the weights {config.init.folder!r}" if config.init.folder else "nothing"
    return (
        f"quickstart: {samples} samples are made, {steps} steps in {len(config.plan)} stages start from {begins}, "
        f"every task is asked {cases} held-out questions; {word} gets it all. Each part says how long it still takes."
    )


def rests_on(config: RunConfig) -> str:
    """Which weights the scores rest on, for the report."""
    steps = sum(stage.steps for stage in config.plan)
    if not config.init.folder:
        return f"Trained from nothing in {steps} steps; only its tokenizers are shipped ones."
    return f"These scores rest on the weights {config.init.folder!r}, trained before; {steps} steps went on from them."


if __name__ == "__main__":
    COMMAND.main(run)
