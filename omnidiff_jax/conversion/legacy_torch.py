"""State dicts of before torch 1.6 (`.pth`), read without torch and without running a pickle.

Such a file is four pickles (a number, a version, the writer's machine, the state dict), a fifth with the names of the
storages, then each storage: its length and its bytes. The pickles are read as lists of opcodes: of the many, those
that spell out dictionaries of tensors are understood; nothing is imported, called or looked up by a name of the file.
"""

import dataclasses
import io
import math
import pickletools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from omnidiff_jax.errors import UserError

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_TYPES: dict[str, np.dtype] = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
}
_REBUILD, _ORDERED = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
_MARK = object()
_MOST_OPCODES = 1 << 20
_MOST_DIMENSIONS = 8


class _BrokenError(Exception):
    """Why a file is not read."""


@dataclasses.dataclass(frozen=True)
class _Named:
    """A name that the pickle would import."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True)
class _View:
    """A tensor: part of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, raw: bytes) -> np.ndarray:
        """The tensor, of its storage's bytes; numpy refuses what reaches beyond them."""
        dtype = self.storage.dtype
        steps = [stride * dtype.itemsize for stride in self.strides]
        return np.ndarray(self.shape, dtype, raw, self.offset * dtype.itemsize, steps).copy()


def read_legacy(path: Path, largest: int = 1 << 30) -> dict[str, np.ndarray]:
    """Name -> tensor, of a state dict.

    Args:
        path: the file.
        largest: bytes that it may have.

    Raises:
        UserError: it cannot be read, is too large, cut off, or holds anything but tensors.
    """
    try:
        size = path.stat().st_size
        if size > largest:
            raise UserError(f"{path} has {size} bytes, more than the {largest} that are read")
        # From memory: a file would set aside as many bytes as a damaged length asks for.
        return _read(io.BytesIO(path.read_bytes()), size)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (_BrokenError, ValueError, IndexError, TypeError, OverflowError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is no whole state dict of before torch 1.6 ({error}); copy it again, or give safetensors"
        ) from error


def _read(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    if file.read(2) != b"\x80\x02":
        raise _BrokenError("it begins with no pickle of protocol 2")
    file.seek(0)
    if _unpickled(file) != _MAGIC or _unpickled(file) != _VERSION:
        raise _BrokenError("it has not the number that such files begin with")
    if _unpickled(file).get("little_endian") is not True:
        raise _BrokenError("its numbers are not little-endian")
    views, keys = _unpickled(file), _unpickled(file)
    if not isinstance(views, dict) or not isinstance(keys, list):
        raise _BrokenError("it holds no dictionary of tensors")
    for name, view in views.items():
        if not isinstance(view, _View):
            raise _BrokenError(f"{name!r} is no tensor")
    known = {view.storage.key: view.storage for view in views.values()}
    if any(view.storage != known[view.storage.key] for view in views.values()):
        raise _BrokenError("a storage has two sizes")
    if not all(isinstance(key, str) for key in keys) or set(keys) != set(known) or len(keys) != len(known):
        raise _BrokenError("its list of storages is not that of its tensors")
    # Views of one storage are copied each: together they may be no more than what is there.
    if sum(math.prod(view.shape) for view in views.values()) > sum(storage.count for storage in known.values()):
        raise _BrokenError("its tensors are more than its storages")
    held = {}
    for key in keys:
        storage = known[key]
        count = int.from_bytes(file.read(8), "little")
        if count != storage.count or count * storage.dtype.itemsize > size - file.tell():
            raise _BrokenError(f"storage {key!r} of {count} numbers is not what its tensors say, or is cut off")
        held[key] = file.read(count * storage.dtype.itemsize)
    if file.tell() != size:
        raise _BrokenError(f"{size - file.tell()} bytes stand behind its last tensor")
    return {name: view.of(held[view.storage.key]) for name, view in views.items()}


def _unpickled(file: BinaryIO) -> Any:
    """The value that one pickle spells out, of strings, numbers, tuples, lists, dictionaries and tensors."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for number, (opcode, given, _) in enumerate(pickletools.genops(file)):
        name, argument = opcode.name, cast(Any, given)
        if number > _MOST_OPCODES:
            raise _BrokenError(f"more than {_MOST_OPCODES} opcodes")
        if name == "STOP":
            (value,) = stack
            return value
        if name == "PROTO":
            continue
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _NUMBERS:
            stack.append(argument)
        elif name == "GLOBAL":
            if argument not in (*_TYPES, _REBUILD, _ORDERED):
                raise _BrokenError(f"it asks for {argument.replace(' ', '.')[:80]!r}, which is no part of a tensor")
            stack.append(_Named(argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in _STEPS:
            _STEPS[name](stack)
        else:
            raise _BrokenError(f"opcode {name} is no part of a state dict")
    raise _BrokenError("it ends within a pickle")


def _since_mark(stack: list[Any]) -> list[Any]:
    at = len(stack) - 1
    while stack[at] is not _MARK:
        at -= 1
        if at < 0:
            raise _BrokenError("a mark is missing")
    found = stack[at + 1 :]
    del stack[at:]
    return found


def _tuple(count: int) -> Callable[[list[Any]], None]:
    def step(stack: list[Any]) -> None:
        if len(stack) < count:
            raise _BrokenError("its stack is empty")
        stack[-count:] = [tuple(stack[-count:])]

    return step


def _set(stack: list[Any], flat: list[Any]) -> None:
    pairs: Iterator[Any] = iter(flat)
    for key, value in zip(pairs, pairs, strict=True):
        # No others are hashed: of tuples within tuples that may take for ever.
        if not isinstance(key, str):
            raise _BrokenError("a name is no text")
        stack[-1][key] = value


def _appended(stack: list[Any]) -> None:
    found = _since_mark(stack)
    stack[-1].extend(found)


def _reduced(stack: list[Any]) -> None:
    """What a call would give."""
    arguments, called = stack.pop(), stack.pop()
    if called == _Named(_ORDERED) and arguments == ():
        stack.append({})
    elif called == _Named(_REBUILD):
        stack.append(_view(*arguments[:4]))
    else:
        raise _BrokenError("it calls what is no part of a tensor")


def _view(storage: Any, offset: Any, shape: Any, strides: Any) -> _View:
    sizes = all(type(n) is int and n >= 0 for n in (offset, *shape, *strides))
    if not isinstance(storage, _Storage) or not sizes or len(shape) > _MOST_DIMENSIONS or len(shape) != len(strides):
        raise _BrokenError("a tensor of no sizes")
    return _View(storage, offset, tuple(shape), tuple(strides))


def _stored(stack: list[Any]) -> None:
    kind, named, key, _, count, _ = cast(tuple, stack.pop())
    if kind != "storage" or not isinstance(key, str) or type(count) is not int or count < 0:
        raise _BrokenError("a storage of no size")
    stack.append(_Storage(key, _TYPES[named.name], count))


def _drop(stack: list[Any]) -> None:
    """State of a dictionary (versions of modules) is not needed."""
    stack.pop()


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "MARK": lambda: _MARK,
}
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE")
_STEPS: dict[str, Callable[[list[Any]], None]] = {
    "TUPLE": lambda stack: stack.append(tuple(_since_mark(stack))),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": lambda stack: stack[-2].append(stack.pop()),
    "APPENDS": _appended,
    "SETITEM": lambda stack: _set(stack, [stack.pop(-2), stack.pop()]),
    "SETITEMS": lambda stack: _set(stack, _since_mark(stack)),
    "REDUCE": _reduced,
    "BINPERSID": _stored,
    "BUILD": _drop,
}
