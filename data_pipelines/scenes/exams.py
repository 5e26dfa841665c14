"""Held-out exams over Scenes: requests, true answers and judges of all nine tasks and inpainting."""

from collections.abc import Callable, Sequence

import numpy as np

from data_pipelines.scenes.language import parse_caption
from data_pipelines.scenes.listener import listen
from data_pipelines.scenes.render import IMAGE_SIZE, place_box
from data_pipelines.scenes.scene import Scene
from data_pipelines.scenes.scene_parser import parse_scene
from data_pipelines.scenes.tasks import make_record
from omnidiff_jax.evaluation.generate import Request, Response
from omnidiff_jax.evaluation.scorecard import Case, Exam, Measure
from omnidiff_jax.evaluation.wer import edit_distance, normalize
from omnidiff_jax.records import Record
from omnidiff_jax.tasks.registry import TASKS, task

Tally = tuple[np.ndarray, np.ndarray]


def exam(name: str, cases: int, split: str = "test", start: int = 0) -> Exam:
    """The exam of one task.

    Args:
        name: of the task.
        cases: how many held-out records.
        split: "test", or "compositional" for colour–shape pairs that no training scene has.
        start: first record.
    """
    records = [make_record(name, start + i, split) for i in range(cases)]
    return Exam(task(name), tuple(map(_case, records)), _MEASURES[name])


def exams(cases: int, split: str = "test") -> dict[str, Exam]:
    """The exam of every task."""
    return {name: exam(name, cases, split) for name in TASKS}


def _case(record: Record) -> Case:
    chosen = task(record.task)
    heard = "audio" in chosen.inputs
    looks = "image" in chosen.inputs
    user = record.messages[-2].content
    prefix, _, suffix = chosen.user.partition("{text}")
    text = user[len(prefix) : len(user) - len(suffix)] if "text" in chosen.inputs else ""
    hole = None
    if chosen.answer == "hole":
        hole = np.zeros((IMAGE_SIZE, IMAGE_SIZE), bool)
        hole[place_box(record.meta["hidden"])] = True
    image = _hidden(record.images[0], hole) if hole is not None else record.images[0] if looks else None
    request = Request(text, image, record.audios[0] if heard else None, hole, record.sample_id)
    speaks = chosen.answer in ("speech", "text_and_speech")
    truth = Response(
        text=record.meta.get("answer", "") if chosen.answer in ("text", "text_and_speech") else "",
        image=record.images[-1] if chosen.answer in ("image", "hole") else None,
        audio=record.audios[-1] if speaks else None,
    )
    return Case(request, truth, record.meta)


def _hidden(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The picture with its hole painted in plain gray, so that nothing of what it hid can leak."""
    return np.where(hole[..., None], np.uint8(128), image)


def _per_case(right: Callable[[Response, Case], bool]) -> Callable[[Sequence[Response], Sequence[Case]], Tally]:
    def score(responses: Sequence[Response], cases: Sequence[Case]) -> Tally:
        hits = np.array([right(r, c) for r, c in zip(responses, cases, strict=True)], float)
        return hits, np.ones(len(hits))

    return score


def _words(said: Callable[[Response], str], key: str) -> Callable[[Sequence[Response], Sequence[Case]], Tally]:
    """Word errors against `meta[key]`."""

    def score(responses: Sequence[Response], cases: Sequence[Case]) -> Tally:
        references = [normalize(str(case.meta[key])).split() for case in cases]
        errors = [
            edit_distance(reference, normalize(said(response)).split())
            for reference, response in zip(references, responses, strict=True)
        ]
        return np.array(errors, float), np.array([len(reference) for reference in references], float)

    return score


def _heard(response: Response) -> str:
    return listen(response.audio) if response.audio is not None else ""


def _scene(case: Case) -> Scene:
    scene = parse_caption(str(case.meta["caption"]))
    assert scene is not None
    return scene


def _same_text(response: Response, case: Case) -> bool:
    return normalize(response.text) == normalize(str(case.meta["answer"]))


def _same_caption(response: Response, case: Case) -> bool:
    found, wanted = parse_caption(response.text), _scene(case)
    return found is not None and found.content() == wanted.content()


def _same_objects(response: Response, case: Case) -> bool:
    return response.image is not None and parse_scene(response.image).content() == _scene(case).content()


def _hidden_object(response: Response, case: Case) -> bool:
    place = str(case.meta["hidden"])
    return response.image is not None and _kind(parse_scene(response.image), place) == _kind(_scene(case), place)


def _kind(scene: Scene, place: str) -> tuple[str, str, str] | None:
    thing = scene.at(place)
    return None if thing is None else (thing.size, thing.color, thing.shape)


def _untouched(response: Response, case: Case) -> bool:
    hole, given = case.request.hole, case.request.image
    assert hole is not None and given is not None
    return response.image is not None and bool((response.image[~hole] == given[~hole]).all())


_EXACT = Measure("exact match", "normalised text", True, _per_case(_same_text))
_DRAWN = Measure("all objects right", "scene parser", True, _per_case(_same_objects))
_SPOKEN = Measure("word error rate", "pocketsphinx", False, _words(_heard, "spoken"))
_MEASURES: dict[str, tuple[Measure, ...]] = {
    "text_qa": (_EXACT,),
    "captioning": (Measure("all objects right", "caption grammar", True, _per_case(_same_caption)),),
    "vqa": (_EXACT,),
    "t2i": (_DRAWN,),
    "asr": (Measure("word error rate", "edit distance", False, _words(lambda r: r.text, "answer")),),
    "tts": (_SPOKEN,),
    "spoken_qa": (_EXACT, _SPOKEN),
    "s2i": (_DRAWN,),
    "spoken_vqa": (_EXACT, _SPOKEN),
    "inpainting": (
        Measure("hidden object right", "scene parser", True, _per_case(_hidden_object)),
        Measure("known pixels untouched", "pixel equality", True, _per_case(_untouched)),
    ),
}
