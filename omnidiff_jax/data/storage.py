"""Encoded data sets on disk: ArrayRecord shards of `serialization` examples, each summed up, beside a `manifest.json`.

A set's examples are those of its shards, one shard after another. How sets are built is `shards.py`'s business.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from omnidiff_jax.data.serialization import from_bytes, to_bytes
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import new_folder
from omnidiff_jax.records import EncodedExample, RejectedRecord, Waveform
from omnidiff_jax.speech_frames import FRAME_SECONDS
from omnidiff_jax.vocabulary import IdRange

MANIFEST = "manifest.json"
VERSION = 1
# One example per group, as random access wants it; frames of speech hardly compress.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0"
# Shards that are open at a time: each takes a file descriptor, of which a process often has a thousand.
_OPEN = 256
# Rejected records that are named, of each reason, and characters of what is said of one.
_NAMED = 3
_SAID = 300
_CODE_SECONDS = 0.08


@dataclasses.dataclass(frozen=True)
class Shard:
    """What became of a stretch of records.

    Attributes:
        examples: number of examples.
        size: bytes of its file; 0 where there is no example, nor a file.
        tasks: examples of each task.
        tokens: tokens of all examples.
        frames: speech frames of all examples.
        seconds: of speech that is heard and that is spoken.
        rejected: records left out, by reason.
        first_rejects: number of the record and what is wrong with it, of the first ones of each reason.
        content: hex digest of the examples in order.
    """

    examples: int
    size: int
    tasks: Mapping[str, int]
    tokens: int
    frames: int
    seconds: Mapping[str, float]
    rejected: Mapping[str, int]
    first_rejects: Mapping[str, Sequence[tuple[int, str]]]
    content: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What stands in `manifest.json`.

    Attributes:
        examples: number of examples.
        tasks: examples of each task.
        tokens: tokens of all examples.
        frames: speech frames of all examples.
        tokenizers: fingerprint of the tokenizers that made the ids and frames.
        shards: examples in each shard, by file name, in order.
        rejected: records left out, by reason.
        origin: how the set was built, free form.
        content: hex digest that tells these examples from others; "" in sets written before there was one.
        seconds, first_rejects: as of a `Shard`.
        encoding: what ids and frames depend on beside tokenizers: `image_sizes` (looked at, drawn), `heard`; {} in
            sets written before it was told.
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
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    first_rejects: Mapping[str, Sequence[tuple[int, str]]] = dataclasses.field(default_factory=dict)
    encoding: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def dump(self) -> bytes:
        """What stands in the file."""
        return (json.dumps({"version": VERSION, **dataclasses.asdict(self)}, indent=2) + "\n").encode()


def file_name(number: int) -> str:
    """Of a shard's examples."""
    return f"examples-{number:05d}.array_record"


class ShardWriter:
    """Writes examples to a file, and sums them up."""

    def __init__(self, file: Path, speech: IdRange | None = None):
        """Writes nothing yet.

        Args:
            file: that is made with the first example.
            speech: ids of speech codes, to tell seconds by; None = they are not told.
        """
        self._file, self._speech = file, speech
        self._writer: Any = None
        self._digest = hashlib.blake2b(digest_size=16)
        self._tasks: collections.Counter[str] = collections.Counter()
        self._rejected: collections.Counter[str] = collections.Counter()
        self._first: dict[str, list[tuple[int, str]]] = {}
        self._tokens = self._frames = self._codes = 0

    def add(self, example: EncodedExample) -> None:
        """The next example.

        Raises:
            UserError: the file cannot be written.
        """
        data = to_bytes(example)
        with self._told():
            if self._writer is None:
                self._writer = ArrayRecordWriter(str(self._file), _WRITER_OPTIONS)
            self._writer.write(data)
        self._digest.update(data)
        self._tasks[example.task] += 1
        self._tokens += len(example.tokens)
        self._frames += int(np.sum(example.frame_counts))
        if self._speech is not None:
            self._codes += int(self._speech.contains(example.tokens).sum())

    def reject(self, record: int, error: RejectedRecord) -> None:
        """A record of this number is left out."""
        self._rejected[error.reason] += 1
        named = self._first.setdefault(error.reason, [])
        if len(named) < _NAMED:
            named.append((record, str(error)[:_SAID]))

    def close(self) -> Shard:
        """Ends the file; raises as `add`."""
        if self._writer is not None:
            with self._told():
                self._writer.close()
        return Shard(
            self._tasks.total(),
            self._file.stat().st_size if self._writer is not None else 0,
            dict(sorted(self._tasks.items())),
            self._tokens,
            self._frames,
            {"heard": round(self._frames * FRAME_SECONDS, 2), "spoken": round(self._codes * _CODE_SECONDS, 2)},
            dict(self._rejected),
            self._first,
            self._digest.hexdigest(),
        )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # array_record's way to say that a file could not be written
            raise UserError(f"cannot write {self._file}: {error}; free space or choose another folder") from error


