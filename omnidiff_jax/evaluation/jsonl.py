"""An exam of one's own data: held-out lines of a JSONL manifest whose answers are text."""

import dataclasses
from collections.abc import Collection

from omnidiff_jax.answering.queries import Request, Response
from omnidiff_jax.codecs.encode import load_media
from omnidiff_jax.codecs.judgment import check_trainable
from omnidiff_jax.data.sources import JsonlRecords
from omnidiff_jax.errors import UserError, notice
from omnidiff_jax.evaluation.exam import Case, Exam, ExamSet, named
from omnidiff_jax.evaluation.measures import EXACT, TRANSCRIBED
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG, Record, RejectedRecord
from omnidiff_jax.tasks.registry import TASKS, task

# What an answer in text is measured by.
MEASURES = {name: (TRANSCRIBED if name == "asr" else EXACT,) for name, kind in TASKS.items() if kind.answer == "text"}


def jsonl_exam(name: str, cases: int, data: str | None) -> Exam:
    """The lines of a manifest that are of one task, as questions with their answers taken away.

    A line is of the task that it names, or that its media amount to. Lines that training could not use, and those of
    more than one question, are skipped.

    Raises:
        UserError: no manifest, or no line of the task that can be asked.
    """
    if not data:
        raise UserError("an exam of one's own data needs --data: a JSONL manifest")
    records = JsonlRecords(data)
    found: list[Case] = []
    skipped: list[str] = []
    for index in range(len(records)):
        try:
            record = records[index]
        except RejectedRecord:
            continue  # of no task; `of_manifest` names it
        if record.task != name:
            continue
        where = f"{data}, record {index + 1}"
        try:
            found.append(_case(record, where))
        except RejectedRecord as error:
            skipped.append(f"{where}: {error}")
        if len(found) == cases:
            break
    if not found:
        why = f"all {len(skipped)} are passed over: {named(skipped)}" if skipped else "it has none of that task"
        raise UserError(f"{data} has no line of {name} for an exam, one question and one answer in text; {why}")
    return Exam(task(name), tuple(found), MEASURES[name], skipped=tuple(skipped))


def _case(record: Record, where: str) -> Case:
    """Raises RejectedRecord where the record cannot be asked and answered in one turn each."""
    asked = [message.content for message in record.messages if message.role == "user"]
    answers = [message.content for message in record.messages if message.role == "assistant"]
    if len(asked) != 1 or len(answers) != 1 or len(record.images) > 1 or len(record.audios) > 1:
        raise RejectedRecord("more than one question, answer or medium")
    record = load_media(record)
    check_trainable(record)
    chosen, answer = task(record.task), answers[0].strip()
    text = asked[0].replace(IMAGE_TAG, "").replace(AUDIO_TAG, "").strip() if "text" in chosen.inputs else ""
    request = Request(
        text,
        record.images[0] if record.images else None,
        record.audios[0] if record.audios else None,
        request_id=record.sample_id,
    )
    return Case(request, Response(text=answer), {"answer": answer}, where)


JSONL = ExamSet(
    "held-out lines of a JSONL manifest, answers in text",
    tuple(MEASURES),
    jsonl_exam,
    needs_data="a JSONL manifest",
)


def of_manifest(data: str, tasks: Collection[str] = ()) -> ExamSet:
    """The exam of a manifest: of the tasks that it has. Lines that are no samples at all are named on stderr.

    Args:
        data: the manifest.
        tasks: those that will be sat; () = all that it has.

    Raises:
        UserError: it has no line that an exam can be made of, or a task to be sat has none.
    """
    records = JsonlRecords(data)
    there: set[str] = set()
    faults: list[str] = []
    for index in range(len(records)):
        try:
            there.add(records[index].task)
        except RejectedRecord as error:
            faults.append(str(error))
    if faults:
        notice(f"{data}: {len(faults)} of {len(records)} lines are passed over; {named(faults)}")
    found = tuple(name for name in MEASURES if name in there)
    if not found:
        raise UserError(f"{data} has no line of {', '.join(MEASURES)}: only answers in text are examined")
    for name in found:
        if not tasks or name in tasks:
            jsonl_exam(name, 1, data)  # before anything is sat
    return dataclasses.replace(JSONL, tasks=found)
