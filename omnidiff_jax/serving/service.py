"""What the endpoints share: a model behind a scheduler, settings and media of requests, waiting for answers."""

import asyncio
import contextlib
import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from omnidiff_jax.answering.model import Model
from omnidiff_jax.answering.queries import SHORT, Query
from omnidiff_jax.sampling.canvas import TooLong
from omnidiff_jax.serving.bodies import Sampling
from omnidiff_jax.serving.failures import Failure, failure_of, unsupported
from omnidiff_jax.serving.limits import Limits
from omnidiff_jax.serving.remote import Trusted
from omnidiff_jax.serving.scheduler import Scheduler
from omnidiff_jax.serving.tickets import Answered, Partial, Ticket

T = TypeVar("T")
# What a request may set, as its dotted names begin: not what only costs memory, nor what engines cannot hold.
_SET = tuple(
    f"sampler.{group}"
    for group in (
        *("steps", "steps_per_token", "schedule", "reveal", "confidence", "filters"),
        *("repetition", "position", "guidance", "blocks", "candidates"),
    )
) + ("length", "prefill", "stop", "unconditional")


@dataclasses.dataclass
class Service:
    """A model that is served.

    Attributes:
        model: answers.
        name: what clients call it.
        limits: of requests.
        scheduler: of its engines.
        trusted: hosts that media are fetched from.
        key: what clients must show, "" = nothing.
        created: seconds since 1970.
        ready: whether all is compiled that was to be, and nothing is closing.
    """

    model: Model
    name: str
    limits: Limits
    scheduler: Scheduler
    trusted: Trusted
    key: str = ""
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))
    ready: bool = False

    def check_model(self, name: str) -> None:
        """Raises a `Failure` unless the model is called so."""
        if name != self.name:
            raise Failure(
                f"model {name[:64]!r} is not served here; this is {self.name!r}",
                status=404,
                param="model",
                code="model_not_found",
            )

    def check_count(self, n: int | None) -> int:
        """`n`, 1 where nothing is said; raises a `Failure` over the limit."""
        if (n or 1) > self.limits.answers:
            raise Failure(f"n = {n} is over the limit of {self.limits.answers}", param="n", code="invalid_value")
        return n or 1

    async def queries(
        self, body: Sampling, asked: Mapping[str, Any], n: int = 1, length: int | None = None
    ) -> list[Query]:
        """The queries of `n` answers to one request, which differ in their noise.

        Args:
            body: its settings.
            asked: what `Model.query` takes: a task's inputs, or messages.
            length: positions of the answer, where the request says so.

        Raises:
            Failure: a setting that is unknown or not to be set by requests.
            UserError: as `Model.query`.
        """
        seed = secrets.randbelow(1 << 32) if body.seed is None else body.seed
        settings = self._settings(body, length)
        whole = {**asked, "seed": seed, "settings": settings}
        query = await asyncio.to_thread(self.model.query, whole)
        limit, decoding = self.model.generator.limit, query.decoding
        if limit is not None and decoding.adaptive is None and decoding.length > limit:
            raise TooLong(f"the answer of {decoding.length} positions does not fit the canvas of {limit}; ask for less")
        return [dataclasses.replace(query, request_id=number) for number in range(n)]

    def _settings(self, body: Sampling, length: int | None) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        for name, value in _flat(body.settings or {}):
            known = SHORT.get(name, name)
            if not any(known == group or known.startswith(f"{group}.") for group in _SET):
                raise unsupported(f"settings.{name}", f"cannot be set here; settings begin with {', '.join(_SET)}")
            settings[name] = value
        for name in SHORT:
            if (value := getattr(body, name)) is not None:
                settings[name] = value
        if length is not None:
            settings["length"] = length
        return settings

    async def answers(self, request: Request, queries: Sequence[Query]) -> list[Answered]:
        """Waits for the answers to queries; takes them back if the client leaves.

        Raises:
            Failure: whatever went wrong, of the first query where something did.
        """
        tickets = self._submit(queries, [None] * len(queries))
        leaving: asyncio.Future[Any] = asyncio.ensure_future(_left(request))
        everything: asyncio.Future[Any] = asyncio.gather(*(asyncio.wrap_future(ticket.future) for ticket in tickets))
        try:
            await asyncio.wait({everything, leaving}, timeout=self.limits.patience, return_when=asyncio.FIRST_COMPLETED)
            if everything.done():
                return everything.result()
            raise self._gone() if leaving.done() else self.late()
        finally:
            leaving.cancel()
            self.take_back(tickets)
            everything.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await everything

    def watched(self, queries: Sequence[Query]) -> "Watching":
        """Takes on queries whose canvases are seen as they fill in.

        Raises:
            Failure: as `Scheduler.submit`.
        """
        loop, seen = asyncio.get_running_loop(), asyncio.Queue[Seen]()

        def watcher(number: int) -> Callable[[Partial], None]:
            return lambda partial: _later(loop, seen, Seen(number, partial=partial))

        tickets = self._submit(queries, [watcher(number) for number in range(len(queries))])
        for number, ticket in enumerate(tickets):
            ticket.future.add_done_callback(
                lambda _, number=number: _later(loop, seen, Seen(number, over=True))  # type: ignore[misc]
            )
        return Watching(self, tickets, seen)

    def _submit(self, queries: Sequence[Query], watchers: Sequence[Callable[[Partial], None] | None]) -> list[Ticket]:
        tickets: list[Ticket] = []
        try:
            for query, watch in zip(queries, watchers, strict=True):
                tickets.append(self.scheduler.submit(query, watch))
        except Failure:
            self.take_back(tickets)
            raise
        return tickets

    def take_back(self, tickets: Sequence[Ticket]) -> None:
        """Cancels what is not over."""
        for ticket in tickets:
            self.scheduler.cancel(ticket)

    def late(self) -> Failure:
        """Of a request whose time is up."""
        return Failure(f"no answer within {self.limits.patience:g} s; it was given up", status=504, code="timeout")

    def _gone(self) -> Failure:
        return Failure("the client left", status=499, code="client_left")


