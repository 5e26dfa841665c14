"""Parquet tables by (file, row group, row), as Hugging Face keeps them: media are structs of `bytes` and `path`."""

import bisect
import collections
import hashlib
import itertools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.readers.index import FAULT, Row
from data_pipelines.readers.layouts import found
from omnidiff_jax.data.order import Windows
from omnidiff_jax.errors import UserError

_GROUP_BYTES = 2 * 2**30
_ROWS_A_BYTE = 8  # of a file; rows with a medium or a text take far more room
# What of all sources together is held in a process, and what a window of one comes to.
_HELD_BYTES = 2**30
_WINDOW_BYTES = 2**25


class _Held:
    """Row groups of any source that were read last, within `_HELD_BYTES`; one beyond that is held alone."""

    def __init__(self) -> None:
        self._groups: collections.OrderedDict[tuple[str, int], tuple[Any, int]] = collections.OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int], read: Callable[[], Any]) -> Any:
        """What `read` gave, or gives now: a table, or what is wrong with it."""
        with self._lock:
            if key not in self._groups:
                content = read()
                size = 0 if isinstance(content, str) else content.nbytes
                while self._groups and self._bytes + size > _HELD_BYTES:
                    self._bytes -= self._groups.popitem(last=False)[1][1]
                self._groups[key] = content, size
                self._bytes += size
            self._groups.move_to_end(key)
            return self._groups[key][0]

    def clear(self) -> None:
        """Holds none."""
        with self._lock:
            self._groups.clear()
            self._bytes = 0


_held = _Held()


def forget() -> None:
    """Gives back the memory of row groups that were read."""
    _held.clear()


class ParquetRows:
    """Rows of parquet files in any order; row groups that were read last are held, with the columns in use.

    Attributes:
        names: columns of the first file.
        fingerprint: hex digest of the files' footers.
        windows: which rows are near each other.
    """

    def __init__(self, files: Sequence[Path], columns: Sequence[str] | None = None):
        """Reads the footers.

        Args:
            files: in their order.
            columns: those that rows hold; None = all.

        Raises:
            UserError: the extra is missing, or a file is no parquet.
        """
        try:
            from pyarrow import ArrowException, parquet
        except ImportError as error:
            raise UserError("parquet needs the extra of that name: pip install 'omnidiff_jax[parquet]'") from error
        self._files, self._columns = list(files), None if columns is None else list(columns)
        digest = hashlib.blake2b(digest_size=16, person=b"windows")
        self._groups: list[tuple[int, int]] = []
        self._sizes: list[int] = []
        self._faults: list[str] = []
        counts: list[int] = []
        self.names: tuple[str, ...] = ()
        for number, file in enumerate(self._files):
            try:
                with open(file, "rb") as raw:
                    raw.seek(max(file.stat().st_size - 65536, 0))
                    digest.update(raw.read())
                footer = parquet.read_metadata(file)
                self.names = self.names or tuple(parquet.read_schema(file).names)
                groups = [footer.row_group(group) for group in range(footer.num_row_groups)]
                sizes = [self._size(group, file.stat().st_size) for group in groups]
            except (ArrowException, OSError, ValueError) as error:
                self._faults.append(f"{file}: {_said(error)}")
                continue
            self._groups += [(number, group) for group in range(len(groups))]
            self._sizes += sizes
            counts += [group.num_rows for group in groups]
        if not self._groups and self._faults:
            raise UserError(f"{self._faults[0]}; copy it again")
        self._ends = list(itertools.accumulate(counts))
        self.fingerprint = digest.hexdigest()
        # Names too: a file may lie there twice.
        self._key = f"{self.fingerprint} {self._files[:1]} {self._columns}"
        rows = self._ends[-1] if self._ends else 0
        mean = sum(self._sizes) / max(rows, 1)
        ends = [*self._ends, *range(rows + 1, len(self) + 1)]
        self.windows = Windows(ends, max(round(_WINDOW_BYTES / max(mean, 1)), rows // max(len(counts), 1)))

    def __len__(self) -> int:
        return (self._ends[-1] if self._ends else 0) + len(self._faults)

    def __getitem__(self, index: int) -> Row:
        """Row `index`, cells as Python values; a row group that cannot be read is a fault of each of its rows."""
        group = bisect.bisect_right(self._ends, index)
        if group == len(self._groups):
            return {FAULT: "damaged parquet", "id": self._faults[index - (self._ends[-1] if self._ends else 0)]}
        content = _held.get((self._key, group), lambda: self._read(group))
        if isinstance(content, str):
            return {FAULT: "damaged parquet", "id": content}
        try:
            return content.slice(index - (self._ends[group - 1] if group else 0), 1).to_pylist()[0]
        except (ValueError, OverflowError) as error:  # text that is no UTF-8, a time that Python has not
            return {FAULT: "damaged parquet", "id": f"{self._files[self._groups[group][0]]}: {_said(error)}"}

    def _read(self, group: int) -> Any:
        from pyarrow import ArrowException, parquet

        number, inner = self._groups[group]
        file = self._files[number]
        if self._sizes[group] > _GROUP_BYTES:
            return f"{file}: row group {inner} has {self._sizes[group] >> 20} MiB, over {_GROUP_BYTES >> 20}"
        try:
            with parquet.ParquetFile(file) as opened:
                found = opened.read_row_group(inner, columns=self._columns)
        except (ArrowException, OSError, ValueError, MemoryError) as error:
            return f"{file}, row group {inner}: {_said(error)}"
        rows = self._ends[group] - (self._ends[group - 1] if group else 0)
        return found if len(found) == rows else f"{file}, row group {inner}: {len(found)} of {rows} rows"

    def _size(self, group: Any, file_bytes: int) -> int:
        """Bytes that a row group takes, as its footer says.

        A column's own numbers are asked for where it is too large as a whole, and only then: where they contradict
        each other pyarrow ends the process (`ColumnChunk` of libparquet.pxd raises nothing).
        """
        if group.num_rows > _ROWS_A_BYTE * file_bytes:
            raise ValueError(f"its footer promises {group.num_rows} rows in {file_bytes} bytes")
        whole = int(group.total_byte_size)
        if whole <= _GROUP_BYTES or self._columns is None:
            return whole
        heads = tuple(f"{name}." for name in self._columns)
        columns = [group.column(number) for number in range(group.num_columns)]
        return sum(
            column.total_uncompressed_size for column in columns if f"{column.path_in_schema}.".startswith(heads)
        )

    def of(self, columns: Sequence[str]) -> "ParquetRows":
        """The same rows with some columns only."""
        return ParquetRows(self._files, columns)


def _said(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def parquet(root: Path, split: str = "") -> ParquetRows | None:
    """The rows of the parquet files of a split under a folder, or of one file."""
    files = found(root, ["*.parquet"], split)
    return ParquetRows(files) if files else None
