"""Safetensors files, read and written piece by piece: a header of names, types and offsets, then raw bytes.

Read by hand because a conversion must hold a part of a tensor at a time, keep bfloat16 bit for bit and say what is
wrong with a file; the format is 8 bytes of header length, JSON, data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from omnidiff_jax.errors import UserError

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_QUANTIZED = {"F8": "8-bit floats", "F6": "6-bit floats", "F4": "4-bit floats"}
_OTHERS = {"U": "unsigned integers", "C": "complex numbers"}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 100 << 20


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
        dtype: its type.
        shape: its shape.
        start: first byte, from the beginning of the file.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the first axis (of the whole, where there is none)."""
        return prod(self.shape[1:]) * self.dtype.itemsize


class SafetensorsFile:
    """A file open for reading.

    Attributes:
        path: where it is.
        entries: name -> tensor, in the order of the data.
        metadata: the header's `__metadata__`.

    Raises:
        UserError: the file is cut off, or its header is not that of a safetensors file.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        try:
            self.entries, self.metadata = self._header()
        except BaseException:
            self.close()
            raise

    def _header(self) -> tuple[dict[str, Entry], dict[str, str]]:
        size = os.fstat(self._file).st_size
        length = int.from_bytes(os.pread(self._file, 8, 0), "little") if size >= 8 else 0
        if size < 8 or not 2 <= length <= min(size - 8, _LONGEST_HEADER):
            if what := no_weights(os.pread(self._file, 1024, 0)):
                raise UserError(f"{self.path} is {what}")
            raise self._broken(f"its {size} bytes hold no header of {length} bytes")
        try:
            header = json.loads(os.pread(self._file, length, 8))
            metadata = header.pop("__metadata__", None) or {}
            found = []
            for name, row in header.items():
                start, end = row["data_offsets"]
                shape = tuple(int(n) for n in row["shape"])
                found.append((int(start), int(end), name, self._dtype(name, str(row["dtype"])), shape))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._broken(f"its header is not understood ({type(error).__name__}: {error})") from error
        at, entries = 0, {}
        for start, end, name, dtype, shape in sorted(found):
            if start != at or end - start != prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
                raise self._broken(f"tensor {name!r} at bytes {start}..{end} does not follow the one before it")
            entries[name], at = Entry(dtype, shape, 8 + length + start), end
        if size != 8 + length + at:
            raise self._broken(f"it has {size} bytes where its header tells of {8 + length + at}")
        return entries, metadata

    def _dtype(self, tensor: str, name: str) -> np.dtype:
        if name in DTYPES:
            return DTYPES[name]
        what = _QUANTIZED.get(name.split("_")[0]) or _OTHERS.get(name[:1], "a type that is not known here")
        quantized = " of a quantized checkpoint" if what in _QUANTIZED.values() else ""
        raise UserError(
            f"{self.path}: tensor {tensor!r} is {name}, {what}{quantized}; weights must be BF16, F16, F32 or F64: "
            "give a checkpoint in one of them"
        )

    def _broken(self, reason: str) -> UserError:
        return UserError(f"{self.path} is not a whole safetensors file: {reason}; download or copy it again")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows `start` to `stop` of a tensor (all by default), a fresh array.

        Raises:
            UserError: the file has become shorter.
        """
        entry = self.entries[name]
        shape = entry.shape
        offset = entry.start
        if shape and (start or stop is not None):
            stop = shape[0] if stop is None else stop
            shape, offset = (stop - start, *shape[1:]), offset + start * entry.row_bytes
        out = np.empty(prod(shape) * entry.dtype.itemsize, np.uint8)
        view, done = out.data, 0
        while done < len(view):
            got = os.preadv(self._file, [view[done:]], offset + done)
            if got == 0:
                raise self._broken(f"it ends within tensor {name!r}")
            done += got
        return out.view(entry.dtype).reshape(shape)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


class SafetensorsWriter:
    """A file whose tensors are known beforehand and may be written in any order, in parts, from several threads."""

    def __init__(self, path: Path, tensors: Sequence[tuple[str, np.dtype, Sequence[int]]], metadata: Mapping[str, str]):
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        spans, at = {}, 0
        for name, dtype, shape in tensors:
            if dtype not in _NAMES:
                raise UserError(f"tensor {name!r} is of type {dtype}, which safetensors do not hold; convert it first")
            size = prod(shape) * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
            spans[name] = (at, size)
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._base, self._spans = 8 + len(text), spans
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            _write(self._file, len(text).to_bytes(8, "little") + text, 0)
            os.ftruncate(self._file, self._base + at)
        except BaseException:
            os.close(self._file)
            raise

    def write(self, name: str, value: np.ndarray, offset: int = 0) -> None:
        """Writes contiguous `value` at `offset` bytes into the tensor."""
        start, size = self._spans[name]
        if offset + value.nbytes > size:
            raise ValueError(f"{value.nbytes} bytes at {offset} do not fit the {size} of {name!r}")
        data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        _write(self._file, data.data, self._base + start + offset)

    def close(self) -> None:
        os.close(self._file)


def no_weights(start: bytes) -> str:
    """What a file is that begins like this and holds no tensors, with the remedy; "" where it cannot be told."""
    text = start.lstrip()[:200].lower()
    if text.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer in place of the weights; fetch them with `git lfs pull`"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page in place of the weights; the download was answered by a page, perhaps for want of a login"
    if text.startswith((b"{", b"[")):
        return "JSON in place of the weights; download the file of tensors itself"
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")):
        return "a torch file by another name; name it .pt to have it read as one"
    if start.startswith((b"\x1f\x8b", b"\x89HDF", b"GGUF")):
        kind = {b"\x1f": "gzip", b"\x89": "HDF5", b"G": "GGUF"}[start[:1]]
        return f"a {kind} file, which is not read here; give safetensors or a torch file"
    return "" if start else "an empty file; download or copy it again"


def _write(file: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while len(view):
        done = os.pwrite(file, view, offset)
        view, offset = view[done:], offset + done
