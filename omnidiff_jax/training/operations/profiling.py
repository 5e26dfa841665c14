"""A trace of some steps, to be looked at with xprof (`xprof --logdir=WORKDIR/profile`) or TensorBoard."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from omnidiff_jax.errors import UserError


def parse_steps(text: str | None) -> tuple[int, int] | None:
    """Steps to trace, counted from 1 at this start: "5" = five steps from the fourth on (the first ones compile and
    warm up), "10-12" = these three.

    Raises:
        UserError: neither form.
    """
    if not text:
        return None
    first, dash, last = text.partition("-")
    if first.isdigit() and (last.isdigit() or not dash):
        window = (int(first), int(last)) if dash else (4, 3 + int(first))
        if 1 <= window[0] <= window[1]:
            return window
    raise UserError(f"--profile={text}; give a number of steps such as 5, or a range such as 10-12")


class Profiler:
    """Traces a window of steps, each process into a folder of its own."""

    def __init__(self, workdir: str | os.PathLike[str], window: tuple[int, int] | None):
        self._window = window
        self._folder = Path(workdir) / "profile" / f"host-{jax.process_index():03d}"
        self._running = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around the dispatch of step `number` of this start."""
        if self._window is None:
            yield
            return
        first, last = self._window
        if number == first:
            jax.profiler.start_trace(self._folder)
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield
        if number > last:
            self._finish()

    def _finish(self, *_: Any) -> None:
        # One step late: by then the last step of the window has been computed.
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
