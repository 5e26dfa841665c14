"""Sitting public benchmarks: data checked, answers generated, judged and scored, beside what was published."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from omnidiff_jax.config import choose, to_dict
from omnidiff_jax.errors import UserError, notice
from omnidiff_jax.evaluation import judging, stages
from omnidiff_jax.evaluation.benchmark import Benchmark, Census, Item, Protocol, census, limited
from omnidiff_jax.evaluation.exam import named
from omnidiff_jax.evaluation.judges.named import judge_for
from omnidiff_jax.evaluation.places import Place, open_place
from omnidiff_jax.evaluation.report import write_report
from omnidiff_jax.evaluation.scorecard import read_scorecard, write_scorecard
from omnidiff_jax.evaluation.standing import markdown, rows, standing
from omnidiff_jax.files import write_bytes
from omnidiff_jax.sharding.distributed import barrier, is_primary
from omnidiff_jax.tasks.decodings import DECODINGS
from omnidiff_jax.tasks.registry import Decoding, task

STAGES = ("generate", "judge", "score")
FOLDER = "benchmarks"
SETTINGS = "decoding.json"


@dataclasses.dataclass(frozen=True)
class Sitting:
    """How benchmarks are sat.

    Attributes:
        model: its name, which answers are kept under.
        step: of its checkpoint, 0 where there is none.
        protocol: by name; "" = each benchmark's default.
        decoding: "protocol" = the set that it names, "own" = as the model is decoded anyway, or a set's name.
        judges: words of `judges.named`.
        limit: most items of each split, 0 = all.
        through: which of `STAGES`.
        share: which samples are this process's.
        rows: samples that are asked together.
    """

    model: str
    step: int = 0
    protocol: str = ""
    decoding: str = "protocol"
    judges: tuple[str, ...] = ()
    limit: int = 0
    through: tuple[str, ...] = STAGES
    share: stages.Share = stages.Share()
    rows: int = 64


# Settings by task, {} = its own -> a model that is decoded so.
Opened = Callable[[Mapping[str, Decoding]], stages.Answers]


def chosen_protocol(exam: str, benchmark: Benchmark, word: str) -> tuple[str, Protocol]:
    """The protocol that a word names, "" = the default; raises UserError where the benchmark has none of the name."""
    name = word or next(iter(benchmark.protocols))
    return name, choose(benchmark.protocols, name, f"protocol of {exam}")


def check(exam: str, benchmark: Benchmark, data: str, word: str = "") -> str:
    """What is there of a benchmark's data, in lines; nothing is asked.

    Raises:
        UserError: nothing that can be read, or an item that is there twice.
    """
    _, protocol = chosen_protocol(exam, benchmark, word)
    found = census(benchmark, list(benchmark.read(data, protocol)))
    counts = ", ".join(f"{split} {count}" for split, count in found.counts.items())
    lines = [f"{exam}: {sum(found.counts.values())} items ({counts or 'none'}), data {found.digest[:12]}"]
    lines += [f"  {line}" for line in _faults(benchmark, found)] or ["  whole"]
    return "\n".join(lines)


def _faults(benchmark: Benchmark, found: Census) -> list[str]:
    lines = list(found.wrong)
    if found.absent:
        lines.append(f"{found.absent} media are missing: {', '.join(found.missing)}{' …' if found.absent > 5 else ''}")
    return [*lines, f"to be had from {benchmark.source}"] if lines else []


def sit(
    exam: str,
    benchmark: Benchmark,
    data: str,
    folder: str | os.PathLike[str],
    sitting: Sitting,
    opened: Opened,
) -> dict[str, Any]:
    """Goes through the stages that are asked for, each from where it was stopped.

    Args:
        data: a folder or file of the benchmark.
        folder: where results go, or a URL; this exam's lie in `benchmarks/EXAM-PROTOCOL`.
        opened: gives the model; not called where nothing is left to be generated.

    Returns:
        the exam's entry for the scorecard; {} before the last stage.

    Raises:
        UserError: data, protocol or judge that cannot be, or results of another model in `folder`.
    """
    name, protocol = chosen_protocol(exam, benchmark, sitting.protocol)
    judge = judge_for(list(sitting.judges), protocol.judge) if set(sitting.through) & {"judge", "score"} else None
    everything = list(benchmark.read(data, protocol))
    found = census(benchmark, everything)
    if faults := _faults(benchmark, found):
        notice(f"{exam}: {named(faults)}")
    items = limited(everything, sitting.limit)
    if not items:
        raise UserError(f"{exam}: {data} holds no items; {benchmark.layouts}")
    place = open_place(folder) / FOLDER / f"{exam}-{name}"
    word = protocol.decoding if sitting.decoding == "protocol" else sitting.decoding
    settings = {} if word in ("", "own") else _set(word, items)
    mesh = stages.Share(jax.process_index(), jax.process_count())
    if mesh.of > 1 and sitting.share.of > 1:
        raise UserError(f"{mesh.of} processes of one mesh have all samples in common; leave out --share")
    if "generate" in sitting.through:
        told = {"model": sitting.model, "step": sitting.step, "data": found.digest, "protocol": name}
        stages.open_run(place, told | {"decoding": word or "own"})
        _generate(exam, items, protocol, opened, settings, place, sitting)
    if "judge" in sitting.through and judge is not None:
        judged = judging.judge_speech if protocol.judge == "speech" else judging.judge_pictures
        barrier(f"{exam}: answers are written")
        judged(items, judge, place, mesh if mesh.of > 1 else sitting.share)
    barrier(f"{exam}: everything is judged")
    if "score" not in sitting.through or not is_primary():
        return {}
    before = stages.read_told(place, "run.json").get("data", found.digest)
    if before != found.digest:
        raise UserError(
            f"{place} holds answers to other data ({before[:12]}, now {found.digest[:12]}); name them by --data"
        )
    gathered = stages.gather(items, protocol, place, getattr(judge, "name", ""))
    entry = standing(
        benchmark,
        name,
        protocol,
        found,
        gathered,
        judge=getattr(judge, "name", ""),
        decoding=stages.read_told(place, SETTINGS),
        settings=stages.read_told(place, "run.json").get("decoding", ""),
    )
    for file, content in benchmark.exports(gathered.answered, protocol).items():
        place.write(f"exports/{file}", content if isinstance(content, bytes) else content.encode(errors="replace"))
    place.write("score.json", (json.dumps(entry, indent=1) + "\n").encode())
    return entry


def _set(word: str, items: Sequence[Item]) -> dict[str, Decoding]:
    found = choose(DECODINGS, word, "set of decoding settings")
    return {task: found[task] for task in dict.fromkeys(item.task for item in items) if task in found}


def _generate(
    exam: str,
    items: Sequence[Item],
    protocol: Protocol,
    opened: Opened,
    settings: Mapping[str, Decoding],
    place: Place,
    sitting: Sitting,
) -> None:
    if not stages.left_of(items, place, sitting.share):
        return
    model = opened(settings)
    tasks = dict.fromkeys(item.task for item in items)
    stages.open_run(place, {name: to_dict(model.decoding(task(name))) for name in tasks}, SETTINGS)
    stages.generate(exam, items, protocol, model, place, sitting.share, sitting.rows)


def publish(folder: Path, entries: Mapping[str, Mapping[str, Any]], step: int) -> str:
    """Puts exams into `scorecard.json`, `benchmarks.md` and a report; gives the table in lines.

    Args:
        entries: by exam; what the scorecard has of others stays.
        step: of the checkpoint.
    """
    earlier = read_scorecard(folder, step)
    exams = dict(earlier.get("exams", {})) | dict(entries)
    tasks = exams.get("scenes", {}).get("tasks", {})
    scorecard = write_scorecard(folder, tasks, exams, earlier.get("seconds", {}), step)
    write_bytes(folder / "benchmarks.md", markdown(exams).encode())
    alone = all("benchmark" in entry for entry in exams.values())
    report = "report.html" if alone else "report_benchmarks.html"
    write_report(folder / report, "omnidiff_jax: public benchmarks", scorecard, [], {})
    table = rows(exams)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )
