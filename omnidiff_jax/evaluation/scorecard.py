"""The scorecard on disk and as a table: exams and tasks, each beside its judge's own ceiling and floor."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnidiff_jax.files import write_bytes

# Files of a workdir that exams read before they write.
READ = ("scorecard.json", "metrics.jsonl")
_PACKAGES = ("omnidiff_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


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
    workdir: str | os.PathLike[str],
    tasks: Mapping[str, Mapping[str, Any]],
    exams: Mapping[str, Mapping[str, Any]],
    seconds: Mapping[str, float],
    step: int,
) -> dict[str, Any]:
    """Writes `scorecard.json` of checkpoint `step`; it appears whole or not at all.

    Args:
        tasks: the entries of Scenes, by task.
        exams: of every exam, by name.
        seconds: spent on what.

    Returns:
        its content.
    """
    content = {
        "step": step,
        "tasks": dict(tasks),
        "exams": dict(exams),
        "seconds": dict(seconds),
        "versions": versions(),
    }
    write_bytes(Path(workdir) / "scorecard.json", (json.dumps(content, indent=2) + "\n").encode())
    return content


def exam_entry(entries: Mapping[str, Mapping[str, Any]], of: int) -> dict[str, Any]:
    """An exam's part of the scorecard from its tasks' entries; with several of them a metric is "TASK: NAME".

    Args:
        entries: by task.
        of: cases that the exam has, sat or not.
    """
    metrics, judges = {}, set()
    for task, entry in entries.items():
        for part in (entry, *entry.get("also", ())):
            metrics[f"{task}: {part['metric']}" if len(entries) > 1 else part["metric"]] = part["value"]
            judges.add(part["judge"])
    return {
        "metrics": metrics,
        "n": sum(entry["n"] for entry in entries.values()),
        "of": of,
        "unparsed": sum(entry.get("unparsed", 0) for entry in entries.values()),
        "skipped": sum(entry.get("skipped", 0) for entry in entries.values()),
        "protocol": "as recorded here",
        "judge": ", ".join(sorted(judges)),
        "decoding": {task: entry["decoding"] for task, entry in entries.items()},
        "tasks": dict(entries),
    }


def label(exam: str, task: str) -> str:
    """How a task of an exam is called where several stand together; the Scenes exams are called after their task."""
    return task if exam == "scenes" else f"{exam}: {task}"


def labelled(exams: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The entries of all exams by label."""
    return {label(exam, task): entry for exam, found in exams.items() for task, entry in found["tasks"].items()}


def span(part: Mapping[str, Any]) -> str:
    """The confidence interval of an entry, "0.93-0.98"; "" in scorecards written before there was one."""
    return "-".join(f"{bound:.2f}" for bound in part.get("interval", ()))


def table(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The scorecard as lines of text."""
    rows = [("task", "metric", "value", "95 %", "ceiling", "floor", "n", "judge")]
    for name, entry in entries.items():
        for part in (entry, *entry.get("also", ())):
            arrow = "" if part["higher_is_better"] else " (lower is better)"
            value, ceiling, floor = (f"{part[k]:.3f}" for k in ("value", "ceiling", "floor"))
            rows.append(
                (name, part["metric"] + arrow, value, span(part), ceiling, floor, str(part["n"]), part["judge"])
            )
        for further, part in entry.get("further", {}).items():
            first = {key: entry[key] for key in ("metric", "higher_is_better", "judge")} | part
            for one in (first, *part.get("also", ())):
                arrow = "" if one["higher_is_better"] else " (lower is better)"
                value, metric = f"{one['value']:.3f}", f"{further}: {one['metric']}{arrow}"
                rows.append((name, metric, value, span(one), "", "", str(one["n"]), one["judge"]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
