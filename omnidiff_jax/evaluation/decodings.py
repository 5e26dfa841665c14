"""Ways to decode beside each other on one exam: what each scores, how often it calls the model, and whether one that
calls it less is as good.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from omnidiff_jax.answering.generator import Generator
from omnidiff_jax.answering.queries import Response, adjusted
from omnidiff_jax.config import suggest
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.exam import Exam, askable, interval
from omnidiff_jax.evaluation.intervals import Difference, Ratios, paired
from omnidiff_jax.sampling import Confidence, Drafting, Reveal

OWN = "own"
# The number that may stand behind a way's word.
_NUMBERS = {
    "schedule": "sampler.steps",
    "threshold": "sampler.reveal.least",
    "entropy_bound": "sampler.reveal.gamma",
    "stable": "sampler.reveal.least",
    "klass": "sampler.reveal.least",
    "revise": "sampler.reveal.least",
    "wino": "sampler.reveal.least",
    "verify": "sampler.drafting.drafts",
}
# What a way says nothing of is as plain as can be, whatever the model's own settings are.
_PLAIN: dict[str, Any] = {
    "sampler.steps": None,
    "sampler.steps_per_token": 1.0,
    "sampler.reveal.kind": "schedule",
    "sampler.drafting.kind": "off",
}
# arXiv 2507.18578: what is revealed at 0.6 is to hold at 0.9 where it is not seen.
_WINO: dict[str, Any] = {
    **_PLAIN,
    "sampler.reveal.kind": "revise",
    "sampler.reveal.least": 0.6,
    "sampler.reveal.keep": 0.9,
    "sampler.cache.kind": "shadow",
}
_WHOLE = ("sampler.steps", "sampler.drafting.drafts")


def way(word: str) -> dict[str, Any]:
    """The settings of a way to decode, for `queries.adjusted`.

    Args:
        word: "own", the model's own settings; a kind of `sampler.reveal`, with its number ("threshold:0.7",
            "entropy_bound:0.1", "schedule", which reveals one position a step, "schedule:8", in 8 steps); a kind of
            `sampler.confidence` ("halton", "halton:8"); "verify:3", `schedule` with so many drafts a call; or "wino",
            `revise` with a shadow block and the numbers of its paper ("wino:0.5" with another `least`).

    Raises:
        UserError: an unknown word, or no number behind it.
    """
    kind, _, number = word.partition(":")
    reveals, orders, drafts = ([found.kind for found in group.kinds()] for group in (Reveal, Confidence, Drafting))
    if kind == OWN and not number:
        return {}
    if kind in reveals:
        settings = {**_PLAIN, "sampler.reveal.kind": kind}
    elif kind == "wino":
        settings = dict(_WINO)
    elif kind in orders:
        settings = {**_PLAIN, "sampler.confidence.kind": kind}
    elif kind in drafts:
        settings = {**_PLAIN, "sampler.drafting.kind": kind}
    else:
        raise UserError(f"way {word!r}: {suggest(kind, (OWN, 'wino', *reveals, *orders, *drafts))}")
    if number:
        key = _NUMBERS.get(kind, "sampler.steps")
        try:
            settings[key] = int(number) if key in _WHOLE else float(number)
        except ValueError:
            raise UserError(f"way {word!r}: {number!r} is not a number of {key}") from None
    return settings


@dataclasses.dataclass(frozen=True)
class Sat:
    """An exam as one way of decoding sat it.

    Attributes:
        way: its word.
        metric: of the score.
        higher_is_better: its direction.
        score: per case.
        calls: int [n], of the model, for each answer.
        answers: what was said.
    """

    way: str
    metric: str
    higher_is_better: bool
    score: Ratios
    calls: np.ndarray
    answers: list[Response]

    def summary(self) -> dict[str, Any]:
        """Score with its interval, calls (mean, and least, quartiles and most), and the score of the answers that took
        so many calls: tokens a call against quality."""
        spread = np.percentile(self.calls, (0, 25, 50, 75, 100))
        return {
            "way": self.way,
            "metric": self.metric,
            "n": len(self.calls),
            "value": self.score.value,
            "interval": interval(self.score.top[:, 0], self.score.bottom[:, 0]),
            "calls": float(self.calls.mean()),
            "calls_spread": [float(x) for x in spread],
            "by_calls": [
                {
                    "calls": int(count),
                    "n": int((self.calls == count).sum()),
                    "value": self.score.where(self.calls == count).value,
                }
                for count in np.unique(self.calls)
            ],
        }


def sit_ways(exam: Exam, generator: Generator, words: Sequence[str]) -> Iterator[Sat]:
    """Sits an exam's first measure once for each way.

    Args:
        exam: cases and measures.
        generator: of the model.
        words: the ways, as `way` takes them.

    Raises:
        UserError: as `way`, or settings that the task cannot be decoded with.
    """
    settings = [adjusted(generator.decoding(exam.task), way(word), word) for word in words]
    asked, measure = askable(exam, generator), exam.measures[0]
    for word, decoding in zip(words, settings, strict=True):
        answers = generator(exam.task, [case.request for case in asked.cases], decoding=decoding)
        score = Ratios.of(*measure.score(answers, asked.cases))
        calls = np.array([answer.steps for answer in answers])
        yield Sat(word, measure.metric, measure.higher_is_better, score, calls, answers)


@dataclasses.dataclass(frozen=True)
class Gate:
    """Whether a way may stand for a slower one.

    Attributes:
        times_fewer: calls of the slower over calls of the faster one, means.
        worse: by how much the faster scores worse (below 0: better), with the interval of the paired difference.
        passed: at least `fewer` times fewer calls, and not worse by more than `most`.
    """

    times_fewer: float
    worse: Difference
    passed: bool


def gate(slow: Sat, fast: Sat, *, fewer: float = 4.0, most: float = 0.02) -> Gate:
    """Compares two ways over the same cases."""
    one, other = (slow, fast) if slow.higher_is_better else (fast, slow)
    worse = paired(one.score, other.score)
    times = float(slow.calls.mean() / max(fast.calls.mean(), 1e-9))
    return Gate(times, worse, times >= fewer and worse.value <= most + 1e-9)  # 0.02 is not a float
