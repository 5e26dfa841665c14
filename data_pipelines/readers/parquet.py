"""Parquet tables by (file, row group, row), as Hugging Face keeps them: media are structs of `bytes` and `path`."""

import bisect
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.readers.index import FAULT, Row
from data_pipelines.readers.layouts import found
from omnidiff_jax.errors import UserError

_GROUP_BYTES = 2 * 2**30


class ParquetRows:
    """Rows of parquet files in any order; one row group of the columns in use is held in memory.

    Attributes:
        names: columns of the first file.
        fingerprint: hex digest of the files' footers.
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
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise UserError("parquet needs the extra of that name: pip install 'omnidiff_jax[parquet]'") from error
        self._files, self._columns = list(files), None if columns is None else list(columns)
        digest = hashlib.blake2b(digest_size=16)
        self._groups: list[tuple[int, int]] = []
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
            except (OSError, ValueError) as error:  # what pyarrow raises are kinds of these
                self._faults.append(f"{file}: {str(error).splitlines()[0]}")
                continue
            for group in range(footer.num_row_groups):
                self._groups.append((number, group))
                counts.append(footer.row_group(group).num_rows)
        if not self._groups and self._faults:
            raise UserError(f"{self._faults[0]}; copy it again")
        self._ends = list(itertools.accumulate(counts))
        self._held: tuple[int, Any] = (-1, None)
        self.fingerprint = digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": (-1, None)}

    def __len__(self) -> int:
        return (self._ends[-1] if self._ends else 0) + len(self._faults)

    def __getitem__(self, index: int) -> Row:
        """Row `index`, cells as Python values; a row group that cannot be read is a fault of each of its rows."""
        group = bisect.bisect_right(self._ends, index)
        if group == len(self._groups):
            return {FAULT: "damaged parquet", "id": self._faults[index - (self._ends[-1] if self._ends else 0)]}
        if self._held[0] != group:
            self._held = (group, self._read(group))
        content = self._held[1]
        if isinstance(content, str):
            return {FAULT: "damaged parquet", "id": content}
        return content.slice(index - (self._ends[group - 1] if group else 0), 1).to_pylist()[0]

    def _read(self, group: int) -> Any:
        import pyarrow.parquet as parquet

        number, inner = self._groups[group]
        file = self._files[number]
        try:
            with parquet.ParquetFile(file) as opened:
                size = opened.metadata.row_group(inner).total_byte_size
                if size > _GROUP_BYTES:
                    return f"{file}: row group {inner} has {size >> 20} MiB, over {_GROUP_BYTES >> 20}"
                return opened.read_row_group(inner, columns=self._columns)
        except (OSError, ValueError) as error:
            return f"{file}, row group {inner}: {str(error).splitlines()[0]}"

    def of(self, columns: Sequence[str]) -> "ParquetRows":
        """The same rows with some columns only."""
        return ParquetRows(self._files, columns)


def parquet(root: Path, split: str = "") -> ParquetRows | None:
    """The rows of the parquet files of a split under a folder, or of one file."""
    files = found(root, ["*.parquet"], split)
    return ParquetRows(files) if files else None