@dataclasses.dataclass(frozen=True)
class Seen:
    """What is seen of one of several queries; nothing of either is a sign of life.

    Attributes:
        number: of the query.
        partial: its canvas.
        over: whether that was its end.
        answer: then.
    """

    number: int
    partial: Partial | None = None
    over: bool = False
    answer: Answered | None = None


class Watching:
    """Several queries under way.

    Args:
        service: that took them on.
        tickets: theirs.
        seen: what the scheduler's thread tells; at most as many canvases lie there as their answers have steps.
        pulse: seconds after which a sign of life is given.
    """

    def __init__(self, service: Service, tickets: Sequence[Ticket], seen: "asyncio.Queue[Seen]", pulse: float = 15.0):
        self._service, self._tickets, self._seen, self._pulse = service, tickets, seen, pulse

    async def __aiter__(self) -> AsyncIterator["Seen"]:
        """Canvases as they fill in, those of each query followed by its answer.

        Raises:
            Failure: as `Service.answers`.
        """
        left, until = len(self._tickets), time.monotonic() + self._service.limits.patience
        while left:
            try:
                one = await asyncio.wait_for(self._seen.get(), self._pulse)
            except TimeoutError:
                one = Seen(0)
            if time.monotonic() > until:
                raise self._service.late()
            if one.over:
                left -= 1
                one = dataclasses.replace(one, answer=self._tickets[one.number].future.result())
            yield one

    def close(self) -> None:
        """Takes back what is not over; nobody listens any more."""
        self._service.take_back(self._tickets)


async def off_the_loop(function: Callable[..., T], *args: Any) -> T:
    """A function in another thread; what a user did wrong is a `Failure`."""
    try:
        return await asyncio.to_thread(function, *args)
    except Exception as error:
        raise failure_of(error) from error


def _later(loop: asyncio.AbstractEventLoop, queue: "asyncio.Queue[Seen]", seen: Seen) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(queue.put_nowait, seen)


async def _left(request: Request) -> None:
    """Returns once the client has gone; its body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _flat(settings: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Dotted names and values of groups."""
    found = []
    for name, value in settings.items():
        found += _flat(value, f"{before}{name}.") if isinstance(value, dict) else [(f"{before}{name}", value)]
    return found
