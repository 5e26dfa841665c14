"""The engine under a Poisson stream of mixed requests: pictures, speech and text of other lengths, steps and seeds."""

import collections
import time
from collections.abc import Mapping, Sequence

import numpy as np

from omnidiff_jax.answering.engine import Done, Engine, room
from omnidiff_jax.answering.engine import Work as Asked
from omnidiff_jax.benchmarks.fillers import (
    Filled,
    Need,
    Work,
    head_operations,
    layer_operations,
    make_denoiser,
    weight_bytes,
)
from omnidiff_jax.benchmarks.settings import kinds_of
from omnidiff_jax.benchmarks.train import planned_bytes
from omnidiff_jax.sampling import Canvas, Prompt, blank, build_canvas, unconditional_canvas
from omnidiff_jax.sampling.canvas import bucket
from omnidiff_jax.sampling.guidance import stack_canvases

# Positions of an answer: pictures are of one size.
LENGTHS = {"image": (260, 260), "speech": (20, 80), "text": (16, 128)}
# Requests arrive so many times as fast as a full engine answers them.
LOAD = 1.25


class Stream:
    """An engine under the setting's sampler, every answer kept to its kind of token.

    Arguments as for `Loop`; `rows` is the number of slots. A second engine of one slot answers each request alone.
    """

    follows = ""

    def __init__(self, work: Work, rows: int):
        self._work, self._slots = work, rows
        self._denoiser = make_denoiser(work)
        self._sets = kinds_of(work.vocabulary)
        setting = work.setting
        longest = max(setting.prompt, setting.unconditional) + max(most for _, most in LENGTHS.values())
        self._length = bucket(longest, 32)
        self._engine, self._alone = self._open(rows), self._open(1)
        self._rate = 1.0

    def warm(self) -> float:
        """Both engines answer some requests at once, which also tells how many a second they answer."""

        def answer(engine: Engine, count: int) -> float:
            began = time.perf_counter()
            for asked in self._requests(0, count):
                engine.submit(asked)
            collections.deque(engine.run(), maxlen=0)
            return time.perf_counter() - began

        first, again = answer(self._engine, self._slots), answer(self._engine, 2 * self._slots)
        answer(self._alone, 2)
        self._rate = LOAD * 2 * self._slots / again
        return max(first - again / 2, 0.0)

    def fill(self, seed: int, past: Mapping[str, Filled]) -> Filled:
        requests = self._requests(seed, self._work.requests)
        engine, before = self._engine, self._engine.counts
        engine.counts = type(before)()
        seconds, done, late = self._serve(requests, np.random.default_rng((seed, 1)))
        counts = engine.counts
        latency = np.array([answered.seconds + late[answered.number] for answered in done.values()])
        waited = np.array([answered.waited + late[answered.number] for answered in done.values()])
        equal = self._equal_alone(requests, [np.asarray(done[number].result.tokens) for number in sorted(done)])
        details = {
            "requests": len(requests),
            "requests_per_second": len(requests) / seconds,
            "load": LOAD,
            "steps": counts.steps,
            "occupancy": counts.occupancy,
            "occupancy_loaded": counts.loaded_occupancy,
            "padding": counts.padding,
            "longest_queue": counts.longest_queue,
            "wait_p50": float(np.quantile(waited, 0.5)),
            "wait_p99": float(np.quantile(waited, 0.99)),
            "latency_p50": float(np.quantile(latency, 0.5)),
            "latency_p99": float(np.quantile(latency, 0.99)),
            "equal_alone": equal,
        }
        tokens = np.stack([np.asarray(done[number].result.tokens) for number in sorted(done)])
        need = self._need(requests, [done[number] for number in sorted(done)], counts.steps)
        return Filled(seconds, tokens, counts.steps, need, details=details, alone=equal == 1.0)

    def peak_bytes(self) -> int:
        """By the compiler's plan of the engine's steps."""
        return planned_bytes(self._engine.lower().compile())

    def close(self) -> None:
        pass

    def _open(self, slots: int) -> Engine:
        largest = [self._asked(number, kind, most) for number, (kind, (_, most)) in enumerate(LENGTHS.items())]
        canvases = [self._lay_out([asked] * slots, slots) for asked in largest]
        works = [asked for asked in largest for _ in range(slots)]
        return Engine(self._denoiser, self._lay_out, *room(works, canvases), slots=slots)

    def _asked(
        self, number: int, kind: str, length: int, steps: int | None = None, prompt: int | None = None, seed: int = 0
    ) -> Asked:
        """A request; as many steps and as long a prompt as the setting has where nothing is said."""
        setting, text = self._work.setting, self._work.vocabulary.text
        rng = np.random.default_rng((seed, number))

        def drawn(count: int) -> Prompt:
            return Prompt(rng.integers(text.start, text.stop, count, np.int32))

        return Asked(
            drawn(prompt or setting.prompt),
            blank(length, self._work.vocabulary.mask, self._sets[kind]),
            setting.sampler(steps or self._work.steps),
            seed,
            number,
            drawn(setting.unconditional) if setting.guidance else None,
        )

    def _requests(self, seed: int, count: int) -> list[Asked]:
        rng, most = np.random.default_rng(seed), self._work.steps
        made = []
        for number in range(count):
            kind = list(LENGTHS)[rng.integers(len(LENGTHS))]
            low, high = LENGTHS[kind]
            prompt = int(rng.integers(max(self._work.setting.prompt // 4, 1), self._work.setting.prompt + 1))
            steps = int(rng.integers(max(most // 2, 1), most + 1))
            made.append(self._asked(number, kind, int(rng.integers(low, high + 1)), steps, prompt, seed))
        return made

    def _lay_out(self, works: Sequence[Asked], rows: int) -> Canvas:
        vocabulary = self._work.vocabulary
        canvas = build_canvas(
            [work.prompt for work in works],
            [work.answer for work in works],
            vocabulary,
            self._sets,
            example_ids=[work.request_id for work in works],
            multiple=self._length,
            rows=rows,
        )
        others = [work.unconditional for work in works if work.unconditional is not None]
        if not others:
            return canvas
        other = unconditional_canvas(canvas, others, vocabulary, pad_with_zero_vectors=True, multiple=self._length)
        return stack_canvases(canvas, other)

    def _serve(
        self, requests: Sequence[Asked], rng: np.random.Generator
    ) -> tuple[float, dict[int, Done], dict[int, float]]:
        """Seconds; answers by number; seconds between a request's arrival and the engine's hearing of it."""
        engine = self._engine
        times = np.cumsum(rng.exponential(1 / self._rate, len(requests)))
        coming = collections.deque(zip(times, requests, strict=True))
        done: dict[int, Done] = {}
        late: dict[int, float] = {}
        began = time.perf_counter()
        while coming or not engine.idle:
            while coming and coming[0][0] <= (now := time.perf_counter() - began):
                arrived, asked = coming.popleft()
                late[engine.submit(asked)] = now - arrived
            if engine.idle:
                time.sleep(max(coming[0][0] - (time.perf_counter() - began), 0.0))
            done |= {answered.number: answered for answered in engine.serve()}
        return time.perf_counter() - began, done, late

    def _equal_alone(self, requests: Sequence[Asked], tokens: Sequence[np.ndarray]) -> float:
        """Share of the answers that are the same where the request is the only one."""
        equal = 0
        for asked, found in zip(requests, tokens, strict=True):
            self._alone.submit(asked)
            (answered,) = self._alone.run()
            equal += np.array_equal(answered.result.tokens, found)
        return equal / len(requests)

    def _need(self, requests: Sequence[Asked], done: Sequence[Done], steps: int) -> Need:
        """What the positions that hold something need, spread over the engine's steps."""
        backbone, total = self._work.backbone, 0.0
        for asked, answered in zip(requests, done, strict=True):
            chosen = np.asarray(answered.result.committed)
            committed = chosen[chosen > 0]
            masked = len(asked.answer) * len(committed) - int(np.cumsum(committed)[:-1].sum())
            for prompt in (asked.prompt, asked.unconditional):
                if prompt is not None:
                    length = len(prompt.tokens) + len(asked.answer)
                    total += len(committed) * length * layer_operations(backbone, length)
                    total += masked * head_operations(backbone, backbone.vocab_size)
        return Need(np.full(steps, total / steps), weight_bytes(backbone, backbone.vocab_size))
