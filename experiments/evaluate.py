"""Scores a trained model on exams, every task with its judge's ceiling and floor.

    omnidiff evaluate --workdir=DIR                    Scenes, if that is what the run learned from
    omnidiff evaluate --workdir=DIR --exam=scenes --task=t2i
    omnidiff evaluate --workdir=DIR --exam=jsonl --data=HELD_OUT.jsonl
    omnidiff evaluate --model=NAME --exam=scenes --out=DIR

Leaves scorecard.json (with the decoding settings), report.html, samples/ and predictions/ in the workdir, or in --out;
what the scorecard says of other exams and tasks stays. With --task the report is report_TASK.html.
"""

from experiments.common import Command
from experiments.named_model import model_flags, model_named, preset_flag, quantize_flag
from experiments.programs import EXAMS
from omnidiff_jax.config import choose
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.exam import ExamSet
from omnidiff_jax.evaluation.jsonl import of_manifest
from omnidiff_jax.evaluation.run import evaluate
from omnidiff_jax.files import updated
from omnidiff_jax.runs.stored import Stored, is_run, newest
from omnidiff_jax.tasks.registry import task

COMMAND = Command("evaluate", __doc__)
WORKDIR, MODEL = model_flags(COMMAND)
EXAM = COMMAND.strings("exam", f"what is sat; may be given several times: {', '.join(EXAMS)}")
DATA = COMMAND.string("data", "what an exam of one's own data examines")
CASES = COMMAND.integer("cases", "held-out cases of each task", 300, minimum=1)
TASK = COMMAND.strings("task", "only this task; may be given several times")
OUT = COMMAND.string("out", "folder for what is left (default: the workdir)")
PRESET = preset_flag(COMMAND)
QUANTIZE = quantize_flag(COMMAND)


def run() -> None:
    what = model_named(WORKDIR.value, MODEL.value)
    names = tuple(task(name).name for name in TASK.value)
    found = newest(what) if is_run(what) else None
    exams = {name: choose(EXAMS, name, "exam") for name in EXAM.value} or _fitting(found)
    if DATA.value and not any(exam.needs_data for exam in exams.values()):
        raise UserError(
            f"--data={DATA.value}: no exam of {', '.join(exams)} reads it; add --exam=jsonl, or leave it out"
        )
    if "jsonl" in exams and DATA.value:
        exams["jsonl"] = of_manifest(DATA.value, names)
    for name, exam in exams.items():
        if exam.needs_data and not DATA.value:
            raise UserError(f"--exam={name} needs --data: {exam.needs_data}")
        for asked in names:
            if asked not in exam.tasks:
                raise UserError(f"--exam={name} has no task {asked!r}; it has {', '.join(exam.tasks)}")
    folder = OUT.value or (what if found else None)
    if folder is None:
        raise UserError("--out is missing: a folder for the scorecard, since --model names no workdir")
    step = found.step if found else 0
    with updated(folder, ("scorecard.json", "metrics.jsonl")) as place:
        evaluate(
            what,
            exams,
            CASES.value or 1,
            names,
            folder=place,
            step=step,
            data=DATA.value,
            preset=str(PRESET.value),
            quantize=QUANTIZE.value or "",
        )


def _fitting(found: Stored | None) -> dict[str, ExamSet]:
    """The exams of what a run learned from."""
    readers = {source.reader for source in found.config.sources.values()} if found else set()
    fitting = {name: exam for name, exam in EXAMS.items() if readers & set(exam.readers)}
    if not fitting:
        trained = (
            f"this run learned from {', '.join(sorted(readers))}" if readers else "nothing says what it learned from"
        )
        raise UserError(f"--exam is missing: {trained}; name one of {', '.join(EXAMS)}")
    return fitting


if __name__ == "__main__":
    COMMAND.main(run)
