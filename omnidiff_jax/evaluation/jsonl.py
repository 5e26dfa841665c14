"""An exam of one's own data: held-out lines of a JSONL manifest whose answers are text."""

import dataclasses

from omnidiff_jax.answering.queries import Request, Response
from omnidiff_jax.codecs.encode import load_media
from omnidiff_jax.data.sources import JsonlRecords
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.exam import Case, Exam, ExamSet
from omnidiff_jax.evaluation.measures import EXACT, TRANSCRIBED
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG, Record, RejectedRecord
from omnidiff_jax.tasks.registry import TASKS, task

# What an answer in text is measured by.
MEASURES = {name: (TRANSCRIBED if name == "asr" else EXACT,) for name, kind in TASKS.items() if kind.answer == "text"}


def jsonl_exam(name: str, cases: int, data: str | None) -> Exam:
    """The lines of a manifest that are of one task, as questions with their answers taken away.

    A line is of the task that it names, or that its media amount to. Lines that cannot be used, and those of more than
    one question, are passed over.

    Raises:
        UserError: no manifest, or no line of the task.
    """
    if not data:
        raise UserError("an exam of one's own data needs --data: a JSONL manifest")
    records, found = JsonlRecords(data), []
    for index in range(len(records)):
        try:
            record = load_media(records[index])
        except RejectedRecord:
            continue
        if record.task == name and (case := _case(record)) is not None:
            found.append(case)
        if len(found) == cases:
            break
    return Exam(task(name), tuple(found), MEASURES[name])


def _case(record: Record) -> Case | None:
    asked = [message.content for message in record.messages if message.role == "user"]
    answers = [message.content for message in record.messages if message.role == "assistant"]
    if len(asked) != 1 or len(answers) != 1 or len(record.images) > 1 or len(record.audios) > 1:
        return None
    chosen, answer = task(record.task), answers[0].strip()
    text = asked[0].replace(IMAGE_TAG, "").replace(AUDIO_TAG, "").strip() if "text" in chosen.inputs else ""
    request = Request(
        text,
        record.images[0] if record.images else None,
        record.audios[0] if record.audios else None,
        request_id=record.sample_id,
    )
    return Case(request, Response(text=answer), {"answer": answer})


JSONL = ExamSet(
    "held-out lines of a JSONL manifest, answers in text",
    tuple(MEASURES),
    jsonl_exam,
    needs_data="a JSONL manifest",
)


def tasks_in(data: str) -> tuple[str, ...]:
    """The tasks of a manifest's lines that an exam can be made of, in the registry's order."""
    records, found = JsonlRecords(data), set()
    for index in range(len(records)):
        try:
            found.add(records[index].task)
        except RejectedRecord:
            continue
    return tuple(name for name in MEASURES if name in found)


def of_manifest(data: str) -> ExamSet:
    """The exam of a manifest: of the tasks that it has.

    Raises:
        UserError: it has no line that an exam can be made of.
    """
    tasks = tasks_in(data)
    if not tasks:
        raise UserError(f"{data} has no line of {', '.join(MEASURES)}: only answers in text are examined")
    return dataclasses.replace(JSONL, tasks=tasks)
