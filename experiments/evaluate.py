"""Scores a trained model on exams, every task with its judge's ceiling and floor.

    omnidiff evaluate --workdir=DIR                    Scenes, if that is what the run learned from
    omnidiff evaluate --workdir=DIR --exam=scenes --task=t2i
    omnidiff evaluate --workdir=DIR --exam=jsonl --data=HELD_OUT.jsonl
    omnidiff evaluate --model=NAME --exam=scenes --out=DIR
    omnidiff evaluate --workdir=DIR --exam=mme --exam=pope --data=mme=DIR --data=pope=DIR
    omnidiff evaluate --exam=libritts --data=DIR --dry_run

Leaves scorecard.json (with the decoding settings), report.html, samples/ and predictions/ in the workdir, or in --out;
what the scorecard says of other exams and tasks stays. With --task the report is report_TASK.html. Public benchmarks
(docs/benchmarks.md) also leave benchmarks.md, and every answer in benchmarks/; started again, they go on. As several
processes of one mesh (found as `omnidiff train` finds them) they ask the same batches together.
"""

import jax

from experiments.common import Command
from experiments.named_model import model_flags, model_named, preset_flag, quantize_flag
from experiments.processes import process_flags
from experiments.programs import EXAMS
from experiments.public import BENCHMARKS, PUBLIC, data_of, dry_run, share_of, sit_public
from omnidiff_jax.config import choose
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.benchmarking import STAGES, Sitting
from omnidiff_jax.evaluation.exam import ExamSet
from omnidiff_jax.evaluation.jsonl import of_manifest
from omnidiff_jax.evaluation.run import evaluate
from omnidiff_jax.evaluation.scorecard import READ
from omnidiff_jax.files import updated
from omnidiff_jax.runs.stored import Stored, is_run, newest
from omnidiff_jax.tasks.registry import task

COMMAND = Command("evaluate", __doc__)
WORKDIR, MODEL = model_flags(COMMAND)
EXAM = COMMAND.strings("exam", f"what is sat; may be given several times: {', '.join((*EXAMS, *PUBLIC))}")
DATA = COMMAND.strings("data", "what an exam of one's own data, or a public one, examines; EXAM=PATH of several")
CASES = COMMAND.integer("cases", "held-out cases of each task", 300, minimum=1)
TASK = COMMAND.strings("task", "only this task; may be given several times")
PROTOCOL = COMMAND.strings("protocol", "of public benchmarks: released, vlmevalkit, … (default: the first); EXAM=NAME")
DECODING = COMMAND.string("decoding", "of public benchmarks: the protocol's, own, or a set's name", "protocol")
JUDGE = COMMAND.strings("judge", "of public benchmarks: whisper:FOLDER, pocketsphinx, clip:FOLDER; several times")
LIMIT = COMMAND.integer("limit", "of public benchmarks: most questions of each part", 0, minimum=0)
STAGE = COMMAND.strings("stage", f"of public benchmarks, instead of all: {', '.join(STAGES)}; several times")
SHARE = COMMAND.string("share", "of public benchmarks: I/N, this process's of N", "0/1")
ROWS = COMMAND.integer("rows", "of public benchmarks: questions answered together", 64, minimum=1)
DRY_RUN = COMMAND.switch("dry_run", "only count and check the data of public benchmarks")
OUT = COMMAND.string("out", "folder for what is left, in a bucket or not (default: the workdir)")
PRESET = preset_flag(COMMAND)
JOIN = process_flags(COMMAND)
QUANTIZE = quantize_flag(COMMAND)


def run() -> None:
    public = [name for name in EXAM.value if name in PUBLIC]
    others = [name for name in EXAM.value if name not in PUBLIC]
    for name in others:
        choose({**EXAMS, **dict.fromkeys(PUBLIC)}, name, "exam")
    told = data_of([name for name in public if name in BENCHMARKS], DATA.value) if public else {}
    if DRY_RUN.value:
        dry_run(told, PROTOCOL.value)
        return
    JOIN()
    if jax.process_count() > 1 and (others or not public):
        raise UserError("several processes sit public benchmarks alone; name those by --exam")
    what = model_named(WORKDIR.value, MODEL.value)
    names = tuple(task(name).name for name in TASK.value)
    found = newest(what) if is_run(what) else None
    data = "" if public else "".join(DATA.value[:1])
    exams = _others(others, found, data, names) if others or not public else {}
    folder = OUT.value or (what if found else None)
    if folder is None:
        raise UserError("--out is missing: a folder for the scorecard, since --model names no workdir")
    step, preset, quantize = found.step if found else 0, str(PRESET.value), QUANTIZE.value or ""
    if exams:
        with updated(folder, READ) as place:
            evaluate(
                what,
                exams,
                CASES.value or 1,
                names,
                folder=place,
                step=step,
                data=data or None,
                preset=preset,
                quantize=quantize,
            )
    if public:
        loaded = {"preset": preset, "quantize": quantize}
        sit_public(public, told, PROTOCOL.value, what, folder, _sitting(what, step, quantize), loaded)


def _sitting(what: str, step: int, quantize: str) -> Sitting:
    share = share_of(str(SHARE.value))
    stages = tuple(choose({stage: stage for stage in STAGES}, stage, "stage") for stage in STAGE.value)
    return Sitting(
        f"{what}, {quantize}" if quantize else what,
        step,
        "",
        str(DECODING.value),
        tuple(JUDGE.value),
        LIMIT.value or 0,
        # Who has a share of the answers leaves scoring to one that sees all.
        stages or (STAGES if share.of == 1 else STAGES[:-1]),
        share,
        ROWS.value or 64,
    )


def _others(asked: list[str], found: Stored | None, data: str, names: tuple[str, ...]) -> dict[str, ExamSet]:
    """The exams that are not public ones, those of what the run learned from where none is named."""
    exams = {name: EXAMS[name] for name in asked} or _fitting(found)
    if data and not any(exam.needs_data for exam in exams.values()):
        raise UserError(f"--data={data}: no exam of {', '.join(exams)} reads it; add --exam=jsonl, or leave it out")
    if "jsonl" in exams and data:
        exams["jsonl"] = of_manifest(data, names)
    for name, exam in exams.items():
        if exam.needs_data and not data:
            raise UserError(f"--exam={name} needs --data: {exam.needs_data}")
        for one in names:
            if one not in exam.tasks:
                raise UserError(f"--exam={name} has no task {one!r}; it has {', '.join(exam.tasks)}")
    return exams


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
