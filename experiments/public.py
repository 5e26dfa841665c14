"""The public benchmarks of `omnidiff evaluate`: which exams they are, and what its flags say of them."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.benchmarks import latency
from data_pipelines.benchmarks.choice import MMMU, SEED2PLUS
from data_pipelines.benchmarks.coco import COCO_S2I, COCO_T2I
from data_pipelines.benchmarks.librispeech import LIBRISPEECH
from data_pipelines.benchmarks.libritts import LIBRITTS
from data_pipelines.benchmarks.yes_no import MME, MME_SPOKEN, POPE
from omnidiff_jax.answering.load import load
from omnidiff_jax.config import choose
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.benchmark import Benchmark
from omnidiff_jax.evaluation.benchmarking import Opened, Sitting, check, publish, sit
from omnidiff_jax.evaluation.scorecard import READ
from omnidiff_jax.evaluation.stages import Share
from omnidiff_jax.files import updated
from omnidiff_jax.sharding.distributed import is_primary
from omnidiff_jax.tasks.registry import Decoding

BENCHMARKS: Mapping[str, Benchmark] = {
    "librispeech": LIBRISPEECH,
    "libritts": LIBRITTS,
    "pope": POPE,
    "mme": MME,
    "seed2plus": SEED2PLUS,
    "mmmu": MMMU,
    "coco_t2i": COCO_T2I,
    "coco_s2i": COCO_S2I,
    "mme_spoken": MME_SPOKEN,
}
LATENCY = "latency"
PUBLIC = (*BENCHMARKS, LATENCY)


def data_of(exams: Sequence[str], words: Sequence[str]) -> dict[str, str]:
    """The data of each exam: of `EXAM=PATH`, else of a path, in which a folder of the exam's name is its own.

    Raises:
        UserError: an exam without data, or two paths without names.
    """
    named = {name: path for name, _, path in (word.partition("=") for word in words) if path and name in BENCHMARKS}
    plain = [word for word in words if word.partition("=")[0] not in named]
    if len(plain) > 1:
        raise UserError(f"--data={plain[1]}: several paths are told apart by exam: --data=mme=DIR --data=pope=DIR")
    found = {}
    for exam in exams:
        if exam not in named and not plain:
            raise UserError(f"--exam={exam} needs --data: {BENCHMARKS[exam].layouts}; {BENCHMARKS[exam].source}")
        inner = f"{plain[0]}/{exam}" if plain else ""
        found[exam] = named.get(exam) or (inner if Path(inner).is_dir() else plain[0])
    return found


def share_of(word: str) -> Share:
    """`I/N`, I from 0; raises UserError where it is none."""
    number, _, of = word.partition("/")
    if not (number.isdigit() and of.isdigit() and int(number) < int(of)):
        raise UserError(f"--share={word} must be I/N, I from 0 and below N")
    return Share(int(number), int(of))


def protocol_of(exam: str, words: Sequence[str]) -> str:
    """The protocol of an exam: of `EXAM=NAME`, else of a name alone, "" = its default."""
    named = {name: word for name, _, word in (word.partition("=") for word in words) if word}
    for name in named:
        choose(BENCHMARKS, name, "exam in --protocol")
    plain = [word for word in words if "=" not in word]
    if len(plain) > 1:
        raise UserError(f"--protocol={plain[1]}: {plain[0]} is named for all exams already; write EXAM={plain[1]}")
    return named.get(exam) or (plain[0] if plain else "")


def dry_run(data: Mapping[str, str], protocols: Sequence[str]) -> None:
    """Prints what is there of each exam's data; raises UserError where there is none."""
    if not data:
        raise UserError(f"--dry_run looks at the data of public benchmarks: --exam={', '.join(BENCHMARKS)}")
    for exam, place in data.items():
        print(check(exam, BENCHMARKS[exam], place, protocol_of(exam, protocols)))


def sit_public(
    exams: Sequence[str],
    data: Mapping[str, str],
    protocols: Sequence[str],
    what: str,
    folder: str,
    sitting: Sitting,
    loaded: Mapping[str, str],
) -> None:
    """Sits public benchmarks; leaves them in the scorecard and a table of them, which is printed.

    Answers are kept as they come, in a bucket too; the scorecard follows at the end.

    Args:
        protocols: words of `protocol_of`.
        what: the model, as `omnidiff_jax.load` takes it.
        loaded: options of `load`.
    """
    opened = _opened(what, sitting.rows, loaded)
    entries: dict[str, dict[str, Any]] = {}
    for exam in exams:
        if exam == LATENCY:
            entry = latency.measure(_opened(what, 1, loaded))
        else:
            asked = dataclasses.replace(sitting, protocol=protocol_of(exam, protocols))
            entry = sit(exam, BENCHMARKS[exam], data[exam], folder, asked, opened)
        if entry:
            entries[exam] = entry
            metric, value = next(iter(entry["metrics"].items()))
            told = f"{exam}: {metric} {value:.4g}, {entry['n']} of {entry['of']}, {entry['unparsed']} unparsed"
            print(told, file=sys.stderr, flush=True)
    if entries and is_primary():
        with updated(folder, READ) as place:
            print(publish(place, entries, sitting.step))


def _opened(what: str, rows: int, loaded: Mapping[str, Any]) -> Opened:
    models: list[Any] = []

    def opened(settings: Mapping[str, Decoding]) -> Any:
        if not models:
            models.append(load(what, rows=rows, **loaded).generator)
        return models[0].decoded_by(settings)

    return opened
