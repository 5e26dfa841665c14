"""What a benchmark's answers amount to, beside what was published: the entry of the scorecard, and tables of them."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from omnidiff_jax.evaluation.benchmark import Answered, Benchmark, Census, Protocol
from omnidiff_jax.evaluation.intervals import bootstrap
from omnidiff_jax.evaluation.stages import Gathered
from omnidiff_jax.tasks.registry import task


def standing(
    benchmark: Benchmark,
    name: str,
    protocol: Protocol,
    found: Census,
    gathered: Gathered,
    *,
    judge: str,
    decoding: Mapping[str, Any],
    settings: str = "own",
) -> dict[str, Any]:
    """The entry of an exam in `scorecard.json`.

    Args:
        name: of the protocol.
        found: what is there of the data.
        judge: its name with its hash; "" where the rule of the protocol judges.
        decoding: by task, JSON.
        settings: the name of the set that it is, or "own".
    """
    answered = gathered.answered
    scores = benchmark.score(answered, protocol)
    top = benchmark.score(gathered.truths, protocol).numbers if gathered.truths else {}
    bottom = benchmark.score(gathered.others, protocol).numbers
    clusters = [one.item.cluster or f"{one.item.split}\0{one.item.name}" for one in answered]
    if len(set(clusters)) == 1:  # of one speaker alone nothing can be drawn but his sentences
        clusters = [one.item.name for one in answered]
    total = sum(found.counts.values())
    parts = []
    for metric, ratios in scores.numbers.items():
        value = ratios.value
        parts.append(
            {
                "metric": metric,
                "value": value,
                "interval": bootstrap(ratios, clusters),
                "higher_is_better": benchmark.higher_is_better,
                "n": len(answered),
                "ceiling": top[metric].value if metric in top else value,
                "floor": bottom[metric].value if metric in bottom else value,
                "judge": judge or protocol.reads or protocol.normaliser,
            }
        )
    entry = parts[0] | ({"also": parts[1:]} if parts[1:] else {})
    # A number of some of the questions does not stand beside one of all of them.
    whole = found.whole and len(answered) == total
    known = {part["metric"] for part in parts}
    beside = [
        {"model": one.model, "metric": one.metric, "value": one.value, "source": one.source}
        for one in benchmark.published
        if whole and one.metric in known
    ]
    unreadable = {"references that cannot be read": gathered.unreadable} if gathered.unreadable else {}
    return {
        "metrics": {part["metric"]: part["value"] for part in parts},
        "n": len(answered),
        "of": total,
        "whole": whole,
        "unparsed": scores.unparsed,
        "skipped": total - len(answered),
        "notes": {**scores.notes, **unreadable},
        "protocol": name,
        "protocol_note": protocol.note,
        "judge": judge or protocol.reads or protocol.normaliser,
        "data": found.digest,
        "decoding": dict(decoding),
        "decoding_set": settings,
        "published": beside,
        "seconds": seconds(answered),
        "benchmark": benchmark.summary,
        "tasks": {name: entry},
    }


def seconds(answered: Sequence[Answered]) -> float:
    """Spent on the answers."""
    return sum(float(one.answer.get("seconds", 0.0)) for one in answered)


_HEAD = (
    *("exam", "metric", "published", "ours", "95 %", "n of n", "unparsed", "skipped", "protocol", "decoding", "judge"),
    *("data", "seconds"),
)
_NUMBERS = ("ours", "95 %", "n of n", "unparsed", "skipped", "seconds")


def rows(exams: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The benchmarks of a scorecard as a table, the head first: headline metrics, and others that were published."""
    table: list[tuple[str, ...]] = [_HEAD]
    for exam, entry in exams.items():
        if "benchmark" not in entry:
            continue
        for result in entry["tasks"].values():
            parts = (result, *result.get("also", ()))
            stated = {one["metric"] for one in entry["published"]}
            for part in (part for part in parts if part is parts[0] or part["metric"] in stated):
                table.append(_row(exam, entry, part))
    return table


def _row(exam: str, entry: Mapping[str, Any], part: Mapping[str, Any]) -> tuple[str, ...]:
    published = [f"{one['value']:g} ({one['model']})" for one in entry["published"] if one["metric"] == part["metric"]]
    low, high = part["interval"]
    return (
        exam,
        part["metric"],
        "; ".join(published) or ("not set beside a part" if not entry["whole"] else "none"),
        f"{part['value']:.4g}",
        f"{low:.4g} to {high:.4g}",
        f"{entry['n']} of {entry['of']}",
        str(entry["unparsed"]),
        str(entry["skipped"]),
        entry["protocol"],
        _decoding(entry),
        entry["judge"],
        entry["data"][:12],
        f"{entry['seconds']:.0f}",
    )


def _decoding(entry: Mapping[str, Any]) -> str:
    """The set's name, and of each task how long answers are and in how many steps: "own (vqa: L 8, T 1 L)"."""
    told = []
    for name, settings in entry["decoding"].items():
        sampler = settings["sampler"]
        length = "by rule" if settings.get("adaptive") else settings["length"]
        positions = "" if task(name).answer in ("image", "hole") else f"L {length}, "
        told.append(f"{name}: {positions}T {sampler['steps'] or format(sampler['steps_per_token'], '.2g') + ' L'}")
    return f"{entry['decoding_set']} ({'; '.join(told)})" if told else entry["decoding_set"]


def markdown(exams: Mapping[str, Mapping[str, Any]]) -> str:
    """The table in Markdown, with what the protocols rest on under it."""
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows(exams)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in body)]
    notes = [f"- {exam}, {told}" for exam, told in _notes(exams)]
    return "\n".join([*lines, "", *notes]) + "\n"


def page(exams: Mapping[str, Mapping[str, Any]]) -> str:
    """The table as HTML; "" where no benchmark was sat."""
    head, *body = rows(exams)
    if not body:
        return ""
    marks = [" class=n" if name in _NUMBERS else "" for name in head]
    lines = ["".join(f"<td{m}>{html.escape(cell)}" for m, cell in zip(marks, row, strict=True)) for row in body]
    notes = "<br>".join(html.escape(f"{exam}, {told}") for exam, told in _notes(exams))
    top = "".join(f"<th{mark}>{html.escape(cell)}" for mark, cell in zip(marks, head, strict=True))
    table = f"<table class=dense><tr>{top}<tr>{'<tr>'.join(lines)}</table>"
    return f"<div class=wide tabindex=0>{table}</div><p class=label>{notes}</p>"


def _notes(exams: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    found = []
    for exam, entry in exams.items():
        if "benchmark" in entry:
            counts = "".join(f"; {name}: {count}" for name, count in entry["notes"].items())
            found.append((exam, f"{entry['protocol']}: {entry['protocol_note']}{counts}"))
    return found
