"""Held-out exams of every task on Scenes, ready for the scorecard."""

import dataclasses

import numpy as np

from data_pipelines.scenes.judges import MEASURES
from data_pipelines.scenes.render import place_box
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
    hole = None
    if image is not None and "hole" in inputs:
        hole = np.zeros(image.shape[:2], bool)
        hole[place_box(record.meta["hidden"], len(image))] = True
        image = np.where(hole[..., None], np.uint8(128), image)  # nothing of what was there can leak
    audio = record.audios[0] if "audio" in inputs else None
    request = Request(record.meta.get("request", ""), image, audio, hole, record.sample_id)
    truth = Response(
        text=content.replace(IMAGE_TAG, "").replace(AUDIO_TAG, "").strip(),
        image=record.images[-1] if IMAGE_TAG in content else None,
        audio=record.audios[-1] if AUDIO_TAG in content else None,
    )
    return Case(request, truth, record.meta)


def exam(name: str, cases: int, split: str = "test", start: int = 0) -> Exam:
    """The exam of one task.

    Args:
      name: of the task.
      cases: how many records.
      split: "test", or "compositional" for colour-shape pairs that no training scene has.
      start: index of the first record.

    Raises:
      UserError: no such task.
    """
    records = (make_record(name, start + index, split) for index in range(cases))
    return Exam(task(name), tuple(case(record) for record in records), MEASURES[name])


# Tasks that are also asked about colour-shape pairs never trained on.
COMPOSITIONAL = ("captioning", "t2i", "inpainting")


def scenes_exam(name: str, cases: int, data: str | None = None) -> Exam:
    """The exam of one task, with its compositional half where it has one; Scenes brings its own data."""
    held_out = exam(name, cases)
    if name not in COMPOSITIONAL:
        return held_out
    return dataclasses.replace(held_out, further={"compositional": exam(name, cases, "compositional")})


SCENES = ExamSet("held-out Scenes, every task", tuple(TASKS), scenes_exam, readers=("scenes",))
