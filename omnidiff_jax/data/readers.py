"""Sources by name: how each is declared, which reader opens it, and what tells its content from another's.

A new kind of data is a row of a table like `READERS`; tables of upper floors (Scenes, TFDS builders) are added to it
where a run is opened, never imported here.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from omnidiff_jax.codecs.tokenizers import Tokenizers
from omnidiff_jax.config import Natural, Share, choose, free
from omnidiff_jax.data.sources import EncodedRecords, JsonlRecords, RandomAccess, Source, Unconditional
from omnidiff_jax.data.storage import MANIFEST, EncodedSet
from omnidiff_jax.errors import UserError
from omnidiff_jax.fetching import fetch_ahead, local_copy
from omnidiff_jax.records import Record


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of `config.data.sources`.

    Attributes:
        reader: a name in the table of readers.
        task: that its samples train; "" = as each record says, or its media amount to.
        path: where it lies, in the reader's terms.
        root: folder of its media, where that is not the path's own.
        links: whether links may lead out of that folder, which a manifest from elsewhere could use to have any file
            read.
        split: of sources that have several.
        examples: size of a source that is generated.
        plain: share of its requests in plain words, of a source that is generated.
        unconditional: share of its samples that answer nothing: what classifier-free guidance compares with
            (arXiv 2207.12598).
        columns: which column holds what, of readers of rows: text, audio, image, messages, question, answer, start…
        rules: rules of text to switch on or off, of readers of corpora.
        test_data: whether a split that is test data of a known benchmark may be trained on.
    """

    reader: str
    task: str = ""
    path: str = free("")
    root: str = free("")
    links: bool = free(False)
    split: str = "train"
    examples: Natural = 0
    plain: Share = 0.0
    unconditional: Share = 0.0
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rules: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    test_data: bool = False


@dataclasses.dataclass(frozen=True)
class Reader:
    """A row of the table of readers.

    Attributes:
        summary: one line for people.
        needs: fields of `SourceConfig` that must be given.
        records: source config -> raw records, a function that can be pickled; None where `gives` is "examples".
        identity: (source config, records) -> what tells this content from another's of the same name and size.
        gives: "records" are encoded when they are read; "sets" are encoded once, before training (what is generated
            would be made anew every epoch); "examples" lie encoded at `path`.
        copies: where `path` is read by `fetching.local_copy`, the markers that it is given; None where it is not.
        benchmark: source config -> the benchmark that its split is test data of, or "".
    """

    summary: str
    needs: tuple[str, ...]
    records: Callable[[SourceConfig], Any] | None = None
    identity: Callable[[SourceConfig, Any], str] | None = None
    gives: Literal["records", "sets", "examples"] = "records"
    copies: tuple[str, ...] | None = None
    benchmark: Callable[[SourceConfig], str] | None = None


def _open_jsonl(config: SourceConfig) -> JsonlRecords:
    return JsonlRecords(config.path, config.root or None, config.task or None, config.links)


def _identity(config: SourceConfig, records: JsonlRecords) -> str:
    return records.fingerprint


READERS: Mapping[str, Reader] = {
    "encoded": Reader("a set that `omnidiff data build` wrote", ("path",), gives="examples", copies=(MANIFEST,)),
    "jsonl": Reader(
        "a JSONL manifest in the released form, encoded while training",
        ("path",),
        _open_jsonl,
        _identity,
        copies=(),
    ),
}


def check_source(name: str, config: SourceConfig, readers: Mapping[str, Reader], group: str = "data") -> Reader:
    """The reader of a source.

    Args:
        name: of the source.
        config: of it.
        readers: the table.
        group: of the config that has it under its `sources`, for what is said of it.

    Raises:
        UserError: an unknown reader, or a field that it needs is missing.
    """
    where = f"config.{group}.sources.{name}"
    reader = choose(readers, config.reader, f"{where}.reader")
    for field in reader.needs:
        if not getattr(config, field):
            raise UserError(f"{where}.{field} is missing; reader {config.reader!r} ({reader.summary}) needs it")
    if config.unconditional and reader.gives == "examples":
        raise UserError(
            f"{where}.unconditional = {config.unconditional}, but what reader {config.reader!r} reads is encoded with "
            "its requests; set it where the raw records are"
        )
    return reader


def check_learned(name: str, config: SourceConfig, reader: Reader) -> None:
    """Refuses to train on what others are examined on; a held-out loss may be measured on it.

    Raises:
        UserError: the split is test data of a known benchmark, and nobody said that this is meant.
    """
    if reader.benchmark and not config.test_data and (known := reader.benchmark(config)):
        where = f"config.data.sources.{name}"
        raise UserError(
            f"{where}.split = {config.split!r} of {config.path} is test data of {known}: who trains on it "
            f"cannot be examined on it; set {where}.test_data=True to do so all the same"
        )


def raw_records(config: SourceConfig, reader: Reader) -> tuple[RandomAccess[Record], str]:
    """The records of a source that has raw ones, and what tells their content from another's."""
    assert reader.records is not None and reader.identity is not None
    records = reader.records(config)
    identity = reader.identity(config, records)
    if not config.unconditional:
        return records, identity
    share = config.unconditional
    return Unconditional(records, share), identity and f"{identity}, {share:g} unconditional"


def fetch_source(config: SourceConfig, reader: Reader) -> None:
    """Begins to fetch what opening a source will read from a bucket; what goes wrong is raised where it is opened."""
    if reader.copies is not None:
        fetch_ahead(config.path, reader.copies)


def open_source(
    name: str,
    config: SourceConfig,
    readers: Mapping[str, Reader],
    tokenizers: Tokenizers,
    folder: str | os.PathLike[str],
) -> Source:
    """Opens a source for training.

    Args:
        name: of the source.
        config: of it.
        readers: the table.
        tokenizers: that its samples are, or were, encoded with.
        folder: holds the sets that were built for this run, by name.

    Raises:
        UserError: as `check_source`, or it cannot be opened.
    """
    reader = check_source(name, config, readers)
    if reader.gives == "records":
        records, identity = raw_records(config, reader)
        samples: RandomAccess[Any] = EncodedRecords(records, tokenizers.codecs)
        return Source(samples, config.task, identity)
    place = local_copy(config.path, reader.copies or ()) if reader.gives == "examples" else Path(folder) / name
    codecs = tokenizers.codecs
    found = EncodedSet(place, tokenizers.fingerprint, codecs.features)
    sizes = [codecs.user_image_size, codecs.assistant_image_size]
    if (built := found.manifest.encoding.get("image_sizes", sizes)) != sizes:
        raise UserError(
            f"{place} has images of {' and '.join(map(str, built))} pixels (looked at, drawn), the config says "
            f"{' and '.join(map(str, sizes))} (config.tokenizers.user_image_size, assistant_image_size); set those, or "
            "build it again"
        )
    return Source(found, config.task, found.fingerprint)
