"""Validating a JSONL set before it is trained on."""

import collections
import os
from collections.abc import Mapping
from typing import Any

from omnidiff_jax.codecs.encode import load_media
from omnidiff_jax.codecs.judgment import check_trainable
from omnidiff_jax.data.sources import JsonlRecords
from omnidiff_jax.records import AUDIO_TAG, Record, RejectedRecord, Waveform
from omnidiff_jax.tasks.chat import media_roles


def check_jsonl(
    path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None, task: str | None = None
) -> dict[str, Any]:
    """Reads every record of a manifest with its media, and judges it as building and training do.

    Args:
        path: the JSONL file.
        root: folder of the media; the manifest's own by default.
        task: that every record is to train; None = as each says.

    Returns:
        JSON: `accepted` (count), `rejected` ({reason: count}), `examples_of_rejects` ({reason: what was wrong in the
        first such record}), `tasks` ({task: count}) and `sizes` (characters of text, images and their pixels, seconds
        of audio heard and spoken).

    Raises:
        UserError: the manifest itself cannot be read.
    """
    records = JsonlRecords(path, root, task)
    rejected: collections.Counter[str] = collections.Counter()
    first: dict[str, str] = {}
    tasks: collections.Counter[str] = collections.Counter()
    sizes: collections.Counter[str] = collections.Counter(
        dict.fromkeys(("characters", "images", "pixels", "audios", "seconds_heard", "seconds_spoken"), 0)
    )
    for index in range(len(records)):
        try:
            record = load_media(records[index])
            check_trainable(record)
        except RejectedRecord as error:
            rejected[error.reason] += 1
            first.setdefault(error.reason, str(error))
            continue
        tasks[record.task] += 1
        sizes.update(_sizes(record))
    return {
        "accepted": tasks.total(),
        "rejected": dict(rejected.most_common()),
        "examples_of_rejects": first,
        "tasks": dict(sorted(tasks.items())),
        "sizes": {name: round(value, 3) for name, value in sizes.items()},
    }


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """Lines for people of what `check_jsonl` found."""
    rejected = report["rejected"]
    lines = [f"{report['accepted']} accepted, {sum(rejected.values())} rejected"]
    lines += [
        f"  {count} × {reason}, such as {report['examples_of_rejects'][reason]}" for reason, count in rejected.items()
    ]
    if not report["accepted"]:
        lines.append("nothing in this set can be trained on" if rejected else "this set is empty")
    return lines


def _sizes(record: Record) -> dict[str, Any]:
    audios: list[tuple[Waveform, str]] = list(zip(record.audios, media_roles(record.messages, AUDIO_TAG), strict=True))
    return {
        "characters": sum(len(message.content) for message in record.messages),
        "images": len(record.images),
        "pixels": sum(image.shape[0] * image.shape[1] for image in record.images),
        "audios": len(audios),
        "seconds_heard": sum(wave.seconds for wave, role in audios if role != "assistant"),
        "seconds_spoken": sum(wave.seconds for wave, role in audios if role == "assistant"),
    }
