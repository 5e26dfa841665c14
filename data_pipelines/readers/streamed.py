"""JSON files of any size, one element of their list in memory at a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from omnidiff_jax.errors import UserError

_BLOCK = 1 << 16
_LARGEST = 64 * 2**20
_BLANKS = " \t\r\n"


class _Cursor:
    """A text read block by block, of which what was passed is forgotten."""

    def __init__(self, lines: TextIO):
        self._lines = lines
        self._text, self._at = "", 0
        self._decode = json.JSONDecoder().raw_decode

    def skip(self) -> str:
        """The next character that is no blank, not passed yet; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANKS:
                self._at += 1
            if self._at < len(self._text) or not self._more(_BLOCK):
                return self._text[self._at : self._at + 1]

    def take(self, wanted: str) -> str:
        """Passes the next character, which must be one of `wanted`."""
        found = self.skip()
        if not found or found not in wanted:
            raise ValueError(f"{found or 'the end'!r} where one of {wanted} is to stand")
        self._at += 1
        return found

    def value(self) -> Any:
        """Passes a value; a number counts as whole once something stands behind it."""
        self.skip()
        size = _BLOCK
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                if end < len(self._text) or not self._more(_BLOCK):
                    self._at = end
                    return value
            except ValueError:
                # Cut off by the block, or no JSON: twice as much says more, up to a bound.
                if len(self._text) - self._at > _LARGEST or not self._more(size):
                    raise
                size *= 2

    def _more(self, size: int) -> bool:
        block = self._lines.read(size)
        self._text, self._at = self._text[self._at :] + block, 0
        return bool(block)


def elements(lines: TextIO, file: Path, key: str = "") -> Iterator[Any]:
    """The elements of a list in a JSON file, in their order.

    Args:
        lines: the file's text.
        file: for messages.
        key: of the object in the file that the list stands under; "" = the file is the list.

    Raises:
        UserError: no JSON, no such list, or an element beyond 64 MiB.
    """
    cursor = _Cursor(lines)
    try:
        if key:
            _enter(cursor, key)
        if cursor.skip() != "[":
            raise UserError(f"{file} is no list of objects; give JSON lines or a list")
        cursor.take("[")
        if cursor.skip() == "]":
            return
        while True:
            yield cursor.value()
            if cursor.take(",]") == "]":
                return
    except (ValueError, RecursionError, OSError, EOFError) as error:
        raise UserError(f"{file} is not JSON ({error}); copy it again") from error


def _enter(cursor: _Cursor, key: str) -> None:
    """Passes the keys of an object before `key`, and it."""
    cursor.take("{")
    while cursor.skip() != "}":
        name = cursor.value()
        cursor.take(":")
        if name == key:
            return
        cursor.value()
        if cursor.take(",}") == "}":
            break
    raise ValueError(f"no key {key!r}")
