"""Tells of a run that stands still."""

import faulthandler
import math
import os
import sys
import tempfile
import threading
import time
from typing import Literal

import jax

from omnidiff_jax.signals import HUNG
from omnidiff_jax.training.operations.host_log import HostLog


class Watchdog:
    """Dumps all threads' stacks to the host's log and stderr when no `beat` came for `seconds`; again after as many.

    A thread of Python cannot say anything while a library's code holds the interpreter; a thread of C (`faulthandler`)
    then dumps the stacks to the log, a tenth of the time later.
    """

    def __init__(self, seconds: float, action: Literal["report", "abort"], log: HostLog):
        """Args: seconds, 0 = never; action, "abort" also ends the process with status `HUNG`, or 1 where the
        interpreter is held."""
        self._seconds, self._action, self._log = seconds, action, log
        self._last, self._what = time.monotonic(), "start"
        self._armed = -math.inf
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self) -> "Watchdog":
        if self._seconds > 0:
            self._arm()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._seconds > 0:
            faulthandler.cancel_dump_traceback_later()
            self._thread.join()

    def beat(self, what: str) -> None:
        """The run lives; `what` says what it did last."""
        self._last, self._what = time.monotonic(), what
        if self._seconds > 0 and self._last - self._armed > min(1.0, self._seconds / 10):
            self._arm()

    def _arm(self) -> None:
        """Sets the thread of C back to its full time, which is longer than anything `beat` leaves out of it."""
        self._armed = time.monotonic()
        later = self._seconds * 1.1 + 0.1
        faulthandler.dump_traceback_later(later, repeat=True, file=self._log.file, exit=self._action == "abort")

    def _watch(self) -> None:
        while not self._stop.wait(max(self._last + self._seconds - time.monotonic(), self._seconds / 100)):
            if time.monotonic() - self._last < self._seconds:
                continue
            text = f"nothing for {self._seconds:g} s after {self._what}; stacks of all threads:\n{_stacks()}"
            self._log.write(text)
            self._arm()
            print(f"process {jax.process_index()}: {text}", file=sys.stderr, flush=True)
            if self._action == "abort":
                self._log.write(f"end: aborted by the watchdog, status {HUNG}")
                os._exit(HUNG)
            self._last = time.monotonic()


def _stacks() -> str:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
