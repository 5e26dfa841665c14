"""Random-access sources: what a stream draws from. `len(source)` and `source[index]`, as grain and TFDS have them.

A plain list is a source; so are `storage.EncodedSet` and, over raw records, `JsonlRecords`, `TfdsRecords` and
`EncodedRecords`.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from omnidiff_jax.codecs.encode import encode_one
from omnidiff_jax.codecs.media import Codecs
from omnidiff_jax.data.order import Windows, shuffled
from omnidiff_jax.errors import UserError
from omnidiff_jax.fetching import local_copy
from omnidiff_jax.files import expanded, safe_join
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG, EncodedExample, Message, Record, RejectedRecord, stable_id
from omnidiff_jax.tasks.chat import ROLES, media_roles
from omnidiff_jax.tasks.registry import TASKS

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
# Keys of other manifests that say where media lie, or which part of one is meant: to read on would read something else.
_PLACES = {"prefix_path", "start", "end", "begin", "begin_time", "end_time", "start_time", "offset"}


class RandomAccess(Protocol[T_co]):
    """A finite sequence of samples, read in any order; the same index gives the same sample."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> T_co:
        """The sample at `index` in 0 .. len - 1.

        Raises:
            RejectedRecord: the sample cannot be used; training counts the reason and goes on.
        """


@dataclasses.dataclass(frozen=True)
class Source(Generic[T]):
    """Samples with what the curriculum and a resume must know of them.

    Attributes:
        samples: random access to them.
        task: that they train; "" = as each says.
        fingerprint: tells this content from another's; "" where nothing is known of it.
    """

    samples: RandomAccess[T]
    task: str = ""
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> T:
        return self.samples[index]

    def place(self, draw: int, stream: int, streams: int, seed: int, name: str) -> tuple[int, int]:
        """(index, epoch) of a stream's draw: j of stream v is step j * V + v of a shuffled walk, or `Windows.walk`.

        Args:
            draw: how many samples the stream had drawn before.
            stream: its number, of `streams`.
            streams: V, of the run.
            seed: of the run.
            name: of the source.
        """
        windows = windows_of(self.samples)
        if windows is None:
            return shuffled(draw * streams + stream, len(self), seed, name)
        return windows.walk(draw, stream, streams, seed, name)


def windows_of(samples: object) -> Windows | None:
    """What of a source is read together, where it says; None: every sample is as near as another."""
    return getattr(samples, "windows", None)


