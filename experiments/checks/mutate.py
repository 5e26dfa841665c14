"""Damaged records by the thousand through `data check` and the loader: each is accepted or rejected, none is lost.

    omnidiff mutate --records=1000000
    omnidiff mutate --seconds=600 --seed=7

Every round writes a small source of one form (a manifest, JSON lines, a table in parquet, an archive, GigaSpeech's
list), damages it where its structure is (mutations.py), and reads it by its reader: accepted and rejected must add up
to what it holds, and training must judge as checking does. A round that raises anything else, takes too long or leaves
the process larger ends the check with the seed that repeats it: `--seed=N --records=1`.
"""

import collections
import contextlib
import io
import json
import os
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.readers.parquet import forget
from data_pipelines.readers.reader import open_corpus
from experiments.checks import mutations
from experiments.common import Command
from omnidiff_jax.codecs.encode import load_media
from omnidiff_jax.codecs.judgment import check_trainable
from omnidiff_jax.data.check import check_records
from omnidiff_jax.data.readers import SourceConfig
from omnidiff_jax.data.sources import JsonlRecords, RandomAccess
from omnidiff_jax.errors import UserError
from omnidiff_jax.progress import Progress
from omnidiff_jax.records import EncodedExample, Record, RejectedRecord

COMMAND = Command("mutate", __doc__)
RECORDS = COMMAND.integer("records", "damaged ones, at least", 100_000, minimum=1)
SECONDS = COMMAND.number("seconds", "after which it ends all the same", 0.0)
SEED = COMMAND.integer("seed", "of the first round", 0)
JSON = COMMAND.switch("json", "end with one line of JSON")
_ROWS = 12
_MOST_SECONDS = 10.0
_MOST_GROWTH = 512 * 2**20

# A source to read, and how many records it must have; None where damage to the container decides.
Made = tuple[Callable[[], RandomAccess[Record]], int | None]


def run() -> None:
    began, found = time.perf_counter(), collections.Counter[str]()
    wanted, limit, first = int(RECORDS.value or 0), float(SECONDS.value or 0), int(SEED.value or 0)
    seed, before, slowest = first, 0, 0.0
    with Progress(wanted, label="records") as progress:
        while found["records"] < wanted and not 0 < limit < time.perf_counter() - began:
            started = time.process_time()
            found.update(one_round(seed))
            taken = time.process_time() - started
            slowest = max(slowest, taken)
            if taken > _MOST_SECONDS:
                raise UserError(f"round --seed={seed} took {taken:.0f} s of a core, over {_MOST_SECONDS:.0f}")
            seed += 1
            # What libraries load at first is no growth.
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            if seed - first <= 200:
                before = memory
            if memory - before > _MOST_GROWTH:
                raise UserError(
                    f"at round --seed={seed} the process is {(memory - before) >> 20} MiB larger than before"
                )
            progress.update(found["records"])
    told = {**found, "rounds": seed - first, "seconds": round(time.perf_counter() - began, 1)}
    told |= {"slowest_round": round(slowest, 2), "megabytes": memory >> 20, "megabytes_after_200_rounds": before >> 20}
    print(json.dumps(told) if JSON.value else "\n".join(f"{name}: {value}" for name, value in told.items()))


def one_round(seed: int) -> dict[str, int]:
    """One damaged source, read twice.

    Args:
        seed: decides all of it.

    Returns:
        counts: `records`, `accepted`, `rejected`, `refused` (of sources that cannot be opened), and those of its form.

    Raises:
        UserError: a record is lost, or checking and training judge differently.
    """
    rng = random.Random(seed)
    form = rng.choice(list(_FORMS))
    with _room() as folder:
        open_source, expected = _FORMS[form](rng, folder)
        try:
            records = open_source()
        except UserError:
            return {"records": expected or _ROWS, "refused": expected or _ROWS, form: expected or _ROWS}
        if expected is not None and len(records) != expected:
            raise UserError(f"round --seed={seed} ({form}) has {expected} records, its reader finds {len(records)}")
        with contextlib.redirect_stderr(io.StringIO()):
            report, _ = check_records(records)
        rejected = sum(report["rejected"].values())
        trained = sum(isinstance(_drawn(records, index), EncodedExample) for index in range(len(records)))
        if report["accepted"] + rejected != len(records) or trained != report["accepted"]:
            raise UserError(
                f"round --seed={seed} ({form}): {len(records)} records, {report['accepted']} accepted and {rejected} "
                f"rejected by check, {trained} trained on"
            )
    return {"records": len(records), "accepted": report["accepted"], "rejected": rejected, form: len(records)}


def _drawn(records: RandomAccess[Record], index: int) -> EncodedExample | None:
    """What a stream would get, without tokenizers."""
    try:
        record = load_media(records[index])
        check_trainable(record)
    except RejectedRecord:
        return None
    ids = np.zeros(1, np.int32)
    return EncodedExample(record.sample_id, record.task, ids, ids > 0, np.zeros((0, 3), np.float32), ids[:0])


