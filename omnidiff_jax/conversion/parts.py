"""What both directions of a conversion share: tensors move in parts, a few at a time.

Nothing is held beyond the parts in the workers' hands, so memory does not grow with the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from math import prod

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
    """Attributes:
    component: what was converted.
    tensors: how many released tensors.
    bytes: of their values.
    """

    component: str
    tensors: int
    bytes: int


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


def refuse_nan(name: str, value: np.ndarray) -> None:
    if has_nan(value):
        raise UserError(f"tensor {name!r} holds NaN; its file is broken, or pass --allow_nan to convert it as it is")


def has_nan(value: np.ndarray) -> bool:
    """Whether a NaN is among the values, at the speed of reading them."""
    if value.dtype.name == "bfloat16":
        return bool(value.size) and int((value.view(np.uint16) & 0x7FFF).max()) > 0x7F80
    return np.issubdtype(value.dtype, np.floating) and bool(value.size) and bool(np.isnan(value.min()))


def some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
