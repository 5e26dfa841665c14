"""Held-out exams of every task on Scenes, ready for the scorecard."""

import dataclasses

import numpy as np

from data_pipelines.scenes.judges import MEASURES
from data_pipelines.scenes.tasks import make_record
from omnidiff_jax.answering.queries import Request, Response
from omnidiff_jax.evaluation.exam import Case, Exam, ExamSet
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG, Record
from omnidiff_jax.tasks.registry import TASKS, task


def case(record: Record) -> Case:
    """The record as a question with its answer taken away."""
    inputs = task(record.task).inputs
    content = record.messages[-1].content
    image = record.images[0] if "image" in inputs else None
    hole = record.hole
    if image is not None and hole is not None:
        image = np.where(hole[..., None], np.uint8(128), image)  # nothing of what was there can leak
    audio = record.audios[0] if "audio" in inputs else None
    request = Request(record.meta.get("request", ""), image, audio, hole, record.sample_id)
    truth = Response(
        text=content.replace(IMAGE_TAG, "").replace(AUDIO_TAG, "").strip(),
        image=record.images[-1] if IMAGE_TAG in content else None,
        audio=record.audios[-1] if AUDIO_TAG in content else None,
    )
    return Case(request, truth, record.meta)


# First indices: what was looked at while settings were chosen lies apart from what the score rests on.
TUNING, SCORE = 0, 1 << 24


def exam(name: str, cases: int, split: str = "test", start: int = SCORE, plain: float = 0.0) -> Exam:
    """The exam of one task.

    Args:
      name: of the task.
      cases: how many records.
      split: "test", or "compositional" for colour-shape pairs that no training scene has.
      start: index of the first record.
      plain: share of requests in plain words.

    Raises:
      UserError: no such task.
    """
    records = (make_record(name, start + index, split, plain) for index in range(cases))
    return Exam(task(name), tuple(case(record) for record in records), MEASURES[name])


# Tasks that are also asked about colour-shape pairs never trained on, and those whose request is typed.
COMPOSITIONAL = ("captioning", "vqa", "t2i", "inpainting")
TYPED = ("text_qa", "captioning", "vqa", "t2i", "inpainting")


def scenes_exam(name: str, cases: int, data: str | None = None, start: int = SCORE) -> Exam:
    """The exam of one task, with its compositional half where it has one; Scenes brings its own data."""
    held_out = exam(name, cases, start=start)
    if name not in COMPOSITIONAL:
        return held_out
    return dataclasses.replace(held_out, further={"compositional": exam(name, cases, "compositional", start)})


def tuning_exam(name: str, cases: int, data: str | None = None) -> Exam:
    """As `scenes_exam`, of other scenes."""
    return scenes_exam(name, cases, data, TUNING)


def plain_exam(name: str, cases: int, data: str | None = None) -> Exam:
    """The scenes of `scenes_exam`, asked for and about in plain words."""
    return exam(name, cases, plain=1.0)


SCENES = ExamSet("held-out Scenes, every task", tuple(TASKS), scenes_exam, readers=("scenes",))
PLAIN = ExamSet("the same scenes in plain words, where requests are typed", TYPED, plain_exam)
SCENES_TUNING = ExamSet("other held-out Scenes, to choose settings on", tuple(TASKS), tuning_exam)
