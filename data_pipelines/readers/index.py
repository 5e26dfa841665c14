"""Rows of a layout, written down once: what is found by walking folders, archives and tables is then read in any order.

An index is a folder of the cache (`fetching.cache_folder`): `rows.jsonl`, where each line begins, and a digest. It
hangs on names, sizes and times of the files that it was made from, and is made again when one of them changes.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnidiff_jax.errors import UserError
from omnidiff_jax.fetching import made_once

FAULT = "__fault__"
_VERSION = "1"
_ROWS, _STARTS, _DIGEST = "rows.jsonl", "starts.npy", "digest"
Row = dict[str, Any]


class Lines:
    """Rows of an index by number. Workers get its place, not its content.

    Attributes:
        fingerprint: hex digest of the rows.
    """

    def __init__(self, folder: Path):
        """Opens the index in `folder`."""
        self._folder = folder
        self._starts = np.load(folder / _STARTS, mmap_mode="r", allow_pickle=False)
        self.fingerprint = (folder / _DIGEST).read_text()

    def __reduce__(self) -> tuple[type["Lines"], tuple[Path]]:
        return Lines, (self._folder,)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Row:
        """Row `index`; one with the key `FAULT` says why it cannot be used."""
        with open(self._folder / _ROWS, "rb") as file:
            file.seek(int(self._starts[index]))
            return json.loads(file.readline())


def indexed(layout: str, root: Path, files: Sequence[Path], rows: Callable[[], Iterable[Row]]) -> Lines:
    """The index of a layout, from the cache or made now.

    Args:
        layout: says how the rows are made; rows of another layout are another index.
        root: folder that the files lie in.
        files: what the rows are made from.
        rows: makes them: JSON, a media path relative to `root`.

    Raises:
        UserError: no rows, or one cannot be read. The cache cannot be written.
    """
    digest = hashlib.blake2b(f"{_VERSION} {layout} {root.resolve()}".encode(), digest_size=16)
    for file in files:
        try:
            state = file.stat()
        except OSError as error:
            raise UserError(f"cannot read {file} ({error.strerror}); check the path") from error
        digest.update(f"\n{file} {state.st_size} {state.st_mtime_ns}".encode(errors="surrogateescape"))
    return Lines(made_once(f"index-{digest.hexdigest()}", lambda folder: _write(folder, rows())))


def _write(folder: Path, rows: Iterable[Row]) -> None:
    starts, at, digest = [], 0, hashlib.blake2b(digest_size=16)
    with open(folder / _ROWS, "wb") as file:
        for row in rows:
            line = json.dumps(row).encode() + b"\n"
            starts.append(at)
            at += len(line)
            digest.update(line)
            file.write(line)
    np.save(folder / _STARTS, np.array(starts, np.int64))
    (folder / _DIGEST).write_text(digest.hexdigest())
