"""A benchmark in stages, each of which goes on where it was stopped: generate, judge, score.

A stage leaves one JSON line a sample, keyed by split and name, in files of their own for every process; whoever goes on
reads all of them, so that the number of processes may change. Answers are keyed by sample too (`Item.request`), and
scoring goes by the order of the data, so that neither decides what the score is. As the processes of one mesh they all
ask the same batches, and the first writes them down; what is judged (`judging.py`) is shared out among them.
"""

import contextlib
import dataclasses
import json
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar
from typing import Protocol as Interface

import numpy as np

from omnidiff_jax.answering.queries import Request, Response
from omnidiff_jax.errors import UserError, notice
from omnidiff_jax.evaluation.benchmark import Answered, Item, Protocol
from omnidiff_jax.evaluation.exam import named
from omnidiff_jax.evaluation.lines import UNREADABLE, Key, LineWriter, read_lines
from omnidiff_jax.evaluation.places import Place
from omnidiff_jax.media.audio import wav_bytes
from omnidiff_jax.media.image import png_bytes
from omnidiff_jax.progress import Progress
from omnidiff_jax.sharding.distributed import by_all, by_the_first, is_primary
from omnidiff_jax.tasks.registry import Decoding, Task, task

T = TypeVar("T")
ANSWERS, REFERENCES = "answers", "references"
# Share of the items, or of the references, that may be unreadable.
SPARED = 0.01
# References that a judge's ceiling is measured on.
CEILING = 200


class Answers(Interface):
    """A model under the protocol's settings, such as a `Generator`."""

    def __call__(self, task: Task, requests: Sequence[Request]) -> Sequence[Response]: ...

    def bounds(
        self, task: Task, requests: Sequence[Request], answers: Sequence[Sequence[str]], draws: int
    ) -> list[np.ndarray]: ...

    def decoding(self, task: Task) -> Decoding: ...

    def check(self, task: Task, request: Request) -> None: ...


@dataclasses.dataclass(frozen=True)
class Share:
    """Which samples a process takes: those whose name falls to it, whatever is done already.

    Attributes:
        number: of the process, from 0.
        of: how many there are.
    """

    number: int = 0
    of: int = 1

    def takes(self, key: Key) -> bool:
        """Whether the sample is this process's."""
        return zlib.crc32("\0".join(key).encode()) % self.of == self.number

    def __str__(self) -> str:
        return f"{self.number}-of-{self.of}"


def open_run(place: Place, told: Mapping[str, Any], file: str = "run.json") -> None:
    """Says once whose answers a folder holds; they are never mixed with those of another.

    Args:
        place: of one exam under one protocol.
        told: model, data, protocol, settings: JSON.
        file: that says it.

    Raises:
        UserError: the folder is of another model, of other data or settings.
    """
    content = place.read(file)
    if content is None:
        place.write(file, (json.dumps(told, indent=1, sort_keys=True) + "\n").encode())
        return
    before = read_told(place, file)
    for name, value in json.loads(json.dumps(told)).items():
        if before.get(name) != value:
            raise UserError(
                f"{place} holds answers of another {name} ({_short(before.get(name))}, now {_short(value)}); name "
                "another --out, or remove it"
            )


def read_told(place: Place, file: str) -> dict[str, Any]:
    """What `open_run` said; {} where it said nothing.

    Raises:
        UserError: the file is damaged.
    """
    try:
        found = json.loads(place.read(file) or b"{}")
    except ValueError as error:
        raise UserError(f"{place}/{file} is damaged ({error}); name another --out, or remove {place}") from error
    return found if isinstance(found, dict) else {}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def generate(
    exam: str, items: Sequence[Item], protocol: Protocol, model: Answers, place: Place, share: Share, rows: int
) -> int:
    """Asks what has no answer yet and is this process's; pictures and speech are kept in `media/` of the place.

    Args:
        exam: its name, which noise is keyed by.
        rows: samples whose media are in memory and that are asked together.

    Returns:
        how many were passed over: a medium of theirs cannot be read, or they are more than the model takes.

    Raises:
        UserError: more than one in a hundred cannot be read.
    """
    waiting = left_of(items, place, share)
    unreadable: list[str] = []
    unasked: list[str] = []
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(LineWriter(place, ANSWERS, str(share))) if is_primary() else None
        progress = stack.enter_context(Progress(len(waiting), label=exam)) if lines else None
        for start, batch in _alike(waiting, rows):
            asked = _read_media(exam, batch, unreadable, len(items))
            try:
                answers = _answered(asked, protocol, model, place)
            except UserError:
                # One by one only now: it costs the encoding of all media again.
                kept = _askable(asked, model, unasked)
                if len(kept) == len(asked):
                    raise
                answers = _answered(kept, protocol, model, place)
            if lines and progress:
                for item, answer in answers:
                    lines.add(item.key, answer)
                lines.flush()
                progress.update(start + len(batch))
    for what, those in (("cannot be read", unreadable), ("are more than the model takes", unasked)):
        if those:
            notice(f"{exam}: {len(those)} items {what} and are passed over; {named(those)}")
    return len(unreadable) + len(unasked)


