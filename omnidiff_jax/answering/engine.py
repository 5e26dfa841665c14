"""Many requests in the slots of one compiled step: they join and leave between steps (continuous batching).

A batch takes as many steps as its longest answer, and whoever is done waits for it. In an engine a slot that is done is
given to the next request at once. What a request is answered does not depend on its neighbours, nor on its slot;
where its code is `Compiled.steady`, as that of lanes is, not even by rounding.
"""

import collections
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from omnidiff_jax import rng
from omnidiff_jax.errors import UserError
from omnidiff_jax.sampling.cache import Cache
from omnidiff_jax.sampling.canvas import Answer, Canvas, Prompt
from omnidiff_jax.sampling.config import SamplerConfig
from omnidiff_jax.sampling.denoiser import Denoiser
from omnidiff_jax.sampling.loop import Carry, Compiled, advance, begin, compiled, unfinished
from omnidiff_jax.sampling.plan import Plan, make_plan
from omnidiff_jax.sampling.results import SampleResult

_NO_LIMIT = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Work:
    """One request as it lies on a canvas.

    Attributes:
        prompt: what is given.
        answer: what is to be filled.
        sampler: how; of two works in one engine only steps, schedule and blocks may differ.
        seed: of its noise.
        request_id: uint32, which the noise is keyed by as well.
        unconditional: the prompt that says less; needed by guidance.
    """

    prompt: Prompt
    answer: Answer
    sampler: SamplerConfig
    seed: int = 0
    request_id: int = 0
    unconditional: Prompt | None = None


@dataclasses.dataclass(frozen=True)
class Done:
    """A request that was answered.

    Attributes:
        number: as `Engine.submit` gave it.
        result: of its one row: [L] and [S], numpy arrays.
        waited: seconds in the queue.
        seconds: from `submit` to the answer, the queue included.
    """

    number: int
    result: SampleResult
    waited: float
    seconds: float


@dataclasses.dataclass
class Counts:
    """What an engine did so far.

    Attributes:
        steps: calls of the model.
        busy: slots that were at work, summed over the steps.
        slots: slots there were, summed over the steps.
        loaded_busy, loaded_slots: the same, of the steps during which requests waited.
        joined, done, cancelled: requests.
        longest_queue: most requests that waited at once.
        positions: of the canvases of all that joined, unconditional ones included.
        used: those of them that hold a prompt or an answer.
        waited: seconds in the queue, of all that joined.
        seconds: from `submit` to the answer, of all that are done.
    """

    steps: int = 0
    busy: int = 0
    slots: int = 0
    loaded_busy: int = 0
    loaded_slots: int = 0
    joined: int = 0
    done: int = 0
    cancelled: int = 0
    longest_queue: int = 0
    positions: int = 0
    used: int = 0
    waited: float = 0.0
    seconds: float = 0.0

    @property
    def occupancy(self) -> float:
        """Share of the slots that were at work."""
        return self.busy / max(self.slots, 1)

    @property
    def loaded_occupancy(self) -> float:
        """Share of the slots that were at work while requests waited."""
        return self.loaded_busy / max(self.loaded_slots, 1)

    @property
    def padding(self) -> float:
        """Share of the canvases' positions that hold nothing."""
        return 1 - self.used / max(self.positions, 1)


def forget_programs() -> None:
    """Drops the compiled steps of all engines; those that go on are read from the cache of compiled programs."""
    for program in (_new, _joined, _steps):
        program.clear_cache()  # type: ignore[attr-defined]


def suits(sampler: SamplerConfig) -> bool:
    """Whether an engine can serve it: without a cache whose state it does not know."""
    return type(sampler.cache) is Cache


def room(works: Sequence[Work], canvases: Sequence[Canvas]) -> tuple[Compiled, int]:
    """The code that serves works that lie on canvases of one shape, and the most steps that one of them takes.

    Args:
        works: as many as lie on the canvases, in their order.
        canvases: as the engine's `lay_out` makes them.
    """
    sampler = works[0].sampler
    slots = len(canvases[0].generate) // (2 if sampler.guidance.scale > 0 else 1)
    generates = [np.asarray(canvas.generate)[:slots] for canvas in canvases]
    masks = max(int(generate.sum(axis=1).max()) for generate in generates)
    groups = [np.asarray(canvas.groups)[:slots][generate] for canvas, generate in zip(canvases, generates, strict=True)]
    table = canvases[0].allowed
    span = sampler.candidates.span(None if table is None else np.asarray(table), np.concatenate(groups))
    rest = iter(works)
    plans = [plan for canvas in canvases for plan in _plans(list(itertools.islice(rest, slots)), canvas)]
    columns = max(plan.ratio.shape[1] for plan in plans)  # a power of two
    return compiled(sampler, slots * masks, canvases[0].generate.size, span), columns


def _plans(works: Sequence[Work], canvas: Canvas) -> list[Plan]:
    """The plan of each work, which lie in the first rows of `canvas`."""
    rows = [np.asarray(x) for x in (canvas.generate, canvas.answer_start, canvas.answer_length)]
    return [make_plan(work.sampler, *(x[row : row + 1] for x in rows)) for row, work in enumerate(works)]