class JsonlRecords:
    """Records of a JSONL manifest in the released form, one `{"messages", "images", "audios"}` a line.

    A sample of inpainting names its `hole`, a picture that is light where the answer paints. Media paths are relative
    to `root`, or absolute, and must stay inside it. A line may name its `task`; otherwise the task follows from what
    its messages hold (`infer_task`). Only the lines' places are kept in memory.

    Attributes:
        fingerprint: hex digest of the manifest; what media hold is not part of it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        root: str | os.PathLike[str] | None = None,
        task: str | None = None,
        links: bool = False,
    ):
        """Args:
            path: the manifest.
            root: folder of the media (default: the manifest's own).
            task: that every record trains, whatever its line says; None = the line's own, or what its media amount to.
            links: whether links may lead out of that folder.

        Raises:
            UserError: the manifest cannot be read.
        """
        self._path = local_copy(path)
        self._root = expanded(os.path.dirname(os.fspath(path)) or "." if root is None else root)
        starts, at, digest = [], 0, hashlib.blake2b(digest_size=16)
        try:
            with open(self._path, "rb") as file:
                if form := _foreign(file.read(512)):
                    raise UserError(f"{self._path} is {form}, not JSON lines; read it with reader={form.split()[-1]}")
                file.seek(0)
                for line in file:
                    if line.strip():
                        starts.append(at)
                    at += len(line)
                    digest.update(line)
        except OSError as error:
            raise UserError(f"cannot read {self._path} ({error.strerror}); give a JSONL file") from error
        self._starts = np.array(starts, np.int64)
        self.fingerprint = digest.hexdigest()
        self._task, self._links = task, links
        # By content: tail pads and masks hang on the ids, and a manifest may move between starts of a run.
        self._first_id = stable_id("jsonl", self.fingerprint, task or "")

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Record:
        """The record of non-empty line `index`; its media are paths, not read yet."""
        with open(self._path, "rb") as file:
            file.seek(self._starts[index])
            line = file.readline()
        where = f"{self._path}, record {index + 1}"
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RejectedRecord("line is not JSON", f"{where}: {error}") from error
        messages = _messages(content, where)
        if (content.get("images") or content.get("audios")) and (odd := _PLACES & content.keys()):
            raise RejectedRecord("key is not understood", f"{where}: {min(odd)!r}; read it with reader=json_lines")
        images = self._media(content, "images", messages, IMAGE_TAG, where)
        audios = self._media(content, "audios", messages, AUDIO_TAG, where)
        hole = content.get("hole")
        if hole is not None and not isinstance(hole, str):
            raise RejectedRecord("hole is not a path", where)
        holes = self._paths([] if hole is None else [hole], where)
        task = self._task or content.get("task") or ("inpainting" if holes else infer_task(messages))
        if not isinstance(task, str) or task not in TASKS:
            raise RejectedRecord("unknown task", f"{where}: {task!r} is none of {', '.join(TASKS)}")
        identity = (self._first_id + index) % 2**32
        return Record(identity, task, messages, images, audios, hole=holes[0] if holes else None)

    def _media(self, content: dict, key: str, messages: tuple[Message, ...], tag: str, where: str) -> tuple[str, ...]:
        names = content.get(key) or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise RejectedRecord(f"{key} is not a list of paths", where)
        tags = len(media_roles(messages, tag))
        if tags != len(names):
            raise RejectedRecord(f"{key} do not match the tags", f"{where}: {tags} {tag} tags, {len(names)} {key}")
        return self._paths(names, where)

    def _paths(self, names: Sequence[str], where: str) -> tuple[str, ...]:
        paths = []
        for name in names:
            try:
                paths.append(str(safe_join(self._root, name, self._links)))
            except (UserError, OSError, RuntimeError, ValueError) as error:
                raise RejectedRecord("path leads out of the media folder", f"{where}: {error}") from error
        return tuple(paths)


def _foreign(head: bytes) -> str:
    """What a file that begins with `head` is, where that is another form of data; its last word is the reader's."""
    if head[:4] == b"PAR1":
        return "a table in parquet"
    if head[257:262] == b"ustar":
        return "an archive, a tar"
    return ""


def _messages(content: Any, where: str) -> tuple[Message, ...]:
    turns = content.get("messages") if isinstance(content, dict) else None
    if not isinstance(turns, list) or not turns:
        raise RejectedRecord("no list of messages", where)
    messages = []
    for turn in turns:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise RejectedRecord("a message is not {role, content} of strings", where)
        if turn["role"] not in ROLES:
            raise RejectedRecord("unknown role", f"{where}: {turn['role']!r} is not one of {', '.join(ROLES)}")
        messages.append(Message(turn["role"], turn["content"]))
    if not any(message.role == "assistant" and message.content for message in messages):
        raise RejectedRecord("no assistant message", where)
    return tuple(messages)


def infer_task(messages: tuple[Message, ...]) -> str:
    """The task that a conversation's modalities amount to, as the released prompts use them."""
    heard, spoken = (_holds(messages, AUDIO_TAG, answer) for answer in (False, True))
    seen, drawn = (_holds(messages, IMAGE_TAG, answer) for answer in (False, True))
    if drawn:
        return "s2i" if heard else "t2i"
    if heard and seen:
        return "spoken_vqa"
    if heard:
        return "spoken_qa" if spoken or any(message.role == "system" for message in messages) else "asr"
    if spoken:
        return "tts"
    return "vqa" if seen else "text_qa"


def _holds(messages: tuple[Message, ...], tag: str, answer: bool) -> bool:
    return any(tag in message.content for message in messages if (message.role == "assistant") == answer)


class TfdsRecords:
    """A split of a TFDS data set in ArrayRecord form, read without TensorFlow.

    Attributes:
        features: of the data set, by name.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        split: str,
        parse: Callable[[dict[str, Any]], Any],
        decoders: Callable[[Any], Any] = lambda features: None,
    ):
        """Opens a prepared data set.

        Args:
            directory: the version folder that holds `dataset_info.json`.
            split: name of the split, or a TFDS slice such as "train[:10%]".
            parse: features of one example -> `Record` or `EncodedExample`; may raise `RejectedRecord`.
            decoders: features -> TFDS's decoders, of those that are not decoded as usual.

        Raises:
            UserError: no prepared data set there, or no such split.
        """
        # Importing TFDS takes seconds, and only runs on such data need it.
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder_from_directory(str(directory))
            self.features: Mapping[str, Any] = builder.info.features
            self._source = builder.as_data_source(split, decoders=decoders(self.features))
        except ModuleNotFoundError as error:
            raise UserError(
                f"{directory} holds something, such as Audio, that TFDS reads with {error.name} alone; "
                "pip install 'omnidiff_jax[build]'"
            ) from error
        except Exception as error:  # TFDS raises many kinds
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"cannot open split {split!r} of {directory} ({reason}); build the data set first"
            ) from error
        self._parse = parse

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        return self._parse(self._source[index])


class EncodedRecords:
    """Raw records encoded when they are read, one at a time."""

    def __init__(self, records: RandomAccess[Record], codecs: Codecs):
        self._records, self._codecs = records, codecs
        self.windows = windows_of(records)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> EncodedExample:
        return encode_one(self._records[index], self._codecs)


class Unconditional:
    """Records of which a share, always the same ones, has nothing but an empty request before its last answer."""

    def __init__(self, records: RandomAccess[Record], share: float):
        self._records, self._share = records, share
        self.windows = windows_of(records)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        record = self._records[index]
        if stable_id("unconditional", record.sample_id) >= self._share * 2**32:
            return record
        return unconditional(record)


def unconditional(record: Record) -> Record:
    """The record's system turns and last turn, with an empty request between: what an empty canvas prompt says."""
    last = record.messages[-1]
    systems = [message for message in record.messages[:-1] if message.role == "system"]
    images, audios = last.content.count(IMAGE_TAG), last.content.count(AUDIO_TAG)
    return dataclasses.replace(
        record,
        messages=(*systems, Message("user", ""), last),
        images=record.images[len(record.images) - images :],
        audios=record.audios[len(record.audios) - audios :],
    )