def left_of(items: Sequence[Item], place: Place, share: Share) -> list[Item]:
    """The items of a share that have no answer yet, as the first process sees it: the same on all of a mesh."""
    done = read_lines(place, ANSWERS)
    left = by_the_first([item.key not in done and share.takes(item.key) for item in items])
    return [item for item, wanted in zip(items, left, strict=True) if wanted]


def _read_media(exam: str, batch: Sequence[Item], unreadable: list[str], of: int) -> "Asked":
    """The batch without what a process cannot read, which is added to `unreadable`."""
    requests: list[Request | None] = []
    faults: dict[int, str] = {}
    for number, item in enumerate(batch):
        try:
            requests.append(item.request(exam))
        except UserError as error:
            requests.append(None)
            faults[number] = str(error)
    there = by_all([request is not None for request in requests])
    for number in np.flatnonzero(~there).tolist():
        unreadable.append(f"{batch[number].where}: {faults.get(number, 'cannot be read by another process')}")
        spare(exam, "items", unreadable, of)
    both = zip(batch, requests, there, strict=True)
    return [(item, request) for item, request, all_have in both if request is not None and all_have]


def spare(exam: str, what: str, unreadable: Sequence[str], of: int) -> None:
    """Raises where more cannot be read than is passed over."""
    if len(unreadable) > max(SPARED * of, 1):
        raise UserError(
            f"{exam}: {len(unreadable)} of {of} {what} cannot be read; the last: {unreadable[-1]}; copy the data again"
        )


Asked = Sequence[tuple[Item, Request]]


def _askable(asked: Asked, model: Answers, unasked: list[str]) -> Asked:
    """The batch without what the model refuses, which is added to `unasked`."""
    kept = []
    for item, request in asked:
        try:
            model.check(task(item.task), request)
            kept.append((item, request))
        except UserError as error:
            unasked.append(f"{item.where}: {error}")
    return kept


def _alike(items: Sequence[Item], rows: int) -> Iterator[tuple[int, Sequence[Item]]]:
    """(place, items) of batches of one task."""
    start = 0
    while start < len(items):
        stop = start + 1
        while stop < min(start + rows, len(items)) and items[stop].task == items[start].task:
            stop += 1
        yield start, items[start:stop]
        start = stop


def _answered(asked: Asked, protocol: Protocol, model: Answers, place: Place) -> list[tuple[Item, dict[str, Any]]]:
    if not asked:
        return []
    chosen, began = task(asked[0][0].task), time.perf_counter()
    ranked = [pair for pair in asked if protocol.draws and pair[0].truth.get("options")]
    generated = [pair for pair in asked if not (protocol.draws and pair[0].truth.get("options"))]
    bounds = (
        model.bounds(chosen, [r for _, r in ranked], [item.truth["options"] for item, _ in ranked], protocol.draws)
        if ranked
        else []
    )
    responses = model(chosen, [request for _, request in generated]) if generated else []
    seconds = (time.perf_counter() - began) / len(asked)
    found: list[tuple[Item, dict[str, Any]]] = []
    for (item, _), costs in zip(ranked, bounds, strict=True):
        found.append((item, {"text": "", "bounds": np.asarray(costs).tolist(), "seconds": seconds}))
    for (item, _), response in zip(generated, responses, strict=True):
        told = {"text": response.text, "finish": response.finish, "steps": response.steps, "seconds": seconds}
        found.append((item, told | _kept(item, response, place)))
    return found


