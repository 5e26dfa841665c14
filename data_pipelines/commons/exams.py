"""Exams on Commons, every task: in other renderings and voices than were learned, other styles and concepts."""

import dataclasses
from collections.abc import Mapping

from data_pipelines.commons.judges import TASKS, measures
from data_pipelines.commons.reader import clips_of
from data_pipelines.commons.tasks import make_record
from data_pipelines.commons.things import open_world
from data_pipelines.scenes.exams import SCORE, case
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.exam import Case, Exam, ExamSet
from omnidiff_jax.records import RejectedRecord
from omnidiff_jax.tasks.registry import task

# Beside the exam on what was learned, where the split means something.
_FURTHER: Mapping[str, tuple[str, ...]] = {
    "captioning": ("style", "concepts"),
    "vqa": ("style", "concepts"),
    "spoken_vqa": ("style", "concepts"),
    "text_qa": ("concepts",),
    "t2i": ("concepts",),
    "inpainting": ("concepts",),
    "s2i": ("concepts",),
    "tts": ("concepts",),
    "asr": ("concepts",),
    "spoken_qa": ("concepts",),
}


def exam(name: str, cases: int, folder: str, split: str = "test") -> Exam:
    """The exam of one task and split; sentences that did not pass the gate are passed over.

    Args:
        name: of the task, one of `judges.TASKS`.
        cases: how many records.
        folder: of Commons; what is spoken lies in its `clips`.
        split: as `tasks` has them.

    Raises:
        UserError: a file or a judge is missing, or hardly a clip passes the gate.
    """
    world, clips = open_world(folder), clips_of(name, folder)
    found: list[Case] = []
    for index in range(SCORE, SCORE + 4 * cases):
        if len(found) == cases:
            return Exam(task(name), tuple(found), measures(name, folder))
        try:
            found.append(case(make_record(world, name, index, split, clips)))
        except RejectedRecord:
            continue
    raise UserError(
        f"of {4 * cases} sentences only {len(found)} passed the gate of {folder}/clips; look at its settings"
    )


def commons_exam(name: str, cases: int, data: str | None = None) -> Exam:
    """The exam of one task in other renderings and voices than were learned, with its further splits."""
    if data is None:
        raise UserError("the exam on Commons needs its folder: --data=DIR of `omnidiff data fetch commons DIR`")
    further = {split: exam(name, cases, data, split) for split in _FURTHER[name]}
    return dataclasses.replace(exam(name, cases, data), further=further)


COMMONS = ExamSet(
    "real things: other renderings and voices, the other style, things never learned",
    TASKS,
    commons_exam,
    needs_data="the folder of `omnidiff data fetch commons`",
)
