"""Files of one JSON line a sample, added to by several processes and cut off at any moment."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omnidiff_jax.errors import UserError

Key = tuple[str, str]


def read_lines(folder: Path, stem: str) -> dict[Key, dict[str, Any]]:
    """(split, name) -> the line of it, of all files STEM.*.jsonl in a folder; of one that is there twice the first.

    A last line without its end was being written when its process died, and is passed over.

    Raises:
        UserError: another line that is not JSON.
    """
    found: dict[Key, dict[str, Any]] = {}
    for path in sorted(folder.glob(f"{stem}.*.jsonl")):
        for number, line in _whole(path):
            try:
                value = json.loads(line)
                found.setdefault((value["split"], value["name"]), value)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number}: not a line of this stage ({error}); remove it") from error
    return found


def _whole(path: Path) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield number, line


class LineWriter:
    """Adds lines to one process's file; each is on disk whole, or is a torn last one that the next writer cuts off."""

    def __init__(self, folder: Path, stem: str, share: str):
        """Opens `folder/STEM.SHARE.jsonl`; raises UserError where it cannot be written."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{stem}.{share}.jsonl"
        try:
            if self._path.exists():
                content = self._path.read_bytes()
                if not content.endswith(b"\n"):
                    os.truncate(self._path, content.rfind(b"\n") + 1)
            self._file = open(self._path, "ab")
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror or error}") from error

    def add(self, key: Key, values: Mapping[str, Any]) -> None:
        """Writes the line of one sample."""
        line = {"split": key[0], "name": key[1], **values}
        self._file.write(json.dumps(line, ensure_ascii=True).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Ends it, content on disk."""
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> "LineWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
