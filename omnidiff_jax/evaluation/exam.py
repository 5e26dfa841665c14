"""Exams: held-out cases, how answers to them are measured, and a table of exams by name."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from omnidiff_jax import config as configs
from omnidiff_jax.answering.generator import Generator
from omnidiff_jax.answering.queries import Request, Response
from omnidiff_jax.errors import UserError, notice
from omnidiff_jax.tasks.registry import Task

# Faults that a message tells in full.
_NAMED = 8


@dataclasses.dataclass(frozen=True)
class Case:
    """One held-out question.

    Attributes:
        request: what is asked.
        truth: a right answer, in its media.
        meta: what judges read (reference texts, the scene).
        where: it stands, of a case that came from outside; such a one may be more than the model takes.
    """

    request: Request
    truth: Response
    meta: Mapping[str, Any]
    where: str = ""


# (responses, cases) -> (numerator [n], denominator [n]): hits and ones, or word errors and words.
Score = Callable[[Sequence[Response], Sequence[Case]], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Measure:
    """One number about a task's answers.

    Attributes:
        metric: its name.
        judge: who decides.
        higher_is_better: direction.
        score: see `Score`.
    """

    metric: str
    judge: str
    higher_is_better: bool
    score: Score


@dataclasses.dataclass(frozen=True)
class Exam:
    """A task's held-out cases and measures; the first measure is the task's value in the scorecard.

    Attributes:
        task: that is asked.
        cases: questions with their answers.
        measures: of an answer.
        further: exams of other cases whose value stands beside this one's: name -> exam.
        skipped: what was to be a case and cannot be one: where it stands, and why.
    """

    task: Task
    cases: tuple[Case, ...]
    measures: tuple[Measure, ...]
    further: Mapping[str, "Exam"] = dataclasses.field(default_factory=dict)
    skipped: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ExamSet:
    """What `omnidiff evaluate --exam=NAME` sits: a row of the table that is handed in from above.

    Attributes:
        summary: one line.
        tasks: that it examines.
        exam: (task, most cases, folder of its data or None) -> the exam; a function of a module, since worker processes
            call it.
        needs_data: what `--data` names, "" where it brings its own.
        readers: a run that learned from one of these sources is examined by it where no exam is named.
    """

    summary: str
    tasks: tuple[str, ...]
    exam: Callable[[str, int, str | None], Exam]
    needs_data: str = ""
    readers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Result:
    """An exam that was sat.

    Attributes:
        entry: its part of `scorecard.json`.
        responses: the answers, in the order of the cases.
        verdicts: the first measure of each case, numerator / denominator.
    """

    entry: dict[str, Any]
    responses: list[Response]
    verdicts: np.ndarray


def askable(exam: Exam, generator: Generator) -> Exam:
    """The exam without the cases from outside that the model cannot be asked; all that is skipped is named on stderr.

    Raises:
        UserError: no case is left.
    """
    kept, skipped = [], [*exam.skipped]
    for case in exam.cases:
        try:
            if case.where:
                generator.check(exam.task, case.request)
        except UserError as error:
            skipped.append(f"{case.where}: {error}")
        else:
            kept.append(case)
    total = len(kept) + len(skipped)
    if not kept:
        raise UserError(f"exam of {exam.task.name}: the model can be asked none of {total} cases; {named(skipped)}")
    if skipped:
        notice(f"exam of {exam.task.name}: {len(skipped)} of {total} cases are passed over; {named(skipped)}")
    return dataclasses.replace(exam, cases=tuple(kept), skipped=tuple(skipped))


def named(faults: Sequence[str]) -> str:
    """The first faults in full, and how many more there are."""
    rest = f"; and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
    return "; ".join(faults[:_NAMED]) + rest


def sit(exam: Exam, generator: Generator, strips: int = 0) -> Result:
    """Generates and judges.

    The ceiling is the judge's value on the true answers; the floor its value on the model's own answers to other
    cases (rotated by half), so that a judge that cannot fail is seen.

    Args:
        exam: cases and measures.
        generator: the model.
        strips: how many of the first cases also keep their decoding steps.
    """
    began = time.perf_counter()
    # All at once: a batch of its own for the few whose steps are kept would cost as much as a full one.
    answered = generator(exam.task, [case.request for case in exam.cases], strips=strips > 0)
    responses = [
        response if number < strips else dataclasses.replace(response, strip=None)
        for number, response in enumerate(answered)
    ]
    generated = time.perf_counter() - began
    shift = max(len(responses) // 2, 1)
    shuffled = responses[shift:] + responses[:shift]
    truths = [case.truth for case in exam.cases]
    entry: dict[str, Any] = {}
    verdicts = np.zeros(len(responses))
    for number, measure in enumerate(exam.measures):
        top, bottom = measure.score(responses, exam.cases)
        values = {
            "metric": measure.metric,
            "value": _share(top, bottom),
            "interval": interval(np.asarray(top, float), np.asarray(bottom, float)),
            "higher_is_better": measure.higher_is_better,
            "n": len(responses),
            "ceiling": _share(*measure.score(truths, exam.cases)),
            "floor": _share(*measure.score(shuffled, exam.cases)),
            "judge": measure.judge,
        }
        if number == 0:
            verdicts = np.asarray(top) / np.maximum(bottom, 1e-9)
            entry |= values
        else:
            entry.setdefault("also", []).append(values)
    if exam.skipped:
        entry["skipped"] = len(exam.skipped)
    for name, other in exam.further.items():
        found = sit(other, generator).entry
        entry[name] = found["value"]
        kept = ("value", "interval", "n", "also")
        entry.setdefault("further", {})[name] = {key: found[key] for key in kept if key in found}
    entry["decoding"] = configs.to_dict(generator.decoding(exam.task))
    entry["seconds"] = {"generate": generated, "judge": time.perf_counter() - began - generated}
    return Result(entry, responses, verdicts)


def _share(top: np.ndarray, bottom: np.ndarray) -> float:
    return float(np.sum(top) / max(float(np.sum(bottom)), 1e-9))


def interval(top: np.ndarray, bottom: np.ndarray) -> tuple[float, float]:
    """95 % confidence interval of sum(top) / sum(bottom) over cases.

    Wilson's, where every case is right or wrong (it does not close up at 0 and 1 as resampling does); otherwise the
    percentiles of 1,000 bootstrap samples of the cases, the same for the same numbers.
    """
    count = len(top)
    if not count:
        return 0.0, 0.0
    if np.all(bottom == 1) and np.all((top == 0) | (top == 1)):
        share, z = float(top.mean()), 1.96
        middle = share + z * z / (2 * count)
        spread = z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
        scale = 1 + z * z / count
        return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
    drawn = np.random.default_rng(0).integers(count, size=(1000, count))
    values = top[drawn].sum(1) / np.maximum(bottom[drawn].sum(1), 1e-9)
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
