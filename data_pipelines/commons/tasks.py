"""Commons as training and test records of every task.

A record is a function of (task, index, split) and of the folders it is read from. Splits:

- "train": things that are learned, in the learned style, voices that are learned.
- "test": the same things and style in renderings never learned from; what is heard, in voices never learned from.
- "style": as "test", but pictures in the other style.
- "concepts": as "test", of things that are never learned.

`meta` holds plain values for the judges: "task", "split", "index"; "thing", "style", and its "category" where it is to
be drawn; the "request" in writing; "answer" and what is "accepted" as one; the "kind" of question; "spoken", "heard"
and "voice" of speech.
"""

from collections.abc import Callable

import numpy as np

from data_pipelines.commons import heard
from data_pipelines.commons.maker import SPLITS, Maker
from data_pipelines.commons.pictures import SIZE
from data_pipelines.commons.questions import (
    DRAWING,
    READ_KINDS,
    accepted_names,
    pick,
    seen_question,
    told_question,
)
from data_pipelines.commons.speech import Clips
from data_pipelines.commons.things import Thing, World
from data_pipelines.scenes.scene import MAX_INDEX, generator
from omnidiff_jax.config import choose
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import Record, stable_id
from omnidiff_jax.tasks.registry import task

# Of what records hold; data built by one version is not mixed with another's.
VERSION = 2
# Requests to draw that tell what a thing is, not what it is called, where that is known.
_DESCRIBED = 0.3


def _text_qa(maker: Maker) -> Record:
    question = told_question(maker.rng, maker.things, READ_KINDS)
    request = question.sentence.text
    return maker.record(
        task("text_qa").conversation(request, question.answer), meta={"request": request} | maker.answered(question)
    )


def _captioning(maker: Maker) -> Record:
    thing = pick(maker.rng, maker.things)
    request = task("captioning").default_text
    meta = {"request": request, "answer": thing.one, "accepted": accepted_names(thing), "thing": thing.name}
    return maker.record(task("captioning").conversation(request, thing.one), (maker.shown(thing),), meta=meta)


def _vqa(maker: Maker) -> Record:
    question = seen_question(maker.rng, maker.pool)
    request = question.sentence.text
    return maker.record(
        task("vqa").conversation(request, question.answer),
        (maker.shown(question.shown),),
        meta={"request": request} | maker.answered(question),
    )


def _request(rng: np.random.Generator, thing: Thing) -> str:
    """A drawing asked for in writing: by its name, or by what it is."""
    if thing.description and rng.random() < _DESCRIBED:
        return thing.description
    wording = pick(rng, ("", "", *DRAWING))
    return thing.name if not wording and rng.random() < 0.5 else f"{wording} {thing.one}".strip()


def _t2i(maker: Maker) -> Record:
    thing = pick(maker.rng, maker.things)
    request = _request(maker.rng, thing)
    return maker.record(
        task("t2i").conversation(request), (maker.drawn(thing),), meta={"request": request} | maker.pictured(thing)
    )


def _inpainting(maker: Maker) -> Record:
    """A drawing by its name, of which a quadrant is to be painted and the rest is given."""
    thing = pick(maker.rng, maker.things)
    half = SIZE // 2
    top, left = (int(place) * half for place in maker.rng.integers(2, size=2))
    hole = np.zeros((SIZE, SIZE), bool)
    hole[top : top + half, left : left + half] = True
    meta = {"request": thing.one} | maker.pictured(thing)
    return maker.record(task("inpainting").conversation(thing.one), (maker.drawn(thing),), hole=hole, meta=meta)


_MAKERS: dict[str, Callable[[Maker], Record]] = {
    "text_qa": _text_qa,
    "captioning": _captioning,
    "vqa": _vqa,
    "t2i": _t2i,
    "inpainting": _inpainting,
    **heard.MAKERS,
}
TASKS = tuple(_MAKERS)
SPOKEN = tuple(heard.MAKERS)
PICTURED = ("captioning", "vqa", "t2i", "inpainting", "s2i", "spoken_vqa")
# Tasks that show a picture to be looked at: the others have no other style.
_LOOKED_AT = ("captioning", "vqa", "spoken_vqa")


def check(name: str, split: str) -> None:
    """Refuses a task and split that do not go together.

    Raises:
        UserError: no such task or split, or the split has no meaning for the task.
    """
    choose(_MAKERS, name, "Commons task")
    choose(dict.fromkeys(SPLITS), split, "Commons split")
    if split == "style" and name not in _LOOKED_AT:
        raise UserError(f"split 'style' of Commons has no {name}: it is for {', '.join(_LOOKED_AT)}")


def make_record(world: World, name: str, index: int, split: str, clips: Clips | None = None) -> Record:
    """Record number `index` of a task and split: images uint8 [64, 64, 3], audios as they were spoken.

    Args:
        world: whose things it is about.
        name: of the task, one of TASKS.
        index: 0 <= index < 2**32.
        split: one of SPLITS.
        clips: what was spoken; needed for the tasks of SPOKEN.

    Raises:
        UserError: no such task or split, or a file is missing.
        ValueError: index out of range.
        RejectedRecord: a clip of it did not pass.
    """
    check(name, split)
    if not 0 <= index < MAX_INDEX:
        raise ValueError(f"index {index} is not in 0..{MAX_INDEX - 1}")
    rng = generator("commons", name, split, index)
    record = _MAKERS[name](Maker(world, name, split, rng, stable_id("commons", name, split, index), clips))
    record.meta.update(task=name, split=split, index=index)
    return record


class CommonsRecords:
    """A random-access source: `size` records of one task and split from `start` on."""

    def __init__(self, world: World, name: str, split: str, size: int, clips: Clips | None = None, start: int = 0):
        """Args as `make_record`'s; start + size must stay within its range of indices.

        Raises:
            UserError: as `check`.
        """
        check(name, split)
        self.world, self.name, self.split, self.size, self.clips, self.start = world, name, split, size, clips, start

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.size:
            raise IndexError(f"record {index} of {self.size} {self.split} records of {self.name}")
        return make_record(self.world, self.name, self.start + index, self.split, self.clips)