def _kept(item: Item, response: Response, place: Place) -> dict[str, str]:
    """The media of an answer, written under names that no other item has."""
    if not is_primary():
        return {}
    stem = f"media/{zlib.crc32(item.split.encode()):08x}-{zlib.crc32(item.name.encode()):08x}-{_plain(item.name)}"
    kept = {}
    if response.audio is not None:
        kept["speech"] = f"{stem}.wav"
        place.write(kept["speech"], wav_bytes(response.audio))
    if response.image is not None:
        kept["picture"] = f"{stem}.png"
        place.write(kept["picture"], png_bytes(response.image))
    return kept


def _plain(name: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)[:60]


@dataclasses.dataclass(frozen=True)
class Gathered:
    """What the stages left of an exam, in the order of its items.

    Attributes:
        answered: the items with their answers and what judges say of them.
        truths: items with the right answers in place of the model's: what the judge's ceiling is.
        others: each item with the answer to another one: what its floor is.
        unreadable: items whose reference cannot be read; not in `answered` where the score needs it.
    """

    answered: tuple[Answered, ...]
    truths: tuple[Answered, ...]
    others: tuple[Answered, ...]
    unreadable: int = 0


def references(items: Sequence[Item]) -> list[Item]:
    """The items whose real recording or picture a judge's ceiling is measured on."""
    return [item for item in items if item.reference is not None][:CEILING]


def gather(items: Sequence[Item], protocol: Protocol, place: Place, judge: str = "") -> Gathered:
    """Reads the lines of all processes.

    Args:
        judge: name of the judge whose lines are read.

    Raises:
        UserError: there are no answers, or answers or references that the judge did not read yet.
    """
    answers = read_lines(place, ANSWERS)
    stem = {"speech": f"heard-{judge}", "picture": f"seen-{judge}"}.get(protocol.judge, "")
    judged = read_lines(place, stem) if stem else {}
    real = read_lines(place, f"{REFERENCES}-{stem}") if stem else {}
    there = [item for item in items if item.key in answers]
    if not there:
        raise UserError(f"{place} holds no answers to be scored; generate them first")
    if stem and (left := [item for item in there if item.key not in judged]):
        raise UserError(f"{place}: {len(left)} of {len(there)} answers are not judged yet ({left[0].where})")
    # A ceiling of some of its recordings would be another one than that of a judge who was not stopped.
    wanted = references(items) if stem else []
    if left := [item for item in wanted if item.key not in real]:
        raise UserError(f"{place}: {len(left)} of {len(wanted)} references are not judged yet ({left[0].where})")
    unreadable = {item.key for item in items for lines in (judged, real) if UNREADABLE in lines.get(item.key, {})}
    there = [item for item in there if UNREADABLE not in judged.get(item.key, {})]
    answered = [Answered(item, answers[item.key], judged.get(item.key, {})) for item in there]
    # Not turned by half: what alternates, as yes and no do, would meet its like.
    turned = [answered[i] for i in np.random.default_rng(0).permutation(len(answered))]
    if protocol.judge:
        truths = [
            Answered(item, _real(item), real[item.key])
            for item in there
            if item.key in real and item.key not in unreadable
        ]
    else:
        truths = [Answered(item, {"text": str(item.truth["answer"])}) for item in there]
    others = [_swapped(one, other, protocol) for one, other in zip(answered, turned, strict=True)]
    return Gathered(tuple(answered), tuple(truths), tuple(one for one in others if one is not None), len(unreadable))


def _real(item: Item) -> dict[str, str]:
    return {"speech": "reference", "picture": "reference", "text": str(item.truth["answer"])}


def _swapped(one: Answered, other: Answered, protocol: Protocol) -> Answered | None:
    """An item with the answer to another one; None where the other's picture cannot be read."""
    if protocol.judge != "picture":
        return Answered(one.item, other.answer, other.judged)
    if one.judged and "floor_t" not in one.judged:
        return None
    floor = {"clip_t": one.judged.get("floor_t", 0.0), "clip_i": one.judged.get("floor_i", 0.0)}
    return Answered(one.item, one.answer, floor)
