"""Scores of every task, each beside its judge's own ceiling and floor, and the settings that gave it."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnidiff_jax import config as configs
from omnidiff_jax.evaluation.generate import Generator, Request, Response
from omnidiff_jax.tasks.registry import Task

_PACKAGES = ("omnidiff_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclasses.dataclass(frozen=True)
class Case:
    """One held-out question.

    Attributes:
        request: what is asked.
        truth: a right answer, in its media.
        meta: what judges read (reference texts, the scene).
    """

    request: Request
    truth: Response
    meta: Mapping[str, Any]


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
    """A task's held-out cases and measures; the first measure is the task's value in the scorecard."""

    task: Task
    cases: tuple[Case, ...]
    measures: tuple[Measure, ...]


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
    requests = [case.request for case in exam.cases]
    first = generator(exam.task, requests[:strips], strips=True) if strips else []
    responses = first + generator(exam.task, requests[strips:])
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
    entry["decoding"] = configs.to_dict(generator.decoding(exam.task))
    entry["seconds"] = {"generate": generated, "judge": time.perf_counter() - began - generated}
    return Result(entry, responses, verdicts)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def read_scorecard(workdir: str | os.PathLike[str], step: int) -> dict[str, Any]:
    """The scorecard of checkpoint `step` in `workdir`; {} where there is none of it."""
    try:
        content = json.loads((Path(workdir) / "scorecard.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and content.get("step") == step else {}


def write_scorecard(
    workdir: str | os.PathLike[str], entries: Mapping[str, Mapping[str, Any]], seconds: Mapping[str, float], step: int
) -> dict[str, Any]:
    """Writes `scorecard.json` of checkpoint `step`; it appears whole or not at all. Returns its content."""
    content = {"step": step, "tasks": dict(entries), "seconds": dict(seconds), "versions": versions()}
    path = Path(workdir) / "scorecard.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)
    return content


def table(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The scorecard as lines of text."""
    rows = [("task", "metric", "value", "ceiling", "floor", "n", "judge")]
    for name, entry in entries.items():
        for part in (entry, *entry.get("also", ())):
            arrow = "" if part["higher_is_better"] else " (lower is better)"
            numbers = (f"{part[k]:.3f}" for k in ("value", "ceiling", "floor"))
            rows.append((name, part["metric"] + arrow, *numbers, str(part["n"]), part["judge"]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _share(top: np.ndarray, bottom: np.ndarray) -> float:
    return float(np.sum(top) / max(float(np.sum(bottom)), 1e-9))
