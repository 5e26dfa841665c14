"""A server whose engines answer without a model, and clients in its own process: a request costs what the server does.

All else is what `omnidiff serve` runs: bodies and media are read, canvases written, answers read off them.
"""

import asyncio
import collections
import dataclasses
import time
from typing import Any

import numpy as np
from starlette.types import ASGIApp, Message

from omnidiff_jax.answering.engine import Counts, Done, Work
from omnidiff_jax.answering.generator import Generator
from omnidiff_jax.answering.lanes import Lane
from omnidiff_jax.answering.model import Model
from omnidiff_jax.sampling.results import SampleResult
from omnidiff_jax.serving.limits import Limits
from omnidiff_jax.serving.remote import Trusted
from omnidiff_jax.serving.scheduler import Scheduler
from omnidiff_jax.serving.service import Service

# Calls of the model that an answer is said to take.
STEPS = 3


@dataclasses.dataclass
class _Slot:
    number: int
    work: Work
    tokens: np.ndarray
    commit_step: np.ndarray
    steps: int = 0


class ScriptedEngine:
    """Stands where an `answering.engine.Engine` does; every mask becomes the first code that may stand there."""

    def __init__(self, lane: Lane, generator: Generator, pause: float):
        """An engine without requests; a step of it takes `pause` seconds."""
        vocabulary = generator.codecs.layout.vocabulary
        self._lane, self._mask, self._pause = lane, vocabulary.mask, pause
        table = generator.forms.sets.table
        firsts = [vocabulary.speech.start, vocabulary.image.start]
        self._first = np.select([table[:, first] for first in firsts], firsts, table.argmax(axis=1)).astype(np.int32)
        self._slots = generator.rows
        self._queue: collections.deque[tuple[int, Work]] = collections.deque()
        self._held: list[_Slot] = []
        self._next = 0
        self.counts = Counts()

    def submit(self, work: Work) -> int:
        self._queue.append((self._next, work))
        self._next += 1
        return self._next - 1

    def cancel(self, number: int) -> bool:
        before = len(self._queue) + len(self._held)
        self._queue = collections.deque(item for item in self._queue if item[0] != number)
        self._held = [slot for slot in self._held if slot.number != number]
        return len(self._queue) + len(self._held) < before

    def look(self, number: int) -> tuple[np.ndarray, int] | None:
        return next(((slot.tokens.copy(), slot.steps) for slot in self._held if slot.number == number), None)

    @property
    def at_work(self) -> set[int]:
        return {slot.number for slot in self._held}

    def serve(self, limit: int | None = None) -> list[Done]:
        while self._queue and len(self._held) < self._slots:
            self._held.append(self._laid_out(*self._queue.popleft()))
        if not self._held:
            return []
        for _ in range(min(limit or STEPS, STEPS)):
            time.sleep(self._pause)
            self.counts.steps += 1
            self.counts.slots += self._slots
            self.counts.busy += len(self._held)
            for slot in self._held:
                self._step(slot)
        done = [slot for slot in self._held if slot.steps >= STEPS]
        self._held = [slot for slot in self._held if slot.steps < STEPS]
        return [Done(slot.number, self._result(slot), 0.0, 0.0) for slot in done]

    def _laid_out(self, number: int, work: Work) -> _Slot:
        tokens = np.zeros(self._lane.length, np.int32)
        whole = np.concatenate([work.prompt.tokens, work.answer.tokens])
        tokens[: len(whole)] = whole
        return _Slot(number, work, tokens, np.full(len(tokens), -1, np.int32))

    def _step(self, slot: _Slot) -> None:
        """Reveals an even share of what is masked, from the left."""
        if slot.steps >= STEPS:
            return
        start = len(slot.work.prompt.tokens)
        answer = slot.tokens[start : start + len(slot.work.answer)]
        masked = np.flatnonzero(answer == self._mask)
        chosen = masked[: -(-len(masked) // (STEPS - slot.steps))]
        answer[chosen] = self._first[slot.work.answer.groups[chosen]]
        slot.commit_step[start + chosen] = slot.steps
        slot.steps += 1

    def _result(self, slot: _Slot) -> SampleResult:
        confidence, committed = np.ones(len(slot.tokens), np.float32), np.ones(STEPS, np.int32)
        return SampleResult(slot.tokens, np.int32(slot.steps), slot.commit_step, confidence, committed)  # type: ignore[arg-type]


class _ScriptedGenerator:
    """A generator that opens scripted engines."""

    def __init__(self, generator: Generator, pause: float):
        self._generator, self._pause = generator, pause

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def open(self, lane: Lane) -> ScriptedEngine:
        return ScriptedEngine(lane, self._generator, self._pause)


def scripted_service(model: Model, name: str, limits: Limits, *, key: str = "", pause: float = 0.0) -> Service:
    """A ready service of a model that is never called; `service.scheduler.close` ends it.

    Args:
        pause: seconds that a step takes.
    """
    scheduler = Scheduler(_ScriptedGenerator(model.generator, pause), limits)  # type: ignore[arg-type]
    return Service(model, name, limits, scheduler, Trusted(), key, ready=True)


@dataclasses.dataclass(frozen=True)
class Sent:
    """A request as it arrives.

    Attributes:
        method, path: as the first line has them, the path decoded and without a query.
        headers: names in small letters, and values.
        pieces: of the body.
        cut: whether the client leaves before the body's end.
    """

    method: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    pieces: tuple[bytes, ...] = (b"",)
    cut: bool = False


@dataclasses.dataclass
class Got:
    """A response: status 0 where nothing came."""

    status: int = 0
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""
    whole: bool = False


async def ask(app: ASGIApp, sent: Sent, leaves: float | None = None) -> Got:
    """Asks an application as a server of its protocol would; what it raises is raised here.

    Args:
        leaves: seconds after which the client is gone, answered or not.
    """
    got, gone, left = Got(), asyncio.Event(), collections.deque(sent.pieces or (b"",))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": sent.method,
        "path": sent.path,
        "raw_path": sent.path.encode("utf-8", "replace"),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"fuzz"), *sent.headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }

    async def receive() -> Message:
        if left and not gone.is_set():
            piece = left.popleft()
            return {"type": "http.request", "body": piece, "more_body": bool(left) or sent.cut}
        if not sent.cut:
            await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            got.status = message["status"]
            got.headers = {name.decode().lower(): value.decode("latin-1") for name, value in message["headers"]}
            return
        got.body += message.get("body", b"")
        if not message.get("more_body", False):
            got.whole = True
            gone.set()

    if leaves is not None:
        asyncio.get_running_loop().call_later(leaves, gone.set)
    await app(scope, receive, send)
    return got
