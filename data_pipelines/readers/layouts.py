"""Layouts for anybody: trees of media with texts beside them, tables, JSON lines and lists, tar shards.

Each gives the rows of a folder or file, written down once (`index.py`). A cell that holds a medium is a path under the
root, or {"path", "offset", "size"}: bytes of an archive.
"""

import csv
import gzip
import io
import json
import os
import re
import string
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from data_pipelines.readers.index import FAULT, Lines, Row, indexed
from data_pipelines.readers.streamed import elements
from omnidiff_jax.errors import UserError

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
AUDIOS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
SPLITS = ("train", "validation", "validated", "valid", "val", "dev", "test")
_TEXT_BYTES = 2**20
_TEXTS = ("txt", "json", "cls", "caption")


def found(root: Path, patterns: Sequence[str], split: str = "") -> list[Path]:
    """Files under `root` (or itself) that a pattern names, without hidden ones, of a split where names say any.

    Args:
        root: a folder or a single file.
        patterns: of `Path.rglob`.
        split: "" = all.
    """
    if root.is_file():
        return [root] if any(root.match(pattern) for pattern in patterns) else []
    files = sorted({file for pattern in patterns for file in root.rglob(pattern) if file.is_file()})
    files = [file for file in files if not any(part.startswith((".", "__MACOSX")) for part in _parts(root, file))]
    if not split or not any(_of(_parts(root, file), other) for file in files for other in SPLITS):
        return files
    return [file for file in files if _of(_parts(root, file), split)]


def folder(root: Path, split: str) -> Lines | None:
    """Images and recordings with a text of the same name (`.txt`, `.normalized.txt`, `.lab`) beside them.

    Folders say what is of another split. Names of files do where each says some: `test_tube.png` is else a picture.
    """
    media = found(root, [f"*{ending}" for kind in (IMAGES, AUDIOS) for ending in kind])
    if not media or root.is_file():
        return None
    if split:
        named = all(any(_of((file.name,), other) for other in SPLITS) for file in media)
        parts = [(file, _parts(root, file) if named else _parts(root, file)[:-1]) for file in media]
        others = [other for other in SPLITS if other != split]
        media = [file for file, said in parts if _of(said, split) or not any(_of(said, other) for other in others)]

    def texts(file: Path) -> Iterator[tuple[str, Path]]:
        for ending in (".normalized.txt", ".original.txt", ".txt", ".lab"):
            if (beside := file.with_name(file.name[: -len(file.suffix)] + ending)).is_file():
                yield ending, beside

    def rows() -> Iterator[Row]:
        for file in media:
            stem = file.name[: -len(file.suffix)]
            row = {"id": stem, "image" if file.suffix.lower() in IMAGES else "audio": relative(root, file)}
            for ending, beside in texts(file):
                text = _small(beside)
                row |= {"text": text} if "text" not in row else {}
                row[ending.strip(".")] = text
            yield row if "text" in row else {FAULT: "no text beside the medium", "id": str(file)}

    # Made again when a text is added or edited, not only a medium.
    return indexed(f"folder {split}", root, [*media, *(beside for file in media for _, beside in texts(file))], rows)


def table(root: Path, pattern: str, delimiter: str = "", quoted: bool = True) -> Lines | None:
    """Rows of the tables that `pattern` names, a header first, packed or not.

    Args:
        root: folder or file.
        pattern: of their names.
        delimiter: between cells; "" = by the name: a comma in .csv, else a tab.
        quoted: whether a cell may stand in quotes; where not, a quote is a character like any other.
    """
    files = found(root, [pattern])
    if not files:
        return None

    def rows() -> Iterator[Row]:
        for file in files:
            between = delimiter or ("," if ".csv" in file.suffixes else "\t")
            with text_lines(file) as lines:
                quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
                reader = csv.reader(_clean(lines), delimiter=between, quoting=quoting)
                names: list[str] = []
                try:
                    names = next(reader, [])
                    for cells in reader:
                        if len(cells) == len(names):
                            yield dict(zip(names, cells, strict=True))
                        elif cells:
                            where = f"{file.name}, line {reader.line_num}"
                            yield {FAULT: "row of another number of cells", "id": where}
                except (csv.Error, EOFError, OSError) as error:
                    yield {FAULT: "damaged table", "id": f"{file.name}, line {reader.line_num}: {error}"}

    return indexed(f"table {delimiter} {quoted}", root, files, rows)


