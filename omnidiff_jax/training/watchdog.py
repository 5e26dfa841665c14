"""What tells of a run that stands still or is asked to stop: the hang watchdog, the host's log, SIGTERM."""

import faulthandler
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Literal

import jax
from jax.experimental import multihost_utils

# Exit statuses of their own (those of sysexits.h): start again to go on / a hang, ended by the watchdog.
PREEMPTED = 75
HUNG = 70


class HostLog:
    """`workdir/logs/host-NNN.log`: what this process did, with times; appended to at every start."""

    def __init__(self, workdir: str | os.PathLike[str]):
        self.path = Path(workdir) / "logs" / f"host-{jax.process_index():03d}.log"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a")
        devices = jax.local_devices()
        self.write(
            f"start: process {jax.process_index()} of {jax.process_count()}, pid {os.getpid()}, {len(devices)} of "
            f"{jax.device_count()} devices ({devices[0].device_kind}), jax {jax.__version__}"
        )

    def write(self, text: str) -> None:
        self._file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n")
        self._file.flush()

    def __enter__(self) -> "HostLog":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.write("end" if error is None else f"end: {type(error).__name__}: {error}")
        self._file.close()


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
