"""Sitting exams with a trained model: scorecard, report, samples and predictions."""

import functools
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from omnidiff_jax.answering.film import strip
from omnidiff_jax.answering.load import load
from omnidiff_jax.answering.model import Model
from omnidiff_jax.compilation import use_cache
from omnidiff_jax.evaluation.exam import Case, Exam, ExamSet, Result, askable, sit
from omnidiff_jax.evaluation.report import View, write_report
from omnidiff_jax.evaluation.scorecard import exam_entry, label, labelled, read_scorecard, table, write_scorecard
from omnidiff_jax.media.audio import write_wav
from omnidiff_jax.media.image import write_png
from omnidiff_jax.progress import Progress
from omnidiff_jax.tasks.registry import TASKS
from omnidiff_jax.training.operations.metrics import read_metrics
from omnidiff_jax.workers import Workers

SHOWN = 6  # answers of each task in the report
STRIPS = 2  # of those with their decoding steps
ROWS = 64  # answered together, at most
How = tuple[str, str]
"""Preset and quantization."""
CPU_ROWS = 32  # enough to keep cores busy; answers of like length finish together


def evaluate(
    what: str,
    exams: Mapping[str, ExamSet],
    cases: int,
    tasks: Sequence[str] = (),
    *,
    folder: str | os.PathLike[str],
    step: int = 0,
    data: str | None = None,
    preset: str = "exact",
    quantize: str = "",
    seconds: Mapping[str, float] | None = None,
    note: str = "",
) -> dict[str, Any]:
    """Sits exams; leaves `scorecard.json`, `report.html`, `samples/` and `predictions/EXAM.jsonl` in `folder`.

    Args:
        what: the model, as `omnidiff_jax.load` takes it.
        exams: those to sit, by name.
        cases: most held-out cases of each task.
        tasks: names of the tasks; () = all that an exam has.
        folder: where the results go; what stands there of other tasks and exams of the same checkpoint stays.
        step: of the checkpoint, 0 where there is none.
        data: of an exam that needs some.
        preset, quantize: how the model decodes and is held, as `omnidiff_jax.load` takes them.
        seconds: times spent before, for the scorecard.
        note: on what the scores rest, for the report.

    Returns:
        the scorecard.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    began, earlier = time.perf_counter(), read_scorecard(place, step)
    scores: dict[str, dict[str, Any]] = dict(earlier.get("exams", {}))
    shown: dict[str, list[View]] = {}
    asked: set[str] = set()
    for exam_name, chosen in exams.items():
        names = [name for name in chosen.tasks if not tasks or name in tasks]
        entries = {}
        for name, entry, views in _sat(what, str(place), exam_name, chosen, names, cases, data, (preset, quantize)):
            called = label(exam_name, name)
            entries[name], shown[called] = entry, views
            print(
                f"{called}: {entry['metric']} {entry['value']:.3f} (ceiling {entry['ceiling']:.3f}, "
                f"floor {entry['floor']:.3f}), {time.perf_counter() - began:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        # What was not asked now stays as it was, if it is of the same checkpoint.
        entries = scores.get(exam_name, {}).get("tasks", {}) | entries
        entries = {name: entries[name] for name in chosen.tasks if name in entries}
        scores[exam_name] = exam_entry(entries, sum(entry["n"] + entry.get("skipped", 0) for entry in entries.values()))
        asked |= set(names)
    own = scores.get("scenes", {}).get("tasks", {})
    spent = earlier.get("seconds", {}) | dict(seconds or {}) | {"evaluate": time.perf_counter() - began}
    scorecard = write_scorecard(place, own, scores, spent, step)
    metrics = place / "metrics.jsonl"
    lines = read_metrics(metrics) if metrics.exists() else []
    order = [label(exam, name) for exam in exams for name in TASKS]
    ordered = {name: shown[name] for name in order if name in shown}
    # Views are of what was sat now: a report of some tasks does not take the place of the whole one.
    whole = asked >= {name for exam in scores.values() if "benchmark" not in exam for name in exam["tasks"]}
    report = "report.html" if whole else f"report_{'_'.join(name for name in TASKS if name in asked)}.html"
    write_report(place / report, "omnidiff_jax: every task of one model", scorecard, lines, ordered, note)
    print(table(labelled(scores)))
    return scorecard


def _sat(
    what: str, folder: str, exam: str, chosen: ExamSet, tasks: Sequence[str], cases: int, data: str | None, how: How
) -> Iterator[tuple[str, dict[str, Any], list[View]]]:
    """Each task's entry and views, in the order they are finished: one worker process a core."""
    use_cache()
    workers = min(os.cpu_count() or 1, len(tasks))
    if workers == 1 or jax.default_backend() != "cpu":
        yield from (sit_task(what, folder, exam, chosen, name, cases, data, how) for name in tasks)
        return
    # Long answers first, so that the last worker does not finish alone.
    order = sorted(tasks, key=lambda name: TASKS[name].answer not in ("speech", "text_and_speech"))
    jobs = {name: (what, folder, exam, chosen, name, cases, data, how) for name in order}
    with Progress(len(tasks), label="exams") as progress, Workers(workers) as pool:
        for number, (_, found) in enumerate(pool.run(sit_task, jobs), start=1):
            progress.update(number)
            yield found


