"""What judges say of a benchmark's answers, and of what is real: the stage between generating and scoring."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from typing import Protocol as Interface

import numpy as np

from omnidiff_jax.answering.media import to_audio, to_image
from omnidiff_jax.errors import UserError, notice
from omnidiff_jax.evaluation.benchmark import Item
from omnidiff_jax.evaluation.exam import named
from omnidiff_jax.evaluation.lines import UNREADABLE, LineWriter, read_lines
from omnidiff_jax.evaluation.places import Place
from omnidiff_jax.evaluation.stages import ANSWERS, REFERENCES, Share, references, spare
from omnidiff_jax.progress import Progress
from omnidiff_jax.records import Waveform

T = TypeVar("T")
# Judged answers that a kill may lose in a bucket.
_TOGETHER = 64


class SpeechJudge(Interface):
    """Hears what was said; `name` tells it from every other judge."""

    name: str

    def hear(self, speech: Waveform) -> str: ...


class PictureJudge(Interface):
    """Puts pictures and texts into one space, vectors of length 1; `name` tells it from every other judge."""

    name: str

    def of_text(self, text: str) -> np.ndarray: ...

    def of_picture(self, picture: np.ndarray) -> np.ndarray: ...


def judge_speech(items: Sequence[Item], judge: SpeechJudge, place: Place, share: Share) -> None:
    """Hears the answers that were not heard yet, and real recordings for the judge's ceiling.

    Raises:
        UserError: an answer's speech is gone, or more than one in a hundred real recordings cannot be read.
    """
    answers, stem = read_lines(place, ANSWERS), f"heard-{judge.name}"

    def answer(item: Item, other: Item) -> dict[str, Any]:
        speech = answers[item.key].get("speech")
        return {"heard": judge.hear(to_audio(_medium(place, speech))) if speech else ""}

    _each(items, [item for item in items if item.key in answers], stem, answer, place, share)
    real = references(items)

    def recording(item: Item, other: Item) -> dict[str, Any]:
        return {"heard": judge.hear(_reference(item, to_audio))}

    _each(real, real, f"{REFERENCES}-{stem}", recording, place, share)


def judge_pictures(items: Sequence[Item], judge: PictureJudge, place: Place, share: Share) -> None:
    """Sees the pictures that were not seen yet, beside their captions, the real pictures, and those of another item.

    Raises:
        UserError: an answer's picture is gone, or more than one in a hundred real pictures cannot be read.
    """
    answers, stem = read_lines(place, ANSWERS), f"seen-{judge.name}"

    def answer(item: Item, other: Item) -> dict[str, Any]:
        picture = answers[item.key].get("picture")
        return _seen(judge, to_image(_medium(place, picture)), item, other) if picture else {}

    _each(items, [item for item in items if item.key in answers], stem, answer, place, share)
    real = references(items)

    def photograph(item: Item, other: Item) -> dict[str, Any]:
        return _seen(judge, _reference(item, to_image), item, other)

    _each(real, real, f"{REFERENCES}-{stem}", photograph, place, share)


def _medium(place: Place, name: str) -> bytes:
    content = place.read(name)
    if content is None:
        raise UserError(f"{place}/{name} is gone, which its answer's line names; remove that line to have it answered")
    return content


class _Unreadable(UserError):
    """A reference that cannot be read, which is not the end of a stage."""


def _reference(item: Item, decoded: Callable[[bytes], T]) -> T:
    assert item.reference is not None
    try:
        return decoded(item.reference.read())
    except UserError as error:
        raise _Unreadable(str(error)) from error


def _seen(judge: PictureJudge, picture: np.ndarray, item: Item, other: Item) -> dict[str, Any]:
    vector = judge.of_picture(picture)
    seen = {"clip_t": float(vector @ judge.of_text(str(item.truth["answer"])))}
    if item.reference is not None:
        seen["clip_i"] = float(vector @ judge.of_picture(_reference(item, to_image)))
    with contextlib.suppress(_Unreadable):
        floor = {"floor_t": float(vector @ judge.of_text(str(other.truth["answer"])))}
        if other.reference is not None:
            floor["floor_i"] = float(vector @ judge.of_picture(_reference(other, to_image)))
        seen |= floor
    return seen


def _each(
    items: Sequence[Item],
    wanted: Sequence[Item],
    stem: str,
    judged: Callable[[Item, Item], dict[str, Any]],
    place: Place,
    share: Share,
) -> None:
    """Judges what is wanted, not judged yet and this process's; `judged` is also given the item half a turn away.

    What cannot be read gets a line that says so, and is tried again by the next run.
    """
    done = read_lines(place, stem)
    others = {item.key: items[(i + max(len(items) // 2, 1)) % len(items)] for i, item in enumerate(items)}
    waiting = [item for item in wanted if UNREADABLE in done.get(item.key, {UNREADABLE: ""}) and share.takes(item.key)]
    unreadable: list[str] = []
    with LineWriter(place, stem, str(share)) as lines, Progress(len(waiting), label=stem) as progress:
        for number, item in enumerate(waiting, start=1):
            try:
                lines.add(item.key, judged(item, others[item.key]))
            except _Unreadable as error:
                unreadable.append(f"{item.where}: {error}")
                spare(stem, "references", unreadable, len(wanted))
                if item.key not in done:
                    lines.add(item.key, {UNREADABLE: str(error)})
            if number % _TOGETHER == 0:
                lines.flush()
            progress.update(number)
    if unreadable:
        notice(f"{stem}: {len(unreadable)} references cannot be read and are passed over; {named(unreadable)}")
