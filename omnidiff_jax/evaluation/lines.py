"""Files of one JSON line a sample, added to by several processes and cut off at any moment."""

import json
from collections.abc import Mapping
from typing import Any

from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.places import Place

Key = tuple[str, str]
# In a line: why its sample has no other values yet.
UNREADABLE = "unreadable"


def read_lines(place: Place, stem: str) -> dict[Key, dict[str, Any]]:
    """(split, name) -> the line of it, of all that was added under a name.

    Of one that is there twice the first, but one with values before one that says what could not be read. A last line
    without its end was being written when its process died, and is passed over.

    Raises:
        UserError: another line that is not JSON.
    """
    found: dict[Key, dict[str, Any]] = {}
    for name in place.parts(stem):
        lines = (place.read(name) or b"").split(b"\n")
        for number, line in enumerate(lines[:-1], start=1):
            try:
                value = json.loads(line)
                key = (value["split"], value["name"])
                if UNREADABLE in found.setdefault(key, value):
                    found[key] = value
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{place}/{name}, line {number}: not a line of this stage ({error}); remove it"
                ) from error
    return found


class LineWriter:
    """Adds lines to one process's file; each is there whole, or is a torn last one that the next writer cuts off."""

    def __init__(self, place: Place, stem: str, share: str):
        """Goes on with `STEM.SHARE`; raises UserError where it cannot be written, or another process writes it."""
        self._added = place.added(f"{stem}.{share}")

    def add(self, key: Key, values: Mapping[str, Any]) -> None:
        """Writes the line of one sample."""
        line = {"split": key[0], "name": key[1], **values}
        self._added.add(json.dumps(line, ensure_ascii=True).encode() + b"\n")

    def flush(self) -> None:
        """Others can read it from now on, and a kill loses none of it."""
        self._added.flush()

    def __enter__(self) -> "LineWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._added.close()
