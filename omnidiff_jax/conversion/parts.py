"""What both directions of a conversion share: tensors move in parts, a few at a time.

Nothing is held beyond the parts in the workers' hands, so memory does not grow with the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from math import isfinite, isnan, prod
from typing import Any

import jax
import numpy as np

from omnidiff_jax.conversion.rules import Assignment
from omnidiff_jax.errors import UserError

PART = 16 << 20
"""Bytes of a part: larger matrices are moved in blocks of rows."""
WORKERS = 3
FILES = "released_files"
"""Folder inside an Orbax checkpoint for the small files of the released one: configs, text tokenizer."""


@dataclass(frozen=True)
class Summary:
    """What a conversion has done.

    Attributes:
        component: what was converted.
        tensors: how many released tensors.
        bytes: of their values.
        assumed: fields that change numbers and that neither tensors nor config told, with the values they were given.
    """

    component: str
    tensors: int
    bytes: int
    assumed: Mapping[str, Any] = field(default_factory=dict)


def cast(found: np.dtype, wanted: np.dtype | None) -> np.dtype:
    return wanted if wanted is not None and jax.numpy.issubdtype(found, np.floating) else found


def part_rows(name: str, shape: tuple[int, ...], itemsize: int) -> int | None:
    """Rows of a released tensor that make a part; None where the tensor is moved whole."""
    if prod(shape) * itemsize <= PART or name not in ("none", "linear") or len(shape) != 2:
        return None
    return max(PART // (shape[1] * itemsize), 1)


def row_axis(name: str) -> int:
    """Axis of the moved tensor that the released rows become."""
    return 1 if name == "linear" else 0


def spans(shape: Sequence[int], step: int | None) -> list[tuple[int, int] | None]:
    if step is None:
        return [None]
    return [(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def region(place: Assignment, span: tuple[int, int] | None) -> tuple[int | slice, ...]:
    """The part of the array that these rows of the released tensor become."""
    if span is None:
        return place.index
    rows = slice(*span)
    return (*place.index, slice(None), rows) if row_axis(place.transform) else (*place.index, rows)


def run_jobs(jobs: Iterator[Callable[[], None]]) -> None:
    """Runs the jobs a few at a time; the first that fails ends it all."""
    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(job) for job in jobs]
        wait(futures, return_when=FIRST_EXCEPTION)
        pool.shutdown(wait=True, cancel_futures=True)
    for future in futures:
        if not future.cancelled():
            future.result()


def checked_cast(name: str, value: np.ndarray, dtype: np.dtype, allow_nan: bool) -> np.ndarray:
    """`value` in another type, if every number of it has a place there.

    Args:
        name: of the released tensor, for messages.
        value: a part of it.
        dtype: wanted.
        allow_nan: let through what is not finite already.

    Raises:
        UserError: it holds NaN or infinities that nobody allowed, or a number beyond the largest of `dtype`.
    """
    if not jax.numpy.issubdtype(value.dtype, np.floating):
        return value.astype(dtype, copy=False)
    top = largest(value)
    if not isfinite(top):
        if not allow_nan:
            what = "NaN" if isnan(top) else "infinite numbers"
            raise UserError(
                f"tensor {name!r} holds {what}; its file is broken, or pass --allow_nan to convert it as it is"
            )
        top = largest(value, finite=True)
    if jax.numpy.issubdtype(dtype, np.floating) and top > (most := float(jax.numpy.finfo(dtype).max)):
        with np.errstate(over="ignore"):
            fits = np.isfinite(np.array(top, value.dtype).astype(dtype))  # what rounds down to the largest fits
        if not fits:
            raise UserError(
                f"tensor {name!r} holds numbers up to {top:.6g}, and the largest {dtype.name} is {most:.6g}; convert "
                "to another --dtype, such as float32"
            )
    return value.astype(dtype, copy=False)


_BLOCK = 1 << 16  # numbers looked at together: they stay in the processor's cache


def largest(value: np.ndarray, finite: bool = False) -> float:
    """The largest magnitude among floats, NaN counting as the largest of all, at the speed of reading them.

    Args:
        value: of any floating type.
        finite: of the finite ones only.
    """
    words = np.dtype(f"u{value.dtype.itemsize}")
    infinity = np.array(np.inf, value.dtype).view(words)
    bits, top = value.reshape(-1).view(words), 0
    sign = words.type(1 << (8 * words.itemsize - 1))
    for start in range(0, bits.size, _BLOCK):
        magnitudes = bits[start : start + _BLOCK] & ~sign  # without their sign, floats are ordered as integers are
        if finite:
            magnitudes = magnitudes[magnitudes < infinity]
        top = max(top, int(magnitudes.max(initial=0)))
    return float(np.array(top, words).view(value.dtype))


def some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
