"""Values as users hand them in, of any type: each is checked here, before it is used, and named where it cannot be."""

import operator
import os
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from omnidiff_jax.errors import UserError

# Of noise: seeds and the numbers of requests are 32 bits wide.
SEEDS = 2**32 - 1


def shown(value: Any) -> str:
    """A value as a message shows it: short, whatever it holds."""
    return f"{type(value).__name__} {list(value.shape)}" if isinstance(value, np.ndarray) else reprlib.repr(value)


def is_given(value: Any) -> bool:
    """Whether an argument says anything; an empty text does not."""
    return value is not None and not (isinstance(value, str) and not value)


@contextmanager
def told_of(where: str) -> Iterator[None]:
    """Puts `where` before what a `UserError` says; "" leaves it alone."""
    try:
        yield
    except UserError as error:
        if not where:
            raise
        raise UserError(f"{where}: {error}") from error


def whole(value: Any, name: str, low: int, high: int) -> int:
    """A whole number from `low` to `high`, of Python's, numpy's or any other kind that can be an index.

    Raises:
        UserError: something else, True and False among them.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        raise UserError(f"{name} = {shown(value)} must be a whole number from {low} to {high}")
    return number


def switch(value: Any, name: str) -> bool:
    """True or False; None is False.

    Raises:
        UserError: something else.
    """
    if not isinstance(value, bool | np.bool_ | None):
        raise UserError(f"{name} = {shown(value)} must be True or False")
    return bool(value)


def words(value: Any, name: str) -> str:
    """A string.

    Raises:
        UserError: something else, or half a character that nobody can write.
    """
    if not isinstance(value, str):
        raise UserError(f"{name} = {shown(value)} must be a string, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name} = {shown(value)} holds half a character ({error.reason}); write it anew") from error
    return value


def several(value: Any, name: str, of: str, example: str) -> list[Any]:
    """What a list, a tuple or a generator holds.

    Raises:
        UserError: something else; `of` and `example` say what would be right.
    """
    if not isinstance(value, Sequence | Iterator) or isinstance(value, str | bytes | bytearray | memoryview):
        raise UserError(f"{name} must be a list of {of}, such as {example}, not {type(value).__name__}")
    return list(value)


def group(value: Any, name: str, example: str) -> dict[str, Any]:
    """A mapping by strings, as config groups are, its numbers Python's own and its paths strings; None is empty.

    Raises:
        UserError: something else, here or in a group inside; `example` says what would be right.
    """
    if value is None:
        return {}
    if not _is_group(value):
        raise UserError(f"{name} = {shown(value)} must be a mapping, such as {example}")
    for key in value:
        if not isinstance(key, str):
            raise UserError(f"{name} has the key {shown(key)}, which must be a name, as in {example}")
    return {key: _plain(inner, f"{name}.{key}", example) for key, inner in value.items()}


def _plain(value: Any, name: str, example: str) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return group(value, name, example) if _is_group(value) else value


def _is_group(value: Any) -> bool:
    """Mappings, and what is read like one, such as a ConfigDict."""
    return hasattr(value, "items") and hasattr(value, "keys") and not isinstance(value, type)


def location(value: Any, name: str) -> str | os.PathLike[str]:
    """A path or URL as the user wrote it.

    Raises:
        UserError: no path.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise UserError(f"{name} = {shown(value)} must be a path, not {type(value).__name__}")
    return value
