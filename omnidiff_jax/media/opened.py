"""Media opened for reading, wherever their bytes lie: a file, a stretch of one, or memory."""

import dataclasses
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from omnidiff_jax.errors import UserError
from omnidiff_jax.fetching import local_copy
from omnidiff_jax.files import check_file
from omnidiff_jax.records import Medium

AnyMedium = str | os.PathLike[str] | Medium


@dataclasses.dataclass(frozen=True)
class Opened:
    """A medium that can be read: its name for messages, its bytes from position 0 on, and how many they are."""

    name: str
    file: BinaryIO
    size: int


@contextmanager
def opened(medium: AnyMedium, what: str, max_bytes: int) -> Iterator[Opened]:
    """Opens a medium after the checks that need no decoding; a part of a file is read into memory.

    Args:
        medium: a path, or what says where it lies.
        what: "image" or "audio file", for messages.
        max_bytes: the largest size allowed.

    Raises:
        UserError: missing, not a regular file, unreadable, empty, cut short, or larger than `max_bytes`.
    """
    if not isinstance(medium, Medium):
        medium = Medium(str(local_copy(medium)), os.fspath(medium))
    name = medium.name
    if medium.content is not None:
        _check_size(name, what, len(medium.content), max_bytes)
        yield Opened(name, io.BytesIO(medium.content), len(medium.content))
        return
    place = local_copy(medium.path)
    if medium.size is None and not medium.offset:
        size = check_file(place, what, max_bytes)
        try:
            with open(place, "rb") as file:
                yield Opened(name, file, size)
        except PermissionError as error:
            raise UserError(f"{what} {name} cannot be read ({error.strerror}); check its permissions") from error
        return
    if medium.size is not None:
        _check_size(name, what, medium.size, max_bytes)
    try:
        with open(place, "rb") as file:
            file.seek(medium.offset)
            content = file.read(max_bytes + 1 if medium.size is None else medium.size)
    except (OSError, ValueError) as error:
        raise UserError(f"{what} {name} cannot be read ({error}); check the path") from error
    if medium.size is not None and len(content) < medium.size:
        raise UserError(f"{what} {name} is cut short: {len(content)} of {medium.size} bytes; copy {place} again")
    _check_size(name, what, len(content), max_bytes)
    yield Opened(name, io.BytesIO(content), len(content))


def _check_size(name: str, what: str, size: int, max_bytes: int) -> None:
    if size <= 0:
        raise UserError(f"{what} {name} is empty (0 bytes); copy or export it again")
    if size > max_bytes:
        raise UserError(
            f"{what} {name} is {size / 2**20:.1f} MiB, over the limit of {max_bytes / 2**20:.0f} MiB; "
            "give a smaller one"
        )
