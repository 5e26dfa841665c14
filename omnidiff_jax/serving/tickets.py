"""One request on its way through the server, and what comes of it."""

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from omnidiff_jax.answering.engine import Work
from omnidiff_jax.answering.lanes import Lane
from omnidiff_jax.answering.queries import Query, Response

# Where a request is: being written as a canvas, in a queue, in a slot, or its answer being read.
STAGES = ("writing", "waiting", "running", "reading")


@dataclasses.dataclass(frozen=True)
class Partial:
    """An answer between two steps.

    Attributes:
        step: calls of the model so far.
        tokens: int32 [n], the answer's part of the canvas, masks and all.
    """

    step: int
    tokens: np.ndarray


@dataclasses.dataclass(frozen=True)
class Answered:
    """An answer, and what it took.

    Attributes:
        response: the answer in its media.
        prompt: positions of what was given.
        filled: positions that were generated.
        waited: seconds in the queue.
        seconds: from submission to the answer.
        note: what the client should know of its request, or "".
    """

    response: Response
    prompt: int
    filled: int
    waited: float
    seconds: float
    note: str = ""


class Ticket:
    """A request that was taken on.

    Attributes:
        query: what is asked.
        watch: called with every `Partial` from the scheduler's thread, the last one as it was answered; must return at
            once. None where nobody looks.
        future: of the `Answered`.
        begun: when it was taken on (`time.perf_counter`).
        stage: one of `STAGES`, or "" once it is over; the scheduler's.
        cancelled: whether it was taken back.
        work, lane, number: as written, where it goes, and what its engine calls it.
        seated: seconds until it was in its engine's queue.
        note: of its query.
    """

    def __init__(self, query: Query, watch: Callable[[Partial], None] | None):
        self.query, self.watch = query, watch
        self.future: Future[Answered] = Future()
        self.begun = time.perf_counter()
        self.stage = ""
        self.cancelled = False
        self.work: Work | None = None
        self.lane: Lane | None = None
        self.number: int | None = None
        self.seated = 0.0
        self.note = ""
