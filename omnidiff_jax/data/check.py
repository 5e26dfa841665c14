"""Looking at a source before it is trained on: what is accepted, what is not and why, and how much it is."""

import collections
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omnidiff_jax.codecs.encode import encode, fit_image, load_media
from omnidiff_jax.codecs.judgment import check_trainable
from omnidiff_jax.codecs.media import Codecs
from omnidiff_jax.data.sources import JsonlRecords, RandomAccess
from omnidiff_jax.progress import Progress
from omnidiff_jax.records import AUDIO_TAG, EncodedExample, Record, RejectedRecord, Waveform, stable_id
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
        as `check_records`.

    Raises:
        UserError: the manifest itself cannot be read.
    """
    return check_records(JsonlRecords(path, root, task))[0]


def check_records(records: RandomAccess[Record], shown: int = 0) -> tuple[dict[str, Any], list[Record]]:
    """Reads every record of a source with its media, and judges it as building and training do; one is held at a time.

    Args:
        records: raw ones.
        shown: how many of the accepted ones are given back, media in memory: those of the lowest `stable_id`.

    Returns:
        JSON: `accepted` (count), `rejected` ({reason: count}), `examples_of_rejects` ({reason: what was wrong in the
        first such record}), `tasks` ({task: count}), `languages` ({language: count} of records that name one), `sizes`
        (characters of text, images and their pixels, seconds of audio heard and spoken) and `spread` ({what: {upper
        end: count}}, ends at powers of the root of two); and the records to be shown.
    """
    rejected: collections.Counter[str] = collections.Counter()
    first: dict[str, str] = {}
    tasks: collections.Counter[str] = collections.Counter()
    languages: collections.Counter[str] = collections.Counter()
    spread: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    kept: list[tuple[int, int, Record]] = []
    sizes: collections.Counter[str] = collections.Counter(
        dict.fromkeys(("characters", "images", "pixels", "audios", "seconds_heard", "seconds_spoken"), 0)
    )
    with Progress(len(records), label="records") as progress:
        for index in range(len(records)):
            progress.update(index)
            try:
                record = load_media(records[index])
                check_trainable(record)
            except RejectedRecord as error:
                rejected[error.reason] += 1
                first.setdefault(error.reason, str(error))
                continue
            tasks[record.task] += 1
            if language := record.meta.get("language"):
                languages[str(language)] += 1
            found = _sizes(record)
            sizes.update(found)
            _count(spread, found, record)
            if shown:
                kept = sorted([*kept, (stable_id(index), index, record)], key=lambda item: item[:2])[:shown]
    report = {
        "accepted": tasks.total(),
        "rejected": dict(rejected.most_common()),
        "examples_of_rejects": first,
        "tasks": dict(sorted(tasks.items())),
        "languages": dict(languages.most_common()),
        "sizes": {name: round(value, 3) for name, value in sizes.items()},
        "spread": {
            name: {f"{2 ** (end / 2):.3g}": count for end, count in sorted(ends.items())}
            for name, ends in spread.items()
        },
    }
    return report, [record for _, _, record in kept]


def amounts_to(
    report: Mapping[str, Any], records: Sequence[Record], codecs: Codecs, length: int, rows: int
) -> dict[str, Any]:
    """Tokens that a source amounts to and steps of an epoch, from some of its records.

    Args:
        report: of `check_records`.
        records: some of the accepted ones.
        codecs: the tokenizers.
        length: tokens of a row.
        rows: of a batch.

    Returns:
        JSON: `measured` (records that were encoded), `tokens` and `steps` of all accepted ones, estimated by the mean,
        and `too_long` (how many of those measured are longer than a row).
    """
    counts = [len(example.tokens) for example in encode(records, codecs) if isinstance(example, EncodedExample)]
    tokens = round(sum(counts) / len(counts) * report["accepted"]) if counts else 0
    too_long = sum(count > length for count in counts)
    return {
        "measured": len(counts),
        "tokens": tokens,
        "steps": math.ceil(tokens / (length * rows)),
        "too_long": too_long,
    }


def shown_again(records: Sequence[Record], codecs: Codecs) -> dict[str, Any]:
    """What is left of a source's pictures behind the image tokenizer.

    Args:
        records: some of the accepted ones, media in memory.
        codecs: the tokenizers.

    Returns:
        JSON: `pictures` (count), `psnr` (mean, in dB, of each drawn again from its codes) and `psnr_flat` (of a picture
        that is its mean colour all over: a tokenizer that is no better does not know such pictures); {} where there
        are none.
    """
    size = codecs.assistant_image_size
    pictures = [fit_image(image, size) for record in records for image in record.images]
    if not pictures:
        return {}
    given = np.stack(pictures)
    drawn = np.asarray(codecs.draw(np.asarray(codecs.images(given))))
    flat = given.mean((1, 2), keepdims=True, dtype=np.float64)
    return {"pictures": len(pictures), "psnr": _psnr(given, drawn), "psnr_flat": _psnr(given, flat)}


def _psnr(given: np.ndarray, drawn: np.ndarray) -> float:
    errors = ((given.astype(np.float64) - drawn) ** 2).mean((1, 2, 3))
    return round(float(np.mean(10 * np.log10(255**2 / np.maximum(errors, 1e-2)))), 2)


def _count(spread: dict[str, collections.Counter[int]], found: Mapping[str, Any], record: Record) -> None:
    seconds = [("seconds of audio", wave.seconds) for wave in record.audios]
    sides = [("pixels of the longer side", max(image.shape[:2])) for image in record.images]
    for name, value in [("characters", found["characters"]), *seconds, *sides]:
        spread[name][math.ceil(2 * math.log2(max(value, 1e-3)))] += 1


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """Lines for people of what `check_records` found."""
    rejected = report["rejected"]
    lines = [f"{report['accepted']} accepted, {sum(rejected.values())} rejected"]
    lines += [
        f"  {count} × {reason}, such as {report['examples_of_rejects'][reason]}" for reason, count in rejected.items()
    ]
    for name in ("tasks", "languages"):
        if counts := report[name]:
            lines.append(f"{name}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    if amount := report.get("amounts_to"):
        lines.append(
            f"about {amount['tokens']} tokens, {amount['steps']} steps an epoch, by {amount['measured']} samples, "
            f"of which {amount['too_long']} are longer than a row"
        )
    if shown := report.get("shown_again"):
        lines.append(
            f"the image tokenizer shows {shown['pictures']} pictures at {shown['psnr']} dB; their mean colours "
            f"alone give {shown['psnr_flat']}"
        )
    if not report["accepted"]:
        lines.append("nothing in this set can be trained on" if rejected else "this set is empty")
    return lines


def mixture_lines(mixture: Mapping[str, Any]) -> list[str]:
    """Lines for people of what `effective.effective_mixture` found."""
    lines = []
    for stage, sources in mixture.items():
        lines.append(f"{stage}:")
        for name, found in sources.items():
            lines.append(
                f"  {name}: {found['asked']:.1%} asked, {found['samples']:.1%} of samples, {found['tokens']:.1%} of "
                f"tokens, {found['rejected']:.1%} rejected, {found['epochs']:.2f} epochs of {found['examples']}"
            )
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
