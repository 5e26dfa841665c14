"""How good an answer is, by judges that are not the model: scene parser, caption grammar, pocketsphinx, exact match.

Every judge also reports its own ceiling (the right answers) and floor (the right answers of other records), so that a
judge that cannot fail, or cannot pass, is seen.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from data_pipelines.scenes.language import parse_caption
from data_pipelines.scenes.listener import listen
from data_pipelines.scenes.render import place_box
from data_pipelines.scenes.scene import Scene
from data_pipelines.scenes.scene_parser import parse_scene
from omnidiff_jax.evaluation.wer import normalize, word_error_rate
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG, Record, Waveform

Scores = dict[str, float]


class Answered(Protocol):
    """What a model answered; parts that the task does not ask for are not looked at."""

    @property
    def text(self) -> str: ...

    @property
    def image(self) -> np.ndarray | None: ...

    @property
    def audio(self) -> Waveform | None: ...


@dataclasses.dataclass(frozen=True)
class Answer:
    """A plain `Answered`."""

    text: str = ""
    image: np.ndarray | None = None
    audio: Waveform | None = None


def truth(record: Record) -> Answer:
    """The answer that the record itself holds."""
    content = record.messages[-1].content
    return Answer(
        content.replace(IMAGE_TAG, "").replace(AUDIO_TAG, "").strip(),
        record.images[-1] if IMAGE_TAG in content else None,
        record.audios[-1] if AUDIO_TAG in content else None,
    )


def _mean(values: Sequence[bool]) -> float:
    return float(np.mean(values))


def _expected(record: Record) -> Scene:
    scene = parse_caption(record.meta["caption"])
    assert scene is not None, record.meta["caption"]
    return scene


def exact(records: Sequence[Record], answers: Sequence[Answered]) -> Scores:
    """Share of answers whose words are the right ones."""
    pairs = zip(records, answers, strict=True)
    return {"value": _mean([normalize(answer.text) == normalize(record.meta["answer"]) for record, answer in pairs])}


def described(records: Sequence[Record], answers: Sequence[Answered]) -> Scores:
    """Share of captions that name exactly the scene's objects; beside it, those with the right background too."""
    pairs = [(_expected(r), parse_caption(a.text)) for r, a in zip(records, answers, strict=True)]
    objects = [found is not None and found.content() == scene.content() for scene, found in pairs]
    both = [
        o and found is not None and found.background == s.background
        for o, (s, found) in zip(objects, pairs, strict=True)
    ]
    return {"value": _mean(objects), "with_background": _mean(both)}


def drawn(records: Sequence[Record], answers: Sequence[Answered]) -> Scores:
    """Share of pictures that show exactly the scene's objects; beside it, those with the right background too."""
    pairs = [(_expected(r), _seen(a)) for r, a in zip(records, answers, strict=True)]
    objects = [found.content() == scene.content() for scene, found in pairs]
    both = [o and found.background == scene.background for o, (scene, found) in zip(objects, pairs, strict=True)]
    return {"value": _mean(objects), "with_background": _mean(both)}


def _seen(answer: Answered) -> Scene:
    return parse_scene(answer.image) if answer.image is not None else Scene((), "")


def inpainted(records: Sequence[Record], answers: Sequence[Answered]) -> Scores:
    """Share of pictures with the hidden object right and every known pixel as given; beside it, either alone."""
    right, untouched = [], []
    for record, answer in zip(records, answers, strict=True):
        place = record.meta["hidden"]
        right.append(str(_seen(answer).at(place)) == str(_expected(record).at(place)))
        untouched.append(answer.image is not None and _same_outside(record.images[-1], answer.image, place))
    both = [a and b for a, b in zip(right, untouched, strict=True)]
    return {"value": _mean(both), "hidden_object": _mean(right), "known_pixels": _mean(untouched)}


def _same_outside(given: np.ndarray, found: np.ndarray, place: str) -> bool:
    if given.shape != found.shape:
        return False
    known = np.ones(given.shape[:2], bool)
    known[place_box(place, len(given))] = False
    return bool((given[known] == found[known]).all())


def transcribed(records: Sequence[Record], answers: Sequence[Answered]) -> Scores:
    """Word error rate of the text."""
    return {"value": word_error_rate([r.meta["answer"] for r in records], [answer.text for answer in answers])}


def spoken(records: Sequence[Record], answers: Sequence[Answered]) -> Scores:
    """Word error rate of the speech, as pocketsphinx hears it; no speech is as wrong as silence."""
    heard = [listen(answer.audio) if answer.audio is not None else "" for answer in answers]
    return {"value": word_error_rate([record.meta["spoken"] for record in records], heard)}


def said(records: Sequence[Record], answers: Sequence[Answered]) -> Scores:
    """Share of right texts; beside it, the word error rate of the speech."""
    return exact(records, answers) | {"speech_wer": spoken(records, answers)["value"]}


@dataclasses.dataclass(frozen=True)
class Judge:
    """Attributes:
    name: for the scorecard.
    score: records and answers to "value", the task's metric, and what else there is to tell.
    """

    name: str
    score: Callable[[Sequence[Record], Sequence[Answered]], Scores]


JUDGES: Mapping[str, Judge] = {
    "text_qa": Judge("exact match", exact),
    "captioning": Judge("caption grammar", described),
    "vqa": Judge("exact match", exact),
    "t2i": Judge("scene parser", drawn),
    "asr": Judge("edit distance in words", transcribed),
    "tts": Judge("pocketsphinx", spoken),
    "spoken_qa": Judge("exact match; pocketsphinx", said),
    "s2i": Judge("scene parser", drawn),
    "spoken_vqa": Judge("exact match; pocketsphinx", said),
    "inpainting": Judge("scene parser", inpainted),
}


def ceiling(name: str, records: Sequence[Record]) -> Scores:
    """What the right answers score."""
    return JUDGES[name].score(records, [truth(record) for record in records])


def floor(name: str, records: Sequence[Record]) -> Scores:
    """What right answers to other records score; for inpainting, the object of another picture pasted into the hole."""
    answers = [truth(record) for record in records]
    answers = answers[1:] + answers[:1]
    if name == "inpainting":
        others = list(records[1:]) + list(records[:1])
        answers = [_pasted(record, other) for record, other in zip(records, others, strict=True)]
    return JUDGES[name].score(records, answers)


def _pasted(record: Record, other: Record) -> Answer:
    image = record.images[-1].copy()
    image[place_box(record.meta["hidden"], len(image))] = other.images[-1][place_box(other.meta["hidden"], len(image))]
    return Answer(image=image)
