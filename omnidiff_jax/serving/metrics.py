"""What a server counts, for Prometheus."""

import functools
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from omnidiff_jax.answering.engine import Counts
from omnidiff_jax.serving.tickets import STAGES, Answered

_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
_STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_FACTORS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """Counters of one server, in a registry of their own.

    Args:
        count: requests at a stage (`tickets.STAGES`), asked when the metrics are read.
        lanes: lanes that are open, likewise.
    """

    def __init__(self, count: Callable[[str], int], lanes: Callable[[], int]):
        self._registry = CollectorRegistry()
        registry = self._registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"omnidiff_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"omnidiff_{name}", text, labels, registry=registry, buckets=buckets)

        stages = Gauge("omnidiff_requests", "Requests on their way, by stage.", ("stage",), registry=registry)
        for stage in STAGES:
            stages.labels(stage).set_function(functools.partial(count, stage))
        Gauge("omnidiff_lanes", "Engines that are open.", registry=registry).set_function(lanes)
        self.answered = counter("answers", "Requests answered, by kind of answer and why it ended.", "kind", "finish")
        self.cancelled = counter("cancellations", "Requests taken back, by the stage they were at.", "stage")
        self.failed = counter("failures", "Requests that an exception ended, by its status.", "status")
        self.responses = counter("responses", "HTTP responses, by path and status.", "path", "status")
        self.waited = histogram("queue_seconds", "Seconds in the queue.", _SECONDS)
        self.latency = histogram("answer_seconds", "Seconds from a request to its answer.", _SECONDS, "kind")
        self.steps = histogram("answer_steps", "Calls of the model for an answer.", _STEPS, "kind")
        self.real_time = histogram("audio_real_time_factor", "Seconds it took to speak a second of audio.", _FACTORS)
        self.engine_steps = counter("engine_steps", "Calls of the model.")
        self.slots = counter("engine_slots", "Slots there were, summed over the calls.")
        self.busy = counter("engine_busy_slots", "Slots at work, summed over the calls; over slots: occupancy.")
        self.compiled = histogram("lane_seconds", "Seconds to open a lane: its programs are compiled.", _SECONDS)

    def note_answer(self, kind: str, answered: Answered) -> None:
        """Counts an answer of a kind (`registry.AnswerKind`)."""
        response = answered.response
        self.answered.labels(kind, response.finish).inc()
        self.waited.observe(answered.waited)
        self.latency.labels(kind).observe(answered.seconds)
        self.steps.labels(kind).observe(response.steps)
        if response.audio is not None and response.audio.seconds:
            self.real_time.observe((answered.seconds - answered.waited) / response.audio.seconds)

    def note_steps(self, before: Counts, after: Counts) -> None:
        """Counts what an engine did between two looks at its counts."""
        self.engine_steps.inc(after.steps - before.steps)
        self.slots.inc(after.slots - before.slots)
        self.busy.inc(after.busy - before.busy)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
