"""SIGTERM while a run trains: it saves before it goes, where there is something to save."""

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

from omnidiff_jax.signals import PREEMPTED, check


class Interrupt:
    """Turns SIGTERM into a question asked after each step, so that a preempted run saves before it goes. Until the
    first step of this start is done there is nothing to save, and the run goes at once.

    With several processes the coordination service agrees on the step at which all stop, whichever got the signal.
    """

    def __init__(self):
        self._flag = self._something_to_save = False
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
        if self._something_to_save:
            self._flag = True
        elif callable(self._previous):
            self._previous(signum, frame)
        else:
            raise SystemExit(PREEMPTED)

    def requested(self, step: int) -> bool:
        """Whether to stop now that `step` steps are done; every process must ask after every step."""
        self._something_to_save = True
        check()
        if jax.process_count() > 1:
            self._flag = multihost_utils.reached_preemption_sync_point(step) or self._flag
        return self._flag