def json_lines(root: Path, pattern: str = "*.jsonl") -> Lines | None:
    """Objects of JSON lines, or of files that are one JSON list."""
    files = found(root, [pattern])
    if not files:
        return None

    def rows() -> Iterator[Row]:
        for file in files:
            with text_lines(file) as lines:
                if file.suffix == ".json":
                    for number, item in enumerate(elements(lines, file), start=1):
                        yield item if isinstance(item, dict) else {FAULT: "row is no object", "id": f"{file}, {number}"}
                    continue
                for number, line in enumerate(lines, start=1):
                    if line.strip(string.whitespace):  # not what Unicode counts as blank: a line of that is damaged
                        yield _parsed(line, f"{file.name}, line {number}")

    return indexed("json", root, files, rows)


def read_json(lines: TextIO, file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it is none.
    """
    try:
        return json.load(lines)
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{file} is not JSON ({error}); copy it again") from error


def tars(root: Path, split: str = "") -> Lines | None:
    """Samples of tar shards as WebDataset has them: members of one name up to the first dot, in whatever order.

    Texts and JSON stand in the row, media as places of their bytes. A name that is there twice, and what stands behind
    a break of an archive, are faults.

    Raises:
        UserError: a packed archive, which cannot be read in any order.
    """
    files = found(root, ["*.tar", "*.tar.gz", "*.tgz"], split)
    if not files:
        return None
    if packed := [file for file in files if file.suffix != ".tar"]:
        raise UserError(f"{packed[0]} is packed, its members cannot be read in any order; unpack it (gunzip)")
    return indexed(
        f"tar {split}", root, files, lambda: (row for file in files for row in _samples(file, relative(root, file)))
    )


def _samples(file: Path, name: str) -> Iterator[Row]:
    samples: dict[str, Row] = {}
    broken, before = "", -1
    size = file.stat().st_size
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                if member.size < 0 or member.offset <= before:
                    broken = f"{member.name!r} has no size that can be"
                    break
                before = member.offset
                directory, _, base = member.name.rpartition("/")
                stem, dot, ending = base.partition(".")
                if not member.isreg() or not stem or not dot or member.issparse():
                    continue
                key = f"{directory}/{stem}" if directory else stem
                row = samples.setdefault(key, {"__key__": key})
                ending = ending.lower()
                if ending in row:
                    row[FAULT] = "two members of one name"
                elif member.offset_data + member.size > size:
                    row[FAULT] = "archive is cut short"
                elif ending.rpartition(".")[2] in _TEXTS:
                    row[ending] = _text_member(archive, member, ending, row)
                else:
                    row[ending] = {"path": name, "offset": member.offset_data, "size": member.size}
            end = archive.offset
        with file.open("rb") as content:
            content.seek(end)
            # A damaged header ends the archive without a word; a whole one ends in a block of zeros.
            if not broken and content.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                broken = f"neither a member nor the end at byte {end}"
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        broken = str(error)
    for key, row in samples.items():
        yield row if FAULT not in row else {FAULT: row[FAULT], "id": f"{name}, {key}"}
    if broken:
        yield {FAULT: "archive is cut short", "id": f"{name}: {broken}"}


def _text_member(archive: tarfile.TarFile, member: tarfile.TarInfo, ending: str, row: Row) -> Any:
    if member.size > _TEXT_BYTES:
        row[FAULT] = "text over a megabyte"
        return ""
    file = archive.extractfile(member)
    content = file.read().decode("utf-8", "replace") if file else ""
    if ending.rpartition(".")[2] != "json":
        return content
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        row[FAULT] = "member is not JSON"
        return {}


def text_lines(file: Path) -> TextIO:
    """The file as text, packed or not; what is no UTF-8 is replaced, a mark of byte order left out."""
    raw: Any = gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb")
    return io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace", newline="")


def _clean(lines: Iterable[str]) -> Iterator[str]:
    return (line.replace("\0", "") for line in lines)


def _parsed(line: str, where: str) -> Row:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {FAULT: "line is not JSON", "id": where}
    return content if isinstance(content, dict) else {FAULT: "row is no object", "id": where}


def _small(file: Path) -> str:
    with open(file, "rb") as raw:
        return raw.read(_TEXT_BYTES).decode("utf-8-sig", "replace")


def relative(root: Path, file: Path) -> str:
    """The path of a file from the root of its rows."""
    return file.relative_to(root if root.is_dir() else root.parent).as_posix()


def beside(root: Path, folder: Path, name: str) -> str:
    """The path, from the root of its rows, of a file that a row names in a folder; an absolute name stays one."""
    return name if os.path.isabs(name) else f"{relative(root, folder)}/{name}"


def _parts(root: Path, file: Path) -> tuple[str, ...]:
    return file.relative_to(root).parts


def _of(parts: Sequence[str], split: str) -> bool:
    """Whether a part of a path says the split: alone, or as a word between marks, as in `partial-train`."""
    word = re.compile(rf"(^|[-_.]){re.escape(split)}([-_.]|$)")
    return any(word.search(part) for part in parts)
