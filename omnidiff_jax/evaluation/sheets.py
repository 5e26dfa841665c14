"""Answers as tables of other tools: tab-separated text, and a workbook of one sheet."""

import io
import re
from collections.abc import Sequence

from omnidiff_jax.errors import notice
from omnidiff_jax.evaluation.transcripts import one_line

_LONGEST = 32767  # letters of a cell, by the format
_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def both(name: str, rows: Sequence[Sequence[str]]) -> dict[str, str | bytes]:
    """`NAME.tsv`, and `NAME.xlsx` where openpyxl is there.

    Args:
        rows: cells, the header first.
    """
    found: dict[str, str | bytes] = {f"{name}.tsv": table(rows)}
    try:
        found[f"{name}.xlsx"] = workbook(rows)
    except ImportError:
        notice(f"{name}.xlsx is left out, which needs openpyxl: pip install 'omnidiff_jax[benchmarks]'")
    return found


def table(rows: Sequence[Sequence[str]]) -> str:
    """A line a row; what would break it is a space."""
    return "".join("\t".join(map(one_line, row)) + "\n" for row in rows)


def workbook(rows: Sequence[Sequence[str]]) -> bytes:
    """A workbook. Every cell is text: an answer that begins with "=" is no formula, and control letters are left out.

    Raises:
        ImportError: openpyxl is missing.
    """
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell

    book, content = Workbook(write_only=True), io.BytesIO()
    sheet = book.create_sheet("Sheet1")
    for row in rows:
        cells = [WriteOnlyCell(sheet, _NO_TEXT.sub("", text)[:_LONGEST]) for text in row]
        for cell in cells:
            cell.data_type = "s"
        sheet.append(cells)
    book.save(content)
    return content.getvalue()
