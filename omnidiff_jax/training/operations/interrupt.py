"""SIGTERM while a run trains: it saves before it goes."""

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils


class Interrupt:
    """Turns SIGTERM into a question asked after each step, so that a preempted run saves before it goes.

    With several processes the coordination service agrees on the step at which all stop, whichever got the signal.
    """

    def __init__(self):
        self._flag = False
        self._previous: Any = None

    def __enter__(self) -> "Interrupt":
        # jax.distributed has put its own handler in place, which must stay.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, signum: int, frame: Any) -> None:
        self._flag = True

    def requested(self, step: int) -> bool:
        """Whether to stop now that `step` steps are done; every process must ask after every step."""
        if jax.process_count() > 1:
            self._flag = multihost_utils.reached_preemption_sync_point(step) or self._flag
        return self._flag
