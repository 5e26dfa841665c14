"""Scorecard and report of a trained run."""

import concurrent.futures
import functools
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.scenes.exams import exam
from experiments.common import use_compilation_cache
from experiments.programs.omni import load_generator, newest_step
from experiments.programs.run import plain
from experiments.programs.tokenizers import Tokenizers, load_tokenizers
from omnidiff_jax.evaluation.generate import Generator
from omnidiff_jax.evaluation.report import View, write_report
from omnidiff_jax.evaluation.scorecard import Case, Exam, Result, read_scorecard, sit, table, write_scorecard
from omnidiff_jax.media.audio import write_wav
from omnidiff_jax.media.image import write_png
from omnidiff_jax.tasks.registry import TASKS
from omnidiff_jax.training.operations.metrics import read_metrics
from omnidiff_jax.vocabulary import Vocabulary

SHOWN = 6  # answers of each task in the report
STRIPS = 2  # of those with their decoding steps
COMPOSITIONAL = ("captioning", "t2i", "inpainting")


def evaluate_run(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    cases: int,
    tasks: Sequence[str] = tuple(TASKS),
    seconds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Sits every task's exam with the newest checkpoint; leaves `scorecard.json`, `report.html` and `samples/`.

    Args:
        config: the checkpoint's.
        workdir: of the run.
        cases: held-out cases of each task.
        tasks: names of the tasks.
        seconds: times spent before, for the scorecard.

    Returns:
        the scorecard.
    """
    folder = Path(workdir)
    entries: dict[str, Any] = {}
    views: dict[str, list[View]] = {}
    began = time.perf_counter()
    step = newest_step(workdir)
    earlier = read_scorecard(folder, step)
    for name, entry, shown in _sat(plain(config), str(folder), tasks, cases):
        entries[name], views[name] = entry, shown
        print(
            f"{name}: {entry['metric']} {entry['value']:.3f} (ceiling {entry['ceiling']:.3f}, "
            f"floor {entry['floor']:.3f}), {time.perf_counter() - began:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    # What was not asked now stays as it was, if it is of the same checkpoint.
    entries = earlier.get("tasks", {}) | entries
    entries = {name: entries[name] for name in TASKS if name in entries}
    views = {name: views[name] for name in entries if name in views}
    spent = earlier.get("seconds", {}) | dict(seconds or {}) | {"evaluate": time.perf_counter() - began}
    scorecard = write_scorecard(folder, entries, spent, step)
    metrics = folder / "metrics.jsonl"
    lines = read_metrics(metrics) if metrics.exists() else []
    # Views are of what was sat now: a report of some tasks does not take the place of the whole one.
    report = "report.html" if set(tasks) >= set(entries) else f"report_{'_'.join(tasks)}.html"
    write_report(folder / report, "omnidiff_jax: every task of one model", scorecard, lines, views)
    print(table(entries))
    return scorecard


def _sat(
    config: dict[str, Any], workdir: str, tasks: Sequence[str], cases: int
) -> Iterator[tuple[str, dict[str, Any], list[View]]]:
    """Each task's entry and views, in the order they are finished: one worker process a core."""
    use_compilation_cache()
    workers = min(os.cpu_count() or 1, len(tasks))
    if workers == 1 or jax.default_backend() != "cpu":
        yield from (sit_task(config, workdir, name, cases) for name in tasks)
        return
    context = multiprocessing.get_context("spawn")
    # Long answers first, so that the last worker does not finish alone.
    order = sorted(tasks, key=lambda name: TASKS[name].answer not in ("speech", "text_and_speech"))
    with concurrent.futures.ProcessPoolExecutor(workers, context, initializer=use_compilation_cache) as pool:
        jobs = [pool.submit(sit_task, config, workdir, name, cases) for name in order]
        yield from (job.result() for job in concurrent.futures.as_completed(jobs))


def sit_task(config: dict[str, Any], workdir: str, name: str, cases: int) -> tuple[str, dict[str, Any], list[View]]:
    """Sits one task's exam; run in a worker process, which loads the model once."""
    generator, tokenizers = _model(json.dumps(config), workdir, min(cases, 64))
    held_out = exam(name, cases)
    result = sit(held_out, generator, strips=min(STRIPS, cases))
    if name in COMPOSITIONAL:
        result.entry["compositional"] = sit(exam(name, cases, "compositional"), generator).entry["value"]
    _leave_samples(Path(workdir) / "samples", name, held_out, result)
    return name, result.entry, _views(held_out, result, tokenizers)


@functools.lru_cache(maxsize=1)
def _model(config: str, workdir: str, rows: int) -> tuple[Generator, Tokenizers]:
    settings = ConfigDict(json.loads(config))
    return load_generator(settings, workdir, rows=rows), load_tokenizers(settings)


def _views(sat: Exam, result: Result, tokenizers: Tokenizers) -> list[View]:
    views = []
    higher = result.entry["higher_is_better"]
    for i, (case, response) in enumerate(zip(sat.cases[:SHOWN], result.responses[:SHOWN], strict=True)):
        verdict = float(result.verdicts[i])
        strip: tuple[Any, ...] = ()
        if response.strip is not None:
            strip = _strip(response.strip, sat, tokenizers)
        heard = case.meta.get("heard")
        asked = case.request.text or (f"(speech) {heard}" if heard else sat.task.default_text)
        expected = str(case.meta.get("answer") or case.meta.get("spoken") or case.meta.get("caption", ""))
        views.append(
            View(
                asked=asked,
                answered=response.text,
                expected=expected,
                good=verdict >= 1 if higher else verdict == 0,
                prompt_image=case.request.image,
                image=response.image,
                prompt_audio=case.request.audio,
                audio=response.audio,
                strip=strip,
            )
        )
    return views


def _strip(steps: np.ndarray, sat: Exam, tokenizers: Tokenizers, frames: int = 9) -> tuple[Any, ...]:
    """Some of the decoding steps: pictures with their masked codes gray, text with its masked tokens as dots, speech as
    one picture of cells."""
    vocabulary, grid = tokenizers.vocabulary, tokenizers.image_grid
    chosen = steps[np.unique(np.linspace(0, len(steps) - 1, frames).round().astype(int))]
    if sat.task.answer in ("image", "hole"):
        start = int(np.argmax(chosen[0] == vocabulary.begin_image)) + 1
        tokens = chosen[:, start : start + grid[0] * grid[1]]
        known = vocabulary.image.contains(tokens)
        pictures = tokenizers.voices.draw(np.where(known, vocabulary.image.decode(tokens), 0))
        cell = pictures.shape[1] // grid[0]
        shown = np.kron(known.reshape(-1, *grid), np.ones((1, cell, cell), bool))[..., None]
        return tuple(np.where(shown, pictures, np.uint8(150)))
    if sat.task.answer == "text":
        return tuple(_partly(step, tokenizers) for step in chosen)
    return (_cells(chosen, vocabulary),)


def _cells(steps: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Decoding steps as rows of cells: gray is masked, green text, a blue each a speech code, white the rest."""
    kinds = [steps == vocabulary.mask, vocabulary.text.contains(steps), vocabulary.speech.contains(steps)]
    shade = (steps % 97)[..., None] / 97.0 * np.array([90, 110, 50]) + np.array([30, 70, 170])
    fills = [np.full_like(shade, 190), np.broadcast_to([42.0, 157.0, 92.0], shade.shape), shade]
    pixels = np.select([kind[..., None] for kind in kinds], fills, 255.0).astype(np.uint8)
    return np.kron(pixels, np.ones((4, 4, 1), np.uint8))


def _partly(tokens: np.ndarray, tokenizers: Tokenizers) -> str:
    """Text in the middle of decoding: what is known up to the turn's end, a dot for each mask."""
    vocabulary, text = tokenizers.vocabulary, tokenizers.codecs.layout.text
    shown = []
    for masked, run in itertools.groupby(tokens.tolist(), lambda token: token == vocabulary.mask):
        ids = list(itertools.takewhile(lambda token: token != vocabulary.im_end, run))
        shown.append("·" * len(ids) if masked else text.decode([i for i in ids if vocabulary.text.contains(i)]).strip())
    return " ".join(filter(None, shown))


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


def _asked(case: Case) -> str:
    return case.request.text or str(case.meta.get("heard", ""))
