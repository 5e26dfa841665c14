"""Where a benchmark's rows and media lie: folders, json lines, tables with pictures in base64, parquet."""

import ast
import base64
import binascii
import contextlib
import csv
import dataclasses
import functools
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.benchmark import Medium
from omnidiff_jax.files import check_file, safe_join
from omnidiff_jax.files import path as local_path

_LARGEST = 256 << 20  # bytes of one medium
_FIELD = 256 << 20  # of one cell of a table
_JSON = 1 << 30


@dataclasses.dataclass(frozen=True)
class FileMedium:
    """A file."""

    path: str

    def read(self) -> bytes:
        check_file(self.path, "file", _LARGEST)
        return Path(self.path).read_bytes()

    def missing(self) -> str:
        return "" if Path(self.path).is_file() else self.path


@dataclasses.dataclass(frozen=True)
class TableMedium:
    """A picture in base64 in a cell of a tab-separated table: the row is found by its place in the file.

    Attributes:
        number: which one, of a cell that holds several as a list.
    """

    path: str
    start: int
    size: int
    header: tuple[str, ...]
    column: str
    number: int = 0

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.start)
            row = _cells(file.read(self.size), self.path)
        try:
            cell = dict(zip(self.header, row, strict=True))[self.column]
            return base64.b64decode(_pictures(cell)[self.number], validate=True)
        except (ValueError, binascii.Error, KeyError, IndexError) as error:
            raise UserError(f"{self.path}, byte {self.start}: {self.column} is no picture in base64") from error

    def missing(self) -> str:
        return ""


@dataclasses.dataclass(frozen=True)
class ParquetMedium:
    """A cell of a parquet file, of bytes or of a struct that has them."""

    path: str
    group: int
    row: int
    column: str

    def read(self) -> bytes:
        with _whole(self.path):
            cell = _column(self.path, self.group, self.column)[self.row].as_py()
        content = cell.get("bytes") if isinstance(cell, Mapping) else cell
        if not isinstance(content, bytes):
            raise UserError(f"{self.path}: {self.column} of row {self.row} in group {self.group} holds no bytes")
        return content

    def missing(self) -> str:
        return ""


@functools.lru_cache(maxsize=4)
def _column(path: str, group: int, column: str) -> Any:
    return _parquet(path).read_row_group(group, columns=[column]).column(column)


def _parquet(path: str) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path} needs pyarrow: pip install 'omnidiff_jax[benchmarks]'") from error
    with _whole(path):
        return parquet.ParquetFile(path)


