"""Building an SDVI set on disk, in the released form: in parts, by worker processes, with a data card beside it.

A part that is done stays: a build that was killed goes on with the next one. The bytes are the same for any number of
processes, and however often it was started.
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

from data_pipelines.sdvi.card import CARD, README, Tally, card, readme
from data_pipelines.sdvi.opening import opened
from data_pipelines.sdvi.records import SdviConfig
from omnidiff_jax.config import to_dict
from omnidiff_jax.errors import UserError, notice
from omnidiff_jax.files import check_place, write_bytes
from omnidiff_jax.media.audio import write_wav
from omnidiff_jax.media.image import png_bytes
from omnidiff_jax.progress import Progress
from omnidiff_jax.records import Record
from omnidiff_jax.workers import Workers, advance

DATA = "data.jsonl"
_PARTS, _SETTINGS = "parts", "settings.json"
PART = 256  # candidates
_TOGETHER = 16  # of them, spoken at once
_IN_A_FOLDER = 1000  # of them


def build(config: SdviConfig, target: Path, processes: int | None = None) -> dict[str, Any]:
    """Builds an SDVI set: `data.jsonl`, `audios/`, `images/`, and the card, `card.json` and `README.md`.

    Args:
        config: of the set.
        target: its folder: a new one, or one in which the same set was begun. Images are hard links where the file
            system allows.
        processes: worker processes; None = one a core.

    Returns:
        the card.

    Raises:
        UserError: something cannot be opened or written, or the folder holds something else.
    """
    made = opened(config)
    if not made.gate.recogniser:
        notice("sdvi: nobody listens to the clips; name a recogniser: gate.judge = 'whisper:FOLDER'")
    parts = _begun(target, {"fingerprint": made.fingerprint, "part": PART, "settings": to_dict(config)})
    total = len(made.records)
    starts = range(0, total, PART)
    missing = [first for first in starts if not _part(parts, first).is_file()]
    jobs = {first: (config, str(target), first, min(first + PART, total)) for first in missing}
    workers = min(processes or os.cpu_count() or 1, len(jobs))
    if workers > 1:
        waiting = sum(last - first for *_, first, last in jobs.values())
        with Progress(waiting, label="candidate") as progress, Workers(workers) as pool:
            for _ in pool.run(build_part, jobs, progress):
                pass
    else:
        for arguments in jobs.values():
            build_part(*arguments)
    tally = Tally()
    with (parts / DATA).open("w", encoding="utf-8") as lines:
        for first in starts:
            done = json.loads(_part(parts, first).read_bytes())
            lines.writelines(f"{line}\n" for line in done["lines"])
            tally.add(Tally.of(done["tally"]))
    told = card(config, made, tally)
    write_bytes(target / CARD, json.dumps(told, indent=1).encode())
    write_bytes(target / README, readme(told).encode())
    os.replace(parts / DATA, target / DATA)
    shutil.rmtree(parts)
    return told


def build_part(config: SdviConfig, target: str, first: int, last: int) -> None:
    """Makes the candidates `first` to `last` - 1; run in a worker process."""
    folder, records = Path(target), opened(config).records
    tally, lines = Tally(), []
    for begin in range(first, last, _TOGETHER):
        group = range(begin, min(begin + _TOGETHER, last))
        for number, made in zip(group, records.made(group), strict=True):
            tally.count(made)
            if made.record is not None:
                lines.append(json.dumps(_stored(made.record, folder, number)))
        advance(len(group))
    write_bytes(_part(folder / _PARTS, first), json.dumps({"lines": lines, "tally": tally.to_dict()}).encode())


def _begun(target: Path, settings: dict[str, Any]) -> Path:
    """The folder of parts of a set that is new, or was begun with these settings."""
    check_place(target)
    parts = target / _PARTS
    noted = parts / _SETTINGS
    if noted.is_file():
        if json.loads(noted.read_bytes()) != settings:
            raise UserError(f"{target} was begun with other settings or another source; name a new folder or remove it")
        return parts
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists already; name a new folder or remove it")
    for name in ("audios", "images"):
        (target / name).mkdir(parents=True, exist_ok=True)
    write_bytes(noted, json.dumps(settings).encode())
    return parts


def _part(parts: Path, first: int) -> Path:
    return parts / f"{first:012d}.json"


def _stored(record: Record, folder: Path, number: int) -> dict[str, Any]:
    """The record of candidate `number` as a line of the released format, its media written to `folder`."""
    images, audios = [], []
    # By number: ids of 32 bits meet in large sets.
    place = f"{number // _IN_A_FOLDER:06d}/{number:09d}"
    for i, image in enumerate(record.images):
        name = f"images/{place}_{i}"
        if isinstance(image, str):
            images.append(name + Path(image).suffix)
            _link(image, folder / images[-1])
        else:
            images.append(f"{name}.png")
            write_bytes(folder / images[-1], png_bytes(image))
    for i, waveform in enumerate(record.audios):
        audios.append(f"audios/{place}_{i}.wav")
        write_wav(folder / audios[-1], waveform)
    messages = [dataclasses.asdict(message) for message in record.messages]
    return {"task": record.task, "messages": messages, "images": images, "audios": audios}


def _link(image: str, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)  # of a part that was not finished
    try:
        os.link(os.path.realpath(image), place)
    except OSError:  # another file system, or one without links
        shutil.copyfile(image, place)