class Engine:
    """Answers requests that share their compiled code, in slots.

    Attributes:
        counts: what was done.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        lay_out: Callable[[Sequence[Work], int], Canvas],
        code: Compiled,
        columns: int,
        *,
        slots: int,
    ):
        """An engine without requests.

        Args:
            denoiser: the model.
            lay_out: (works, rows) -> their canvas, filled up to `rows`, always of the same shapes; under guidance
                as many unconditional rows follow (`stack_canvases`).
            code: of every request, with room for all slots at once.
            columns: most steps of a request. `room` makes both.
            slots: requests at work at once.
        """
        self._denoiser, self._lay_out, self._code = denoiser, lay_out, code
        self._slots, self._columns = slots, columns
        self._queue: collections.deque[tuple[int, Work]] = collections.deque()
        self._held: list[tuple[int, Work] | None] = [None] * slots
        self._state: State | None = None
        self._next = 0
        self._submitted: dict[int, float] = {}
        self._waited: dict[int, float] = {}
        self.counts = Counts()

    def submit(self, work: Work) -> int:
        """Queues a request; the number its answer will have.

        Raises:
            UserError: guidance without an unconditional prompt.
        """
        if work.sampler.guidance.scale > 0 and work.unconditional is None:
            raise UserError(
                f"guidance.scale = {work.sampler.guidance.scale} needs an unconditional prompt beside the request's; "
                "give Work.unconditional, or set guidance.scale = 0"
            )
        self._queue.append((self._next, work))
        self._submitted[self._next] = time.perf_counter()
        self.counts.longest_queue = max(self.counts.longest_queue, len(self._queue))
        self._next += 1
        return self._next - 1

    def cancel(self, number: int) -> bool:
        """Takes a request back: out of the queue, or out of its slot before the next step. False if it is done."""
        waiting = collections.deque(item for item in self._queue if item[0] != number)
        found = len(waiting) < len(self._queue)
        self._queue = waiting
        for slot, held in enumerate(self._held):
            if held is not None and held[0] == number:
                self._held[slot], found = None, True
        self.counts.cancelled += found
        if found:
            del self._submitted[number]
            self._waited.pop(number, None)
        return found

    def look(self, number: int) -> tuple[np.ndarray, int] | None:
        """The canvas of a request between steps.

        Returns:
            its tokens int32 [L] and the calls of the model that revealed some of them; None if it is not at work.
        """
        for slot, held in enumerate(self._held):
            if held is not None and held[0] == number and self._state is not None:
                result = self._state.carry.result
                return np.asarray(result.tokens[slot]), int(result.steps[slot])
        return None

    @property
    def at_work(self) -> set[int]:
        """Numbers of the requests in slots."""
        return {held[0] for held in self._held if held is not None}

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether nothing waits or is at work."""
        return not self._queue and not any(self._held)

    def lower(self) -> Any:
        """The step that `serve` runs, lowered; a request must have joined before."""
        held = np.ones(self._slots, bool)
        zero = jnp.int32(0)
        return _steps.lower(self._denoiser, self._state, held, zero, zero, code=self._code)

    def run(self) -> Iterator[Done]:
        """Answers until nothing is left, each as soon as it is done; more may be submitted or cancelled meanwhile."""
        while not self.idle:
            yield from self.serve()

    def serve(self, limit: int | None = None) -> list[Done]:
        """Fills the free slots, takes steps until some are free again, and gives back what is done; [] if idle.

        Args:
            limit: steps that are taken at most, for a look between them; None = as many as it takes.
        """
        if self.idle:
            return []
        self._join()
        assert self._state is not None
        held = np.array([item is not None for item in self._held])
        # To join costs a pass over the prompts, so it is done for a few slots at once.
        spare = max(self._slots // 8, 1) if self._queue else 1
        enough = jnp.int32(held.sum() - spare)
        most = jnp.int32(_NO_LIMIT if limit is None else limit)
        carry, busy, at_work = _steps(self._denoiser, self._state, held, enough, most, code=self._code)
        steps = int(carry.calls) - int(self._state.carry.calls)
        self._state = self._state._replace(carry=carry)
        self.counts.steps += steps
        self.counts.slots += steps * self._slots
        self.counts.busy += int(at_work)
        if self._queue:
            self.counts.loaded_slots += steps * self._slots
            self.counts.loaded_busy += int(at_work)
        left, result = np.asarray(busy), jax.tree.map(np.asarray, carry.result)
        done = []
        for slot, item in enumerate(self._held):
            if item is not None and not left[slot]:
                row = jax.tree.map(lambda x, slot=slot: x[slot], result)
                seconds = time.perf_counter() - self._submitted.pop(item[0])
                done.append(Done(item[0], row, self._waited.pop(item[0]), seconds))
                self._held[slot] = None
        self.counts.done += len(done)
        self.counts.seconds += sum(answered.seconds for answered in done)
        return done

    def _join(self) -> None:
        """Puts what waits into the free slots."""
        fresh = [slot for slot, item in enumerate(self._held) if item is None][: len(self._queue)]
        if not fresh:
            return
        items, now = [self._queue.popleft() for _ in fresh], time.perf_counter()
        for slot, item in zip(fresh, items, strict=True):
            self._held[slot] = item
            self._waited[item[0]] = now - self._submitted[item[0]]
        works = [work for _, work in items]
        canvas = self._lay_out(works, self._slots)
        rows = len(canvas.generate) // self._slots
        self.counts.joined += len(works)
        self.counts.waited += sum(self._waited[number] for number, _ in items)
        self.counts.positions += len(works) * rows * canvas.generate.shape[1]
        self.counts.used += int((np.asarray(canvas.inputs.segment_ids) > 0).sum())
        plan = self._plan(works, canvas)
        noise = rng.streams([work.seed for work in works] + [0] * (self._slots - len(works)), "sampling")
        # Row i of what is new belongs to slot fresh[i]; all other slots keep theirs.
        source = np.full(self._slots, -1, np.int32)
        source[fresh] = np.arange(len(fresh))
        new = _new(self._denoiser, canvas, plan, noise, code=self._code)
        self._state = new if self._state is None else _joined(self._state, new, source)

    def _plan(self, works: Sequence[Work], canvas: Canvas) -> Plan:
        """The works' own plans, in the engine's number of columns."""
        plans = _plans(works, canvas)

        def whole(parts: list[np.ndarray], width: int) -> np.ndarray:
            out = np.zeros((self._slots, width), parts[0].dtype)
            for row, part in enumerate(parts):
                used = min(part.shape[1], width)  # what is beyond only fills up a power of two
                out[row, :used] = part[0, :used]
            return out

        ratio, begins, ends = (
            whole([getattr(plan, field) for plan in plans], self._columns) for field in ("ratio", "start", "stop")
        )
        steps = np.zeros(self._slots, np.int32)
        steps[: len(plans)] = [plan.steps[0] for plan in plans]
        orders = [plan.order for plan in plans if plan.order is not None]
        return Plan(ratio, begins, ends, steps, whole(orders, canvas.generate.shape[1]) if orders else None)


class State(NamedTuple):
    """The slots on the device; under guidance the canvas, and what a cache holds, has as many unconditional rows."""

    canvas: Canvas
    plan: Plan
    noise: jax.Array
    carry: Carry


@functools.partial(jax.jit, static_argnames="code")
def _new(denoiser: Denoiser, canvas: Canvas, plan: Plan, noise: jax.Array, *, code: Compiled) -> State:
    return State(canvas, plan, noise, begin(denoiser, canvas, plan, code.config))


@jax.jit
def _joined(old: State, new: State, source: jax.Array) -> State:
    """`new`'s row source[i] in slot i, where it is not -1; an unconditional row goes with its conditional one."""
    slots = len(source)

    def chosen(there: jax.Array, here: jax.Array) -> jax.Array:
        fresh, rows = jnp.tile(source >= 0, len(there) // slots), jnp.maximum(source, 0)
        rows = jnp.concatenate([rows + first for first in range(0, len(there), slots)])
        return jnp.where(fresh.reshape(-1, *[1] * (there.ndim - 1)), here[rows], there)

    table, calls = old.canvas.allowed, old.carry.calls
    canvas = jax.tree.map(chosen, *(dataclasses.replace(state.canvas, allowed=None) for state in (old, new)))
    plan = jax.tree.map(chosen, old.plan, new.plan)
    carry = jax.tree.map(chosen, *(state.carry._replace(calls=None) for state in (old, new)))  # type: ignore[arg-type]
    noise = jax.random.wrap_key_data(chosen(*(jax.random.key_data(state.noise) for state in (old, new))))
    return State(dataclasses.replace(canvas, allowed=table), plan, noise, carry._replace(calls=calls))


@functools.partial(jax.jit, static_argnames="code")
def _steps(
    denoiser: Denoiser, state: State, held: jax.Array, enough: jax.Array, most: jax.Array, *, code: Compiled
) -> tuple[Carry, jax.Array, jax.Array]:
    """Steps, `most` of them, until no more than `enough` of the `held` bool [B] slots are at work.

    Returns:
        what the last step left, bool [B] which slots are at work still, and how many were, summed over the steps.
    """
    canvas, plan, noise, first = state
    # A slot whose request was taken back is done.
    first = first._replace(column=jnp.where(held, first.column, plan.steps))

    def running(loop: tuple[Carry, jax.Array]) -> jax.Array:
        left = unfinished(canvas, plan, loop[0]).sum() > enough
        return left & (loop[0].calls - first.calls < most)

    def step(loop: tuple[Carry, jax.Array]) -> tuple[Carry, jax.Array]:
        busy = unfinished(canvas, plan, loop[0]).sum()
        return advance(denoiser, canvas, plan, noise, loop[0], code), loop[1] + busy

    carry, at_work = jax.lax.while_loop(running, step, (first, jnp.int32(0)))
    return carry, unfinished(canvas, plan, carry), at_work