@contextlib.contextmanager
def _room() -> Iterator[Path]:
    """A folder for a round and its index, removed again."""
    folder = Path(tempfile.mkdtemp(prefix="omnidiff-mutate-"))
    cache = os.environ.get("OMNIDIFF_CACHE")
    os.environ["OMNIDIFF_CACHE"] = str(folder / "cache")
    try:
        (folder / "set").mkdir()
        yield folder / "set"
    finally:
        forget()
        os.environ.pop("OMNIDIFF_CACHE") if cache is None else os.environ.update(OMNIDIFF_CACHE=cache)
        shutil.rmtree(folder, ignore_errors=True)


def _asked(rng: random.Random, folder: Path) -> list[dict[str, Any]]:
    """Rows of a manifest, with damaged media beside it."""
    rows = []
    for number in range(_ROWS):
        kind = rng.choice(("wav", "png", "jpg", "text"))
        asked, key = {"wav": ("<|audio|>", "audios"), "text": ("Why?", "images")}.get(
            kind, ("<|image|>\nWhat?", "images")
        )
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": f"word {number}"}]
        row: dict[str, Any] = {"messages": turns}
        if kind != "text":
            name = f"{number}.{kind}"
            (folder / name).write_bytes(mutations.medium(rng, kind, mutations.seed_media(rng)[kind]))
            row[key] = [name]
        rows.append(row)
    return rows


def _manifest(rng: random.Random, folder: Path) -> Made:
    file = folder / "a.jsonl"
    file.write_bytes(b"".join(mutations.line(rng, row) for row in _asked(rng, folder)))
    return lambda: JsonlRecords(file), _ROWS


def _cells(rng: random.Random) -> list[dict[str, Any]]:
    rows = []
    for number in range(_ROWS):
        kind = rng.choice(("png", "jpg"))
        content = mutations.medium(rng, kind, mutations.seed_media(rng)[kind])
        cell = rng.choice(
            ({"bytes": content, "path": "a"}, {"bytes": content, "path": None}, {"bytes": None, "path": "a"}, None)
        )
        text = rng.choice(("word", "", None, "\0", "<|image|>", "x" * 4000))
        rows.append(
            {"image": cell if rng.random() < 0.3 else {"bytes": content, "path": "a"}, "text": text, "id": str(number)}
        )
    return rows


def _parquet(rng: random.Random, folder: Path) -> Made:
    import pyarrow
    from pyarrow import parquet

    file = folder / "train.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(_cells(rng)), file, row_group_size=rng.choice((2, 5, 12)))
    whole = rng.random() < 0.6
    if not whole:
        file.write_bytes(mutations.flipped(rng, file.read_bytes()))
    columns = {"image": "image", "text": "text"}
    config = SourceConfig("parquet", path=str(folder), columns=columns)
    return lambda: open_corpus("parquet", config), _ROWS if whole else None


def _tar(rng: random.Random, folder: Path) -> Made:
    given = []
    for number in range(_ROWS):
        kind = rng.choice(("png", "jpg"))
        given.append((f"{number}.{kind}", mutations.medium(rng, kind, mutations.seed_media(rng)[kind])))
        told = mutations.tree(rng, {"caption": f"word {number}", "key": str(number), "more": [1, {"a": 2}]})
        given.append((f"{number}.json", json.dumps(told).encode()))
    given, damaged = mutations.members(rng, given), rng.random() < 0.3
    (folder / "train-0.tar").write_bytes(mutations.tar(rng, given, damaged))
    return lambda: open_corpus("laion", SourceConfig("laion", path=str(folder))), None


def _lines(rng: random.Random, folder: Path) -> Made:
    rows = []
    for number in range(_ROWS):
        name = f"{number}.wav"
        (folder / name).write_bytes(mutations.medium(rng, "wav", mutations.seed_media(rng)["wav"]))
        place: Any = rng.choice((name, {"path": name}, {"path": name, "offset": 0, "size": 500}))
        rows.append({"wav": place, "text": f"word {number}", "id": f"i{number}", "language": "en"})
    (folder / "DE_B0.jsonl").write_bytes(b"".join(mutations.line(rng, row) for row in rows))
    columns = {"audio": "wav", "text": "text", "id": "id", "language": "language"}
    return lambda: open_corpus("json_lines", SourceConfig("json_lines", path=str(folder), columns=columns)), _ROWS


def _segments(rng: random.Random, folder: Path) -> Made:
    (folder / "a.wav").write_bytes(mutations.medium(rng, "wav", mutations.seed_media(rng)["wav"]))
    segments = [
        {"sid": str(n), "begin_time": n / 64, "end_time": (n + 8) / 64, "text_tn": "YES <COMMA>", "subsets": ["{XL}"]}
        for n in range(_ROWS)
    ]
    audio = {"aid": "a", "path": "a.wav", "sample_rate": 16000, "segments": segments}
    told = json.dumps(mutations.tree(rng, {"dataset": "GigaSpeech", "audios": [audio]})).encode()
    (folder / "GigaSpeech.json").write_bytes(mutations.flipped(rng, told) if rng.random() < 0.2 else told)
    return lambda: open_corpus("gigaspeech", SourceConfig("gigaspeech", path=str(folder), split="XL")), None


_FORMS: Mapping[str, Callable[[random.Random, Path], Made]] = {
    "manifest": _manifest,
    "json_lines": _lines,
    "parquet": _parquet,
    "tar": _tar,
    "gigaspeech": _segments,
}


if __name__ == "__main__":
    COMMAND.main(run)
