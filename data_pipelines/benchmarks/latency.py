"""How long answers take, one at a time: pictures in several numbers of steps, speech against its own length."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from omnidiff_jax.answering.queries import Request, Response
from omnidiff_jax.evaluation.benchmark import Published
from omnidiff_jax.evaluation.stages import Answers
from omnidiff_jax.records import Waveform
from omnidiff_jax.tasks.decodings import DECODINGS
from omnidiff_jax.tasks.registry import Decoding, task

SUMMARY = "seconds a picture, seconds a second of speech"
SENTENCE = "the small red circle stands on the left of a large blue square"
_PAPER = "ICML 2026 version"


@dataclasses.dataclass(frozen=True)
class Timed:
    """One row.

    Attributes:
        metric: its name.
        task: that is asked.
        steps: of decoding; None = as the settings say.
        share: steps as a share of the answer's length, where `steps` is None and this is not.
        published: seconds, or seconds a second of speech.
    """

    metric: str
    task: str
    steps: int | None = None
    share: float | None = None
    published: float = 0.0

    def decoding(self) -> Decoding:
        """The released settings in this many steps."""
        released = DECODINGS["released"][self.task]
        sampler = released.sampler
        if self.steps is not None:
            sampler = dataclasses.replace(sampler, steps=self.steps)
        if self.share is not None:
            sampler = dataclasses.replace(sampler, steps_per_token=self.share)
        return dataclasses.replace(released, sampler=sampler)

    @property
    def beside(self) -> tuple[Published, ...]:
        """What was published; its batch and device are not said, one answer at a time is likely."""
        return (Published("Omni-Diffusion (ICML)", self.metric, self.published, _PAPER),) if self.published else ()


ROWS = (
    Timed("text to image, 256 steps, s", "t2i", 256, published=28.57),
    Timed("text to image, 50 steps, s", "t2i", 50, published=5.52),
    Timed("text to image, 10 steps, s", "t2i", 10, published=1.29),
    Timed("speech to image guided, 256 steps, s", "s2i", 256, published=39.90),
    Timed("speech to image guided, 10 steps, s", "s2i", 10, published=4.25),
    Timed("text to speech, L / 2 steps, real-time factor", "tts", share=0.5, published=0.427),
    Timed("text to speech, L / 8 steps, real-time factor", "tts", share=0.125, published=0.341),
)


def measure(
    opened: Callable[[Mapping[str, Decoding]], Answers],
    repeats: int = 3,
    rows: tuple[Timed, ...] = ROWS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """The entry of a scorecard: medians over `repeats` answers after a first one, whose excess is compilation.

    Pictures are drawn and speech is sounded within the time. Answers of a row are to the same request, noise apart.

    Args:
        opened: gives the model under settings of one task.
        repeats: timed answers of each row.
        rows: what is timed.
        clock: seconds.
    """
    parts: list[dict[str, Any]] = []
    notes: dict[str, int] = {}
    for row in rows:
        model = opened({row.task: row.decoding()})
        seconds, sounding = [], []
        for number in range(repeats + 1):
            began = clock()
            (response,) = model(task(row.task), [_request(row.task, number)])
            seconds.append(clock() - began)
            sounding.append(_sounding(response) if row.task == "tts" else 1.0)
        taken = [s / max(one, 1e-9) for s, one in zip(seconds[1:], sounding[1:], strict=True)]
        notes[f"seconds of compilation, {row.metric}"] = round(seconds[0] - statistics.median(seconds[1:]))
        if row.steps is not None and response.steps < row.steps:  # a smaller model's answer has fewer positions
            notes[f"steps that were enough, {row.metric}"] = response.steps
        value = statistics.median(taken)
        parts.append(
            {
                "metric": row.metric,
                "value": value,
                "interval": (min(taken), max(taken)),
                "higher_is_better": False,
                "n": repeats,
                "ceiling": value,
                "floor": value,
                "judge": "clock",
            }
        )
    device = jax.devices()[0].device_kind
    entry = parts[0] | {"also": parts[1:]}
    return {
        "metrics": {part["metric"]: part["value"] for part in parts},
        "n": repeats,
        "of": repeats,
        "whole": True,
        "unparsed": 0,
        "skipped": 0,
        "notes": notes,
        "protocol": "one at a time",
        "protocol_note": f"medians on {device}, vocoder and picture decoder included; 95 % column: least and most",
        "judge": "clock",
        "data": "",
        "decoding": {},
        "decoding_set": "released",
        "published": [dataclasses.asdict(one) for row in rows for one in row.beside],
        "seconds": float(sum(part["value"] for part in parts)),
        "benchmark": SUMMARY,
        "tasks": {"one at a time": entry},
    }


def _request(name: str, number: int) -> Request:
    if name == "s2i":
        noise = np.random.default_rng(0).standard_normal(3 * 16000).astype(np.float32)
        return Request(audio=Waveform(np.clip(noise / 8, -1, 1), 16000), request_id=number)
    return Request(SENTENCE, request_id=number)


def _sounding(response: Response) -> float:
    """Seconds of its speech; 0 where it says nothing, which makes its real-time factor enormous."""
    return response.audio.seconds if response.audio is not None else 0.0
