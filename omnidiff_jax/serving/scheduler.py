"""The thread that owns the engines: requests of all tasks join, are seen, answered and taken back between steps.

Writing a request as a canvas, reading its answer (detokenizer, vocoder) and compiling a new lane happen in other
threads, so that nobody's steps wait for them.
"""

import collections
import contextlib
import dataclasses
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import InvalidStateError, ThreadPoolExecutor
from typing import Any

import numpy as np

from omnidiff_jax.answering.engine import Counts, Done, Engine, Work, forget_programs, suits
from omnidiff_jax.answering.generator import Generator
from omnidiff_jax.answering.lanes import Lane
from omnidiff_jax.answering.queries import Query, Response
from omnidiff_jax.serving.failures import Failure, failure_of
from omnidiff_jax.serving.limits import Limits
from omnidiff_jax.serving.metrics import Metrics
from omnidiff_jax.serving.tickets import Answered, Partial, Ticket

# Steps between two looks at what came in, where nobody watches a canvas.
_PACE = 4
_WORKERS = 4


@dataclasses.dataclass
class _Open:
    """A lane: its engine, None while it is being compiled, and who is in it or waits for it.

    A step costs what it costs however few are in it, so lanes take steps in proportion to their requests: `turn` counts
    steps by the request, and who has had least is next.
    """

    engine: Engine | None = None
    tickets: dict[int, Ticket] = dataclasses.field(default_factory=dict)
    arrived: list[Ticket] = dataclasses.field(default_factory=list)
    used: float = 0.0
    turn: float = 0.0

    @property
    def idle(self) -> bool:
        return self.engine is not None and not self.tickets and not self.arrived


