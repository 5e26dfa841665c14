"""Tells of a run that stands still."""

import faulthandler
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
    """Dumps all threads' stacks to the host's log and stderr when no `beat` came for `seconds`; again after as many."""

    def __init__(self, seconds: float, action: Literal["report", "abort"], log: HostLog):
        """Args: seconds, 0 = never; action, "abort" also ends the process with status `HUNG`."""
        self._seconds, self._action, self._log = seconds, action, log
        self._last, self._what = time.monotonic(), "start"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self) -> "Watchdog":
        if self._seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat(self, what: str) -> None:
        """The run lives; `what` says what it did last."""
        self._last, self._what = time.monotonic(), what

    def _watch(self) -> None:
        while not self._stop.wait(max(self._last + self._seconds - time.monotonic(), self._seconds / 100)):
            if time.monotonic() - self._last < self._seconds:
                continue
            text = f"nothing for {self._seconds:g} s after {self._what}; stacks of all threads:\n{_stacks()}"
            self._log.write(text)
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