def merged(
    shards: Sequence[Shard], tokenizers: str, origin: Mapping[str, Any], encoding: Mapping[str, Any]
) -> Manifest:
    """The manifest of a set of these shards, in order."""
    tasks: collections.Counter[str] = collections.Counter()
    rejected: collections.Counter[str] = collections.Counter()
    seconds: collections.Counter[str] = collections.Counter()
    first: dict[str, list[tuple[int, str]]] = {}
    digest = hashlib.blake2b(digest_size=16)
    for shard in shards:
        tasks.update(shard.tasks)
        rejected.update(shard.rejected)
        seconds.update(shard.seconds)
        for reason, named in shard.first_rejects.items():
            kept = first.setdefault(reason, [])
            kept += named[: _NAMED - len(kept)]
        digest.update(bytes.fromhex(shard.content))
    return Manifest(
        tasks.total(),
        dict(sorted(tasks.items())),
        sum(shard.tokens for shard in shards),
        sum(shard.frames for shard in shards),
        tokenizers,
        {file_name(number): shard.examples for number, shard in enumerate(shards) if shard.examples},
        dict(rejected),
        dict(origin),
        digest.hexdigest(),
        {name: round(value, 2) for name, value in seconds.items()},
        first,
        dict(encoding),
    )


def write_set(
    directory: str | os.PathLike[str],
    examples: Iterable[EncodedExample],
    tokenizers: str,
    origin: Mapping[str, Any] | None = None,
) -> Manifest:
    """Writes examples as a set of one shard; it appears at `directory` whole or not at all.

    Args:
        directory: must not exist yet.
        examples: written in order.
        tokenizers: fingerprint of those that made the examples; whoever opens the set must name the same.
        origin: how the set was built.

    Raises:
        UserError: `directory` exists, or it cannot be written.
    """
    with new_folder(Path(directory)) as building:
        building.mkdir()
        writer = ShardWriter(building / file_name(0))
        for example in examples:
            writer.add(example)
        manifest = merged([writer.close()], tokenizers, origin or {}, {})
        (building / MANIFEST).write_bytes(manifest.dump())
    return manifest


class EncodedSet:
    """Random access to a set.

    Attributes:
        manifest: what it holds.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        tokenizers: str,
        features: Callable[[Waveform], np.ndarray] | None = None,
    ):
        """Opens the set at `directory`.

        Args:
            directory: that holds its manifest.
            tokenizers: their fingerprint.
            features: of the speech encoder, for sets that keep sounds.

        Raises:
            UserError: no set there, one of another version or other tokenizers, or shards that are missing or broken.
        """
        self._features = features
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
        self._names, counts = list(self.manifest.shards), list(self.manifest.shards.values())
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._open = functools.lru_cache(maxsize=_OPEN)(self._opened)
        for shard in range(len(counts)):
            self._open(shard)

    def __len__(self) -> int:
        return self.manifest.examples

    def __getitem__(self, index: int) -> EncodedExample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        name = self._names[shard]
        place = index - int(self._ends[shard]) + self.manifest.shards[name]
        try:
            (data,) = self._open(shard).read([place])
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{self._folder}: example {index} cannot be read ({error}); build the set again") from error
        return from_bytes(data, self._features)

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

    def _opened(self, shard: int) -> Any:
        name = self._names[shard]
        file, count = self._folder / name, self.manifest.shards[name]
        try:
            reader = ArrayRecordReader(str(file), options=_READER_OPTIONS)
            found = reader.num_records()
        except (RuntimeError, ValueError) as error:
            raise UserError(f"cannot read {file} ({error}); build the data set again") from error
        if found != count:
            raise UserError(f"{file} holds {found} examples, its manifest says {count}; build the data set again")
        return reader
