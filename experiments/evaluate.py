"""Scores a trained run on held-out scenes, every task with its judge's ceiling and floor.

    omnidiff evaluate --workdir=DIR

Leaves scorecard.json (with the decoding settings), report.html and samples/ in the workdir; with --task the scorecard
keeps what it says of other tasks, and the report is report_TASK.html.
"""

from experiments.common import Command
from experiments.programs.evaluation import evaluate_run
from experiments.programs.omni import stored_config
from omnidiff_jax.tasks.registry import TASKS, task

COMMAND = Command("evaluate", __doc__)
WORKDIR = COMMAND.string("workdir", "folder of a trained run", required=True)
CASES = COMMAND.integer("cases", "held-out cases of each task", 100, minimum=1)
TASK = COMMAND.strings("task", "only this task; may be given several times")


def run() -> None:
    config = stored_config(str(WORKDIR.value))
    names = tuple(task(name).name for name in TASK.value) or tuple(TASKS)
    evaluate_run(config, str(WORKDIR.value), CASES.value or 1, names)


if __name__ == "__main__":
    COMMAND.main(run)
