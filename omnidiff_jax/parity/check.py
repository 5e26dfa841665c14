"""Comparisons: one row for each output, and an output that is required but was not compared is a row that fails."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnidiff_jax.conversion.rules import Rule, to_flax, to_torch
from omnidiff_jax.errors import UserError
from omnidiff_jax.parity.fixtures import Fixture

RELATIVE = 1e-4
"""Of a value, or of its array's root mean square where that is larger (float32 noise does not follow one value)."""


@dataclass(frozen=True)
class Row:
    """The verdict on one output.

    Attributes:
        fixture: file name without ending.
        output: its name in the file.
        max_error: largest error, in the unit of `tolerance`; None where there is nothing to compare.
        tolerance: 0 = equal to the last bit.
        ok: whether it holds.
        note: what is wrong, if that is not the error.
    """

    fixture: str
    output: str
    max_error: float | None
    tolerance: float
    ok: bool
    note: str = ""


class Check:
    """Collects the rows of one fixture."""

    def __init__(self, fixture: Fixture):
        self.fixture = fixture
        self.rows: list[Row] = []
        self._absent: list[str] = []

    def exact(self, output: str, actual: Any) -> None:
        """Integers, flags, shapes: every element equal."""
        self._compare(output, actual, 0.0, relative=False)

    def absolute(self, output: str, actual: Any, tolerance: float) -> None:
        """Largest absolute error at most `tolerance`."""
        self._compare(output, actual, tolerance, relative=False)

    def relative(self, output: str, actual: Any, tolerance: float = RELATIVE) -> None:
        """Largest error relative to the value, or to the array's root mean square where that is larger."""
        self._compare(output, actual, tolerance, relative=True)

    def share(self, output: str, actual: Any, tolerance: float, least: float, where: np.ndarray) -> None:
        """As `relative`, of the elements `where` (bool), over all of them but the worst 1 - `least`.

        For values that a cut-off at float noise may move (top-p); elements of no meaning are NaN in
        the recording.
        """
        expected = self._expected(output, actual)
        if expected is None:
            return
        error = np.sort(_errors(expected[where], np.asarray(actual)[where], relative=True))
        kept = error[: max(int(np.ceil(least * len(error))), 1)]
        worst = float(kept[-1]) if len(kept) else 0.0
        self._add(output, worst if np.isfinite(error).all() else np.inf, tolerance)

    def fail(self, output: str, note: str) -> None:
        self.rows.append(Row(self.fixture.name, output, None, 0.0, False, note))

    def converted(self, rules: Sequence[Rule], tensors: dict[str, np.ndarray], like: Any = None) -> dict:
        """Parameters by the converter's rules; a row says whether the way back gives every bit of every tensor."""
        params = to_flax(rules, tensors, like)
        back = to_torch(rules, params)
        wrong = [name for name in tensors if name not in back or not _same_bits(tensors[name], back[name])]
        note = f"the round trip changes {', '.join(sorted(wrong)[:3])}" if wrong or len(back) != len(tensors) else ""
        self.rows.append(Row(self.fixture.name, "params", float(len(wrong)), 0.0, not note, note))
        return params

    def finish(self, required: Sequence[str]) -> None:
        """Adds a failing row for each required output that the file lacks, or that was not compared."""
        compared = {row.output for row in self.rows}
        for pattern in required:
            names = [name for name in self.fixture.outputs if fnmatch.fnmatchcase(name, pattern)]
            absent = [name for name in self._absent if fnmatch.fnmatchcase(name, pattern)]
            for name in absent or ([] if names else [pattern]):
                self.fail(name, "the fixture lacks this required output")
            for name in names:
                if name not in compared:
                    self.fail(name, "this required output has no counterpart here")

    def _expected(self, output: str, actual: Any) -> np.ndarray | None:
        if output not in self.fixture:
            self._absent.append(output)  # `finish` says so if it is required
            return None
        expected = self.fixture[output]
        if expected.dtype.kind not in "biuf":
            self.fail(output, f"is of type {expected.dtype}, which holds no numbers")
            return None
        if np.shape(actual) != expected.shape:
            self.fail(output, f"is {list(expected.shape)} in the fixture, {list(np.shape(actual))} here")
            return None
        return expected

    def _compare(self, output: str, actual: Any, tolerance: float, relative: bool) -> None:
        expected = self._expected(output, actual)
        if expected is not None:
            errors = _errors(expected, np.asarray(actual), relative)
            self._add(output, float(errors.max(initial=0.0)), tolerance)

    def _add(self, output: str, error: float, tolerance: float) -> None:
        finite = bool(np.isfinite(error))
        note = "" if finite else "a value is not finite"
        ok = finite and error <= tolerance
        self.rows.append(Row(self.fixture.name, output, error if finite else None, tolerance, ok, note))


def _errors(expected: np.ndarray, actual: np.ndarray, relative: bool) -> np.ndarray:
    """float64, flat; infinite where either side is not finite."""
    expected, actual = (np.asarray(x, np.float64).reshape(-1) for x in (expected, actual))
    finite = np.isfinite(expected) & np.isfinite(actual)
    error = np.where(finite, np.abs(np.where(finite, actual - expected, 0.0)), np.inf)
    if relative and error.size:
        good = expected[np.isfinite(expected)]
        scale = float(np.sqrt(np.mean(np.square(good)))) if good.size else 0.0
        # The smallest number keeps an error of 0 at 0 in an array of zeros.
        error = error / np.maximum(np.where(finite, np.abs(expected), 0.0), max(scale, np.finfo(np.float64).tiny))
    return error


def _same_bits(a: np.ndarray, b: Any) -> bool:
    b = np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == np.ascontiguousarray(b).tobytes()


def unsupported(what: str) -> UserError:
    """A fixture that asks for something this code does not do."""
    return UserError(f"{what} is not supported")
