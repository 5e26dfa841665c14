"""Rows to records: which columns hold what, how a corpus writes text, media wherever their bytes lie."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from data_pipelines.readers.index import FAULT, Row
from data_pipelines.readers.parquet import ParquetRows
from data_pipelines.readers.text import RULES
from omnidiff_jax.data.order import Windows
from omnidiff_jax.data.sources import infer_task
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import safe_join
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG, Medium, Message, Record, RejectedRecord, Waveform, stable_id
from omnidiff_jax.tasks.chat import ROLES
from omnidiff_jax.tasks.registry import TASKS

# What a column may be given as; `text` is what is said, written or shown, `question` and `answer` are a pair.
FIELDS = ("id", "text", "question", "answer", "messages", "image", "audio", "start", "end", "language", "speaker")
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"} | {role: role for role in ROLES}
_TAGS = {"<image>": IMAGE_TAG, "<audio>": AUDIO_TAG}


class Rows(Protocol):
    """Rows of a layout: random access, and what tells them from others."""

    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...


@dataclasses.dataclass(frozen=True)
class Form:
    """What rows mean.

    Attributes:
        task: that they train; "" = as their messages amount to.
        columns: field (`FIELDS`) -> column; "a.b" is key b of column a, "a|b" whichever is there.
        rules: names of the rules of text that hold.
        language: of all rows, where no column says it.
    """

    task: str
    columns: Mapping[str, str]
    rules: Sequence[str] = ("trimmed",)
    language: str = ""


class RowRecords:
    """Records of rows.

    Attributes:
        fingerprint: of the rows and of what they are taken for.
    """

    def __init__(self, rows: Rows, form: Form, root: str | os.PathLike[str], links: bool = False):
        """Args:
        rows: of a layout.
        form: what they mean.
        root: folder that their media must lie in.
        links: whether links may lead out of it.
        """
        self._rows, self._form, self._root, self._links = rows, form, root, links
        told = ",".join(f"{field}={column}" for field, column in sorted(form.columns.items()))
        self.fingerprint = f"{rows.fingerprint} {told} {','.join(form.rules)} {form.task}"
        self._first_id = stable_id("rows", self.fingerprint)
        self._rules = [RULES[name] for name in RULES if name in form.rules]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def windows(self) -> Windows | None:
        """What of the rows is read together; None where any order is as good."""
        return self._rows.windows if isinstance(self._rows, ParquetRows) else None

    def __getitem__(self, index: int) -> Record:
        """The record of row `index`; its media are not read yet."""
        row = self._rows[index]
        if FAULT in row:
            raise RejectedRecord(str(row[FAULT]), str(row.get("id", f"row {index + 1}")))
        held = {field: value_of(row, column) for field, column in self._form.columns.items()}
        where = f"row {index + 1}" + (f" ({held['id']})" if held.get("id") else "")
        if "messages" in self._form.columns:
            messages, inner = self._turns(held["messages"], where)
        else:
            messages, inner = self._pair(held, where), []
        images = self._media(held, "image", where)
        audios = [self._medium(item, where, held) for item in inner] or self._media(held, "audio", where)
        task = self._form.task or (infer_task(messages) if "messages" in self._form.columns else _task_of(held))
        meta = {key: str(held[key]) for key in ("id", "language", "speaker") if held.get(key)}
        if self._form.language:
            meta.setdefault("language", self._form.language)
        return Record((self._first_id + index) % 2**32, task, messages, images, tuple(audios), meta)

    def _pair(self, held: Mapping[str, Any], where: str) -> tuple[Message, ...]:
        media = {"image", "audio"} & self._form.columns.keys()
        if media and not any(held[field] for field in media):
            raise RejectedRecord(f"no {' or '.join(sorted(media))}", where)
        task = TASKS[self._form.task or _task_of(held)]
        # What is said or shown is asked for where the answer is a medium, and is the answer where that is text.
        asked = "question" if "question" in held else "text" if task.answer in ("image", "speech", "hole") else ""
        told = "answer" if "answer" in held else "text" if task.answer in ("text", "text_and_speech") else ""
        request = self._text(held[asked], asked, where) if asked else ""
        answer = self._text(held[told], told, where) if told else ""
        if any(tag in text for text in (request, answer) for tag in (IMAGE_TAG, AUDIO_TAG)):
            raise RejectedRecord("text holds a tag", where)
        turns = task.conversation(request, answer)
        if task.answer == "text_and_speech" and told:  # the speech of its answers does not lie there
            turns = (*turns[:-1], Message("assistant", answer))
        return turns

    def _text(self, value: Any, field: str, where: str) -> str:
        if not isinstance(value, str):
            raise RejectedRecord(f"no {field}", f"{where}: {type(value).__name__}")
        for rule in self._rules:
            value = rule(value)
        if not value:
            raise RejectedRecord(f"no {field}", where)
        return value

    def _turns(self, turns: Any, where: str) -> tuple[tuple[Message, ...], list[Any]]:
        """Messages of any known form, and media that stand in the turns themselves."""
        if not isinstance(turns, list) or not turns:
            raise RejectedRecord("no list of messages", where)
        messages, media = [], []
        for turn in turns:
            role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
            text = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
            if not isinstance(role, str) or not isinstance(text, str):
                raise RejectedRecord("a message is not {role, content} of strings", where)
            if role not in _ROLES:
                raise RejectedRecord("unknown role", f"{where}: {role!r} is not one of {', '.join(_ROLES)}")
            for theirs, ours in _TAGS.items():
                text = text.replace(theirs, ours)
            if sound := turn.get("wavpath"):
                media.append(sound)
                # A spoken turn is heard, not read; a spoken answer is both.
                text = AUDIO_TAG if _ROLES[role] != "assistant" else f"{text}\n{AUDIO_TAG}"
            if _ROLES[role] == "assistant" and not text.strip():
                raise RejectedRecord("blank assistant message", where)
            messages.append(Message(_ROLES[role], text))
        while messages and messages[-1].role != "assistant":  # nothing answers them
            if IMAGE_TAG in messages[-1].content or AUDIO_TAG in messages[-1].content:
                raise RejectedRecord("last message is not the assistant's", where)
            messages.pop()
        if not messages:
            raise RejectedRecord("no assistant message", where)
        return tuple(messages), media

    def _media(self, held: Mapping[str, Any], field: str, where: str) -> tuple[Any, ...]:
        value = held.get(field)
        if value is None or value == "":
            return ()
        values = value if isinstance(value, list) else [value]
        return tuple(self._medium(item, where, held if field == "audio" else {}) for item in values)

    def _medium(self, value: Any, where: str, held: Mapping[str, Any]) -> Any:
        start, end = (_seconds(held.get(key), key, where) for key in ("start", "end"))
        part: dict[str, Any] = {"start": start or 0.0, "end": end}
        if isinstance(value, np.ndarray | Waveform):  # decoded where it was read
            return value
        if isinstance(value, bytes):
            return Medium(where, content=value, **part)
        if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
            return Medium(f"{where}, {value.get('path') or 'bytes'}", content=value["bytes"], **part)
        name = value.get("path") if isinstance(value, Mapping) else value
        if not isinstance(name, str):
            raise RejectedRecord("no medium", f"{where}: {type(value).__name__}")
        try:
            path = str(safe_join(self._root, name, self._links))
        except (UserError, OSError, RuntimeError, ValueError) as error:
            raise RejectedRecord("path leads out of the media folder", f"{where}: {error}") from error
        if isinstance(value, Mapping) and "offset" in value:
            offset, size = value["offset"], value.get("size")
            # A line of a manifest may say such a thing too, of any type.
            if not all(isinstance(number, int) and 0 <= number < 2**62 for number in (offset, size)):
                raise RejectedRecord("no medium", f"{where}: bytes {offset!r} and {size!r} further are none of a file")
            return Medium(f"{path}, {where}", path, offset=offset, size=size, **part)
        return path if start is None and end is None else Medium(path, path, **part)


def value_of(row: Row, column: str) -> Any:
    """A cell: "a.b" is key b of a, "a|b" the first that is there; members of archives go by the end of their name."""
    for name in column.split("|"):
        value: Any = row
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None:
            value = next((row[key] for key in row if key.endswith(f".{name}")), None)
        if value is not None:
            return value
    return None


def _task_of(held: Mapping[str, Any]) -> str:
    """What a text with a medium, or alone, amounts to."""
    if held.get("audio"):
        return "spoken_qa" if "answer" in held else "asr"
    if held.get("image"):
        return "vqa" if "question" in held else "captioning"
    return "text_qa"


def _seconds(value: Any, key: str, where: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError) as error:
        raise RejectedRecord(f"{key} is no time", f"{where}: {value!r}") from error
    if not 0 <= seconds < 1e7:
        raise RejectedRecord(f"{key} is no time", f"{where}: {value!r}")
    return seconds
