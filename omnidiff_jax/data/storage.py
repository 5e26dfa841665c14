"""Encoded data sets on disk: ArrayRecord shards of `serialization` examples beside a `manifest.json`."""

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from omnidiff_jax.data.serialization import from_bytes, to_bytes
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import new_folder
from omnidiff_jax.records import EncodedExample

MANIFEST = "manifest.json"
VERSION = 1
# One example per group, as random access wants it; frames of speech hardly compress.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What stands in `manifest.json`.

    Attributes:
        examples: number of examples.
        tasks: examples of each task.
        tokens: tokens of all examples.
        frames: speech frames of all examples.
        tokenizers: fingerprint of the tokenizers that made the ids and frames.
        shards: examples in each shard, by file name.
        rejected: records left out, by reason.
        origin: how the set was built, free form.
        content: hex digest of the examples in order; "" in sets written before there was one.
    """

    examples: int
    tasks: Mapping[str, int]
    tokens: int
    frames: int
    tokenizers: str
    shards: Mapping[str, int]
    rejected: Mapping[str, int]
    origin: Mapping[str, Any]
    content: str = ""


def write_set(
    directory: str | os.PathLike[str],
    examples: Iterable[EncodedExample],
    tokenizers: str,
    shards: int = 1,
    rejected: Mapping[str, int] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Manifest:
    """Writes a data set; it appears at `directory` whole or not at all.

    Args:
        directory: must not exist yet.
        examples: written in order, example i to shard i mod `shards`.
        tokenizers: fingerprint of those that made the examples; whoever opens the set must name the same.
        shards: number of files.
        rejected: read after the last example, so a counter that `examples` itself fills is right.
        origin: how the set was built.

    Raises:
        UserError: `directory` exists, or it cannot be written.
    """
    target = Path(directory)
    with new_folder(target) as building:
        building.mkdir()
        try:
            # `or {}` would lose a counter that is still empty.
            counted = {} if rejected is None else rejected
            manifest = _write(building, examples, tokenizers, shards, counted, origin or {})
        except RuntimeError as error:  # array_record's way to say that a file could not be written
            raise UserError(f"cannot write {target}: {error}; free space or choose another folder") from error
    return manifest


def _write(
    folder: Path,
    examples: Iterable[EncodedExample],
    tokenizers: str,
    shards: int,
    rejected: Mapping[str, int],
    origin: Mapping[str, Any],
) -> Manifest:
    names = [f"examples-{number:05d}-of-{shards:05d}.array_record" for number in range(shards)]
    writers = [ArrayRecordWriter(str(folder / name), _WRITER_OPTIONS) for name in names]
    tasks: collections.Counter[str] = collections.Counter()
    counts, tokens, frames, total = [0] * shards, 0, 0, 0
    digest = hashlib.blake2b(digest_size=16)
    for total, example in enumerate(examples, start=1):
        shard = (total - 1) % shards
        data = to_bytes(example)
        digest.update(data)
        writers[shard].write(data)
        counts[shard] += 1
        tasks[example.task] += 1
        tokens += len(example.tokens)
        frames += len(example.frames)
    for writer in writers:
        writer.close()
    manifest = Manifest(
        total,
        dict(sorted(tasks.items())),
        tokens,
        frames,
        tokenizers,
        dict(zip(names, counts, strict=True)),
        dict(rejected),
        dict(origin),
        digest.hexdigest(),
    )
    content = {"version": VERSION, **dataclasses.asdict(manifest)}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")
    return manifest


class EncodedSet:
    """Random access to a set that `write_set` wrote.

    Attributes:
        manifest: what it holds.
    """

    def __init__(self, directory: str | os.PathLike[str], tokenizers: str):
        """Opens the set at `directory`.

        Raises:
            UserError: no set there, one of another version or other tokenizers, or shards that are missing or broken.
        """
        self._folder = Path(directory)
        file = self._folder / MANIFEST
        try:
            content = json.loads(file.read_text())
            version = content.pop("version")
            self.manifest = Manifest(**content)
        except OSError as error:
            raise UserError(f"cannot read {file} ({error.strerror}); build the data set first") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file} is not a data set's manifest; build the data set again") from error
        if version != VERSION:
            raise UserError(f"{file} is of version {version}, this code reads {VERSION}; build the data set again")
        if self.manifest.tokenizers != tokenizers:
            raise UserError(
                f"{self._folder} was encoded by other tokenizers; remove it and build it again with this model's"
            )
        self._readers = [self._open(name, count) for name, count in self.manifest.shards.items()]

    def __len__(self) -> int:
        return self.manifest.examples

    def __getitem__(self, index: int) -> EncodedExample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place, shard = divmod(index, len(self._readers))
        try:
            (data,) = self._readers[shard].read([place])
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{self._folder}: example {index} cannot be read ({error}); build the set again") from error
        return from_bytes(data)

    @property
    def fingerprint(self) -> str:
        """Tells this set's examples from another's: their digest, or for an older set one of some of them."""
        if self.manifest.content:
            return self.manifest.content
        digest = hashlib.blake2b(json.dumps(dataclasses.asdict(self.manifest), sort_keys=True).encode(), digest_size=16)
        for index in np.unique(np.linspace(0, len(self) - 1, min(len(self), 64)).astype(int)).tolist():
            digest.update(to_bytes(self[index]))
        return digest.hexdigest()

    def lengths(self) -> np.ndarray:
        """int32 [examples]: tokens of each example, without tail pads. Reads the whole set."""
        return np.array([len(self[index].tokens) for index in range(len(self))], np.int32)

    def _open(self, name: str, count: int) -> Any:
        file = self._folder / name
        try:
            reader = ArrayRecordReader(str(file), options=_READER_OPTIONS)
            found = reader.num_records()
        except (RuntimeError, ValueError) as error:
            raise UserError(f"cannot read {file} ({error}); build the data set again") from error
        if found != count:
            raise UserError(f"{file} holds {found} examples, its manifest says {count}; build the data set again")
        return reader