@contextlib.contextmanager
def _whole(path: str) -> Iterator[None]:
    """What pyarrow says of damage, of which some is found only in the page that is read."""
    try:
        yield
    except (OSError, ValueError, LookupError) as error:  # ArrowInvalid is a ValueError
        raise UserError(f"{path} is no whole parquet file ({error}); copy or download it again") from error


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table whose media are not read yet.

    Attributes:
        cells: by column, media left out.
        media: by column.
        where: for messages.
    """

    cells: Mapping[str, Any]
    media: Mapping[str, Medium]
    where: str

    def __getitem__(self, column: str) -> Any:
        if column not in self.cells:
            raise UserError(f"{self.where}: no column {column!r}; it has {', '.join(self.cells)}")
        return self.cells[column]

    def text(self, column: str) -> str:
        """A cell as text; raises UserError where the table has no such column."""
        return str(self[column])

    def medium(self, column: str) -> Medium:
        """A picture or recording; raises UserError where the row has none."""
        if column not in self.media:
            raise UserError(f"{self.where}: nothing in column {column!r}, which must hold a picture or a recording")
        return self.media[column]


def parquet_rows(paths: Sequence[Path], media: Sequence[str]) -> Iterator[Row]:
    """Rows of parquet files, one row group in memory at a time and without the columns of `media`.

    Raises:
        UserError: pyarrow is missing, or a file is damaged.
    """
    for path in paths:
        file = _parquet(str(path))
        names = [name for name in file.schema_arrow.names if name not in media]
        there = [name for name in media if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            with _whole(str(path)):
                rows = file.read_row_group(group, columns=names).to_pylist()
            for row, cells in enumerate(rows):
                held: dict[str, Medium] = {name: ParquetMedium(str(path), group, row, name) for name in there}
                yield Row(cells, held, f"{path}, row {row} of group {group}")


def table_rows(path: Path, media: str = "image") -> Iterator[Row]:
    """Rows of a tab-separated table with a header, as VLMEvalKit keeps them; one row in memory at a time.

    A cell may be quoted and hold line breaks. A short `media` cell is the index of a row whose picture this one shares;
    one that holds a list of pictures gives them as `media`, `media 2`, `media 3`, …

    Raises:
        UserError: a file that cannot be read, or a row of another number of cells.
    """
    check_file(path, "table", 1 << 40)
    shared: dict[str, Medium] = {}
    header: tuple[str, ...] = ()
    for start, content in _records(path):
        cells = _cells(content, str(path))
        if not header:
            header = tuple(cells)
            continue
        if len(cells) != len(header):
            raise UserError(f"{path}, byte {start}: {len(cells)} cells under {len(header)} columns")
        row = dict(zip(header, cells, strict=True))
        picture = row.pop(media, "")
        held: dict[str, Medium] = {}
        if len(picture) > 64:
            for number in range(len(_pictures(picture))):
                name = f"{media} {number + 1}" if number else media
                held[name] = TableMedium(str(path), start, len(content), header, media, number)
            shared[row.get("index", "")] = held[media]
        elif picture:
            if picture not in shared:
                raise UserError(f"{path}, byte {start}: {media} is that of row {picture}, which does not come before")
            held[media] = shared[picture]
        yield Row(row, held, f"{path}, byte {start}")


def _pictures(cell: str) -> list[str]:
    """The pictures of a cell: one, or several in quotes, as Python or JSON writes a list."""
    return re.findall(r"""['"]([^'"]*)['"]""", cell) or [""] if cell.startswith("[") else [cell]


def _records(path: Path) -> Iterator[tuple[int, bytes]]:
    """(place, content) of each record: a line, or several where a quoted cell has line breaks."""
    with open(path, "rb") as file:
        start, parts, quotes = 0, b"", 0
        for line in file:
            parts += line
            quotes += line.count(b'"')
            if quotes % 2 == 0:
                if parts.strip():
                    yield start, parts
                start, parts, quotes = start + len(parts), b"", 0
        if parts.strip():
            yield start, parts


def _cells(content: bytes, where: str) -> list[str]:
    csv.field_size_limit(_FIELD)
    try:
        rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter="\t"))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{where}: not a table in UTF-8 ({error})") from error
    if len(rows) != 1:
        raise UserError(f"{where}: a row that cannot be told from the next one")
    return rows[0]


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(number from 1, value) of each line.

    Raises:
        UserError: a line that is not JSON.
    """
    for number, line in text_lines(path):
        try:
            yield number, _json(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not JSON ({error})") from error


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of what is not blank; raises UserError where a line is not UTF-8."""
    check_file(path, "file", _JSON)
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                told = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, line {number}: not UTF-8 ({error}); copy the file again") from error
            if told.strip():
                yield number, told


def json_file(path: Path) -> Any:
    """A whole JSON file; raises UserError where it is none."""
    check_file(path, "file", _JSON)
    try:
        return _json(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); download it again") from error


def _json(text: str) -> Any:
    value = json.loads(text)
    return json.loads(written(json.dumps(value, ensure_ascii=False))) if "\\u" in text else value


def written(text: str) -> str:
    """The text as a file can hold it: half of a character, which escapes can say, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


@contextlib.contextmanager
def told(where: str, needs: str) -> Iterator[None]:
    """Around the reading of a value of JSON: raises UserError where it has another form than that.

    Args:
        where: the file and the place in it.
        needs: what must be there: "question_id and text".
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{where}: must have {needs}") from error


def literal(text: str) -> Any:
    """What a literal of Python says, as some tables keep lists; raises ValueError where it is none."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from error


def beside(root: Path, name: str) -> FileMedium:
    """A medium that a data file names; raises UserError where it would lie outside of `root`."""
    return FileMedium(str(safe_join(root, name)))


def first(root: Path, *names: str) -> Path | None:
    """The first of some files or folders under `root` that is there."""
    return next((root / name for name in names if (root / name).exists()), None)


def found(root: Path, pattern: str) -> list[Path]:
    """Files that match, in the order of their names."""
    return sorted(path for path in root.rglob(pattern) if path.is_file())


def table_in(place: Path, name: str) -> Path | None:
    """The tab-separated table that `--data` names, or the one of that name under the folder that it names."""
    return place if place.suffix == ".tsv" else next(iter(found(place, name)), None)


def folder(data: str, layouts: str) -> Path:
    """The folder or file that `--data` names; raises UserError where there is none."""
    place = local_path(data)
    if not place.exists():
        raise UserError(f"{data} does not exist; --data is {layouts}")
    return place


def unreadable(data: str, layouts: str) -> UserError:
    """What to raise where a folder holds none of the layouts."""
    return UserError(f"{data} holds none of the layouts that can be read: {layouts}")