def sit_task(
    what: str, folder: str, exam: str, chosen: ExamSet, name: str, cases: int, data: str | None, how: How
) -> tuple[str, dict[str, Any], list[View]]:
    """Sits one task's exam; run in a worker process, which loads the model once."""
    use_cache()
    most = CPU_ROWS if jax.default_backend() == "cpu" else ROWS
    model = _model(what, -(-cases // -(-cases // most)), *how)  # equal batches, none of them half empty
    held_out = askable(chosen.exam(name, cases, data), model.generator)
    result = sit(held_out, model.generator, strips=min(STRIPS, len(held_out.cases)))
    _leave_samples(Path(folder) / "samples" / ("" if exam == "scenes" else exam), name, held_out, result)
    _leave_predictions(Path(folder) / "predictions" / exam, name, held_out, result)
    return name, result.entry, _views(held_out, result, model)


@functools.lru_cache(maxsize=1)
def _model(what: str, rows: int, preset: str, quantize: str) -> Model:
    return load(what, rows=rows, preset=preset, quantize=quantize)


def _views(sat: Exam, result: Result, model: Model) -> list[View]:
    views = []
    higher = result.entry["higher_is_better"]
    for i, (case, response) in enumerate(zip(sat.cases[:SHOWN], result.responses[:SHOWN], strict=True)):
        verdict = float(result.verdicts[i])
        heard = case.meta.get("heard")
        views.append(
            View(
                asked=case.request.text or (f"(speech) {heard}" if heard else sat.task.default_text),
                answered=response.text,
                expected=str(case.meta.get("answer") or case.meta.get("spoken") or case.meta.get("caption", "")),
                good=verdict >= 1 if higher else verdict == 0,
                prompt_image=case.request.image,
                image=response.image,
                prompt_audio=case.request.audio,
                audio=response.audio,
                strip=()
                if response.strip is None
                else tuple(strip(response.strip, sat.task.answer, model.generator.codecs)),
            )
        )
    return views


def _leave_samples(folder: Path, name: str, sat: Exam, result: Result) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, (case, response) in enumerate(zip(sat.cases[:SHOWN], result.responses[:SHOWN], strict=True)):
        if response.image is not None:
            write_png(folder / f"{name}_{i}.png", response.image)
        if response.audio is not None:
            write_wav(folder / f"{name}_{i}.wav", response.audio)
        lines.append(f"{i}\t{_asked(case)}\t{response.text}\n")
    (folder / f"{name}.tsv").write_text("".join(lines))


def _leave_predictions(folder: Path, name: str, sat: Exam, result: Result) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "id": case.request.request_id,
            "asked": _asked(case),
            "answered": response.text,
            "expected": str(case.meta.get("answer", "")),
            "finish": response.finish,
            "score": float(verdict),
        }
        for case, response, verdict in zip(sat.cases, result.responses, result.verdicts, strict=True)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _asked(case: Case) -> str:
    return case.request.text or str(case.meta.get("heard", ""))