class Scheduler:
    """Answers queries of one model, many at once.

    Attributes:
        metrics: what it did.
    """

    def __init__(self, generator: Generator, limits: Limits):
        """Starts the threads; `close` ends them."""
        self._generator, self._limits = generator, limits
        self._lock = threading.Condition()
        self._inbox: list[Callable[[], None]] = []
        self._stages: collections.Counter[str] = collections.Counter()
        self._lanes: dict[Lane, _Open] = {}
        self._turn = 0.0
        self._closed = self._ended = False
        self._recent: collections.deque[float] = collections.deque(maxlen=64)
        self.metrics = Metrics(self.count, lambda: len(self._lanes))
        self._workers = ThreadPoolExecutor(_WORKERS, "omnidiff-media")
        self._compiler = ThreadPoolExecutor(1, "omnidiff-compile")
        self._alone = ThreadPoolExecutor(1, "omnidiff-alone")
        self._thread = threading.Thread(target=self._run, name="omnidiff-steps", daemon=True)
        self._thread.start()

    def count(self, stage: str) -> int:
        """Requests at a stage."""
        return self._stages[stage]

    @property
    def open(self) -> int:
        """Requests that are not over."""
        return sum(self._stages.values())

    @property
    def alive(self) -> bool:
        """Whether the thread of the steps runs."""
        return self._thread.is_alive()

    def submit(self, query: Query, watch: Callable[[Partial], None] | None = None) -> Ticket:
        """Takes a request on.

        Args:
            query: what is asked.
            watch: see `Ticket`.

        Raises:
            Failure: 429, as many wait as may; 503, the server is closing.
        """
        ticket = Ticket(query, watch)
        with self._lock:
            if self._closed:
                raise Failure("the server is shutting down; ask again elsewhere", status=503, code="closing")
            waiting = self._stages["writing"] + self._stages["waiting"]
            if waiting >= self._limits.queue:
                raise self._full(waiting)
            self._move(ticket, "writing")
        self._workers.submit(self._pooled, self._write, ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Takes a request back, wherever it is; nothing if it is over."""
        if not ticket.stage:
            return
        ticket.cancelled = True
        ticket.future.cancel()
        self._tell(lambda: self._drop(ticket))

    def warm(self, query: Query) -> None:
        """Compiles all that a query like this one needs, on canvases of every length that it fits."""
        if not suits(query.decoding.sampler):
            self._generator.decode([query])
            return
        work = self._generator.write(query)
        for lane in self._generator.lanes(work):
            if lane not in self._lanes:
                engine = self._compile(lane, work)
                self._tell(lambda lane=lane, engine=engine: self._opened(lane, engine))  # type: ignore[misc]
        self.submit(query).future.result()

    def close(self, patience: float) -> bool:
        """Takes nothing on any more, waits for what is under way, and ends; whether all of it was answered."""
        with self._lock:
            self._closed = True
        until = time.monotonic() + patience
        while self.open and time.monotonic() < until:
            time.sleep(0.02)
        answered = not self.open
        with self._lock:
            self._ended = True
            self._lock.notify()
        self._thread.join()
        for pool in (self._workers, self._compiler, self._alone):
            pool.shutdown(wait=False, cancel_futures=True)
        return answered

    def _full(self, waiting: int) -> Failure:
        each = np.mean(self._recent) if self._recent else 1.0
        wait = max(1, round(float(each) * waiting / max(self._generator.rows, 1)))
        return Failure(
            f"{waiting} requests wait already, as many as may; ask again in {wait} s",
            status=429,
            code="queue_full",
            headers={"Retry-After": str(min(wait, 60))},
        )

    # In the pools.

    def _pooled(self, part: Callable[..., None], ticket: Ticket, *others: Any) -> None:
        """Does a part of a request's way; one that was taken back ends here, as one does that goes wrong."""
        if ticket.cancelled:
            self._end(ticket)
            return
        try:
            part(ticket, *others)
        except Exception as error:
            self._fail(ticket, error)

    def _write(self, ticket: Ticket) -> None:
        ticket.note = ticket.query.check_taught(self._generator.codecs.layout.text)
        ticket.work = self._generator.write(ticket.query)
        if suits(ticket.query.decoding.sampler):
            ticket.lane = self._generator.lanes(ticket.work)[0]
            self._tell(lambda: self._arrive(ticket))
        else:
            self._stage(ticket, "waiting")
            self._alone.submit(self._pooled, self._answer_alone, ticket)

    def _answer_alone(self, ticket: Ticket) -> None:
        """What no engine serves is decoded in a batch of its own."""
        assert ticket.work is not None
        self._stage(ticket, "running")
        waited = self._age(ticket)
        (response,) = self._generator.decode([ticket.query])
        filled = int((ticket.work.answer.tokens == self._generator.codecs.layout.vocabulary.mask).sum())
        self._finish(ticket, response, filled, waited)

    def _read(self, ticket: Ticket, done: Done) -> None:
        assert ticket.work is not None
        response = self._generator.read(ticket.query, ticket.work, done.result)
        self._finish(ticket, response, int((done.result.commit_step >= 0).sum()), ticket.seated + done.waited)

    def _compile(self, lane: Lane, work: Work) -> Engine:
        """An engine whose programs are compiled: one request joins an empty one, then another the first."""
        begun = time.perf_counter()
        engine = self._generator.open(lane)
        for _ in range(2):
            engine.submit(work)
            engine.serve(limit=1)
        for number in range(2):
            engine.cancel(number)
        engine.counts = Counts()
        self.metrics.compiled.observe(time.perf_counter() - begun)
        return engine

    # In the thread of the steps.

    def _run(self) -> None:
        while True:
            with self._lock:
                while not (self._inbox or self._ended or any(lane.tickets for lane in self._lanes.values())):
                    self._lock.wait()
                if self._ended:
                    return
                messages, self._inbox = self._inbox, []
            for message in messages:
                message()
            busy = [lane for lane in self._lanes.values() if lane.engine is not None and lane.tickets]
            if busy:
                self._serve(min(busy, key=lambda lane: lane.turn))

    def _arrive(self, ticket: Ticket) -> None:
        """Puts a written request into its lane, which is opened if it is not there."""
        lane = ticket.lane
        assert lane is not None and ticket.work is not None
        if ticket.cancelled:
            self._end(ticket)
            return
        self._stage(ticket, "waiting")
        found = self._lanes.get(lane)
        if found is None:
            self._make_room()
            found = self._lanes[lane] = _Open()
            self._compiler.submit(self._open, lane, ticket.work)
        if found.engine is None:
            found.arrived.append(ticket)
        else:
            self._seat(found, ticket)

    def _open(self, lane: Lane, work: Work) -> None:
        try:
            engine = self._compile(lane, work)
        except Exception as error:
            failed = error
            self._tell(lambda: self._unopened(lane, failed))
        else:
            self._tell(lambda: self._opened(lane, engine))

    def _opened(self, lane: Lane, engine: Engine) -> None:
        found = self._lanes.setdefault(lane, _Open())
        found.engine = found.engine or engine
        arrived, found.arrived = found.arrived, []
        for ticket in arrived:
            self._seat(found, ticket)

    def _unopened(self, lane: Lane, error: Exception) -> None:
        for ticket in self._lanes.pop(lane).arrived:
            self._fail(ticket, error)

    def _seat(self, lane: _Open, ticket: Ticket) -> None:
        assert lane.engine is not None and ticket.work is not None
        if ticket.cancelled:
            self._end(ticket)
            return
        if not lane.tickets:  # what it did not use is not made up for
            lane.turn = max(lane.turn, self._turn)
        ticket.number, ticket.seated = lane.engine.submit(ticket.work), self._age(ticket)
        lane.tickets[ticket.number] = ticket
        lane.used = time.monotonic()

    def _make_room(self) -> None:
        """Closes lanes that nobody is in, the longest unused first, where there are as many as may be."""
        idle = sorted((lane for lane in self._lanes if self._lanes[lane].idle), key=lambda x: self._lanes[x].used)
        spare = len(self._lanes) + 1 - self._limits.lanes
        if spare > 0 and idle:
            for lane in idle[:spare]:
                del self._lanes[lane]
            forget_programs()

    def _serve(self, lane: _Open) -> None:
        """A few steps of one lane; a fault ends those in it, and no others."""
        engine = lane.engine
        assert engine is not None
        watched = any(ticket.watch for ticket in lane.tickets.values())
        before, here = dataclasses.replace(engine.counts), len(lane.tickets)
        try:
            done = engine.serve(limit=1 if watched else _PACE)
        except Exception as error:
            for key in [key for key, value in self._lanes.items() if value is lane]:
                del self._lanes[key]
            for ticket in lane.tickets.values():
                self._fail(ticket, error)
            return
        lane.used = time.monotonic()
        self._turn = lane.turn
        lane.turn += (engine.counts.steps - before.steps) / here
        self.metrics.note_steps(before, engine.counts)
        for answered in done:
            ticket = lane.tickets.pop(answered.number)
            self._show(ticket, np.asarray(answered.result.tokens), int(answered.result.steps))
            self._stage(ticket, "reading")
            self._workers.submit(self._pooled, self._read, ticket, answered)
        for number in engine.at_work:
            ticket = lane.tickets[number]
            if ticket.stage == "waiting":
                self._stage(ticket, "running")
            if ticket.watch is not None and (seen := engine.look(number)) is not None:
                self._show(ticket, *seen)

    def _show(self, ticket: Ticket, tokens: np.ndarray, step: int) -> None:
        if ticket.watch is not None and ticket.work is not None:
            start = len(ticket.work.prompt.tokens)
            ticket.watch(Partial(step, tokens[start : start + len(ticket.work.answer)]))

    def _drop(self, ticket: Ticket) -> None:
        """Takes a cancelled request out of its slot or queue; one in a pool ends there."""
        if ticket.stage not in ("waiting", "running") or ticket.lane is None:
            return
        lane = self._lanes.get(ticket.lane)
        if lane is None or lane.engine is None or ticket.number is None:
            return
        if lane.tickets.pop(ticket.number, None) is not None:
            lane.engine.cancel(ticket.number)
            self._end(ticket)

    # Anywhere.

    def _tell(self, message: Callable[[], None]) -> None:
        with self._lock:
            self._inbox.append(message)
            self._lock.notify()

    def _age(self, ticket: Ticket) -> float:
        return time.perf_counter() - ticket.begun

    def _stage(self, ticket: Ticket, stage: str) -> None:
        with self._lock:
            self._move(ticket, stage)

    def _move(self, ticket: Ticket, stage: str) -> None:
        """Counts a ticket at its new stage; "" is the last."""
        if ticket.stage:
            self._stages[ticket.stage] -= 1
        if stage:
            self._stages[stage] += 1
        ticket.stage = stage

    def _finish(self, ticket: Ticket, response: Response, filled: int, waited: float) -> None:
        assert ticket.work is not None
        answered = Answered(response, len(ticket.work.prompt.tokens), filled, waited, self._age(ticket), ticket.note)
        self._recent.append(answered.seconds - waited)
        if not ticket.cancelled:
            self.metrics.note_answer(ticket.query.answer, answered)
        self._end(ticket)
        with contextlib.suppress(InvalidStateError):
            ticket.future.set_result(answered)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        failure = failure_of(error)
        if failure.status >= 500:
            traceback.print_exception(error, file=sys.stderr)
        self.metrics.failed.labels(str(failure.status)).inc()
        self._end(ticket)
        with contextlib.suppress(InvalidStateError):
            ticket.future.set_exception(failure)

    def _end(self, ticket: Ticket) -> None:
        with self._lock:
            if not ticket.stage:
                return
            if ticket.cancelled:
                self.metrics.cancelled.labels(ticket.stage).inc()
            self._move(ticket, "")
