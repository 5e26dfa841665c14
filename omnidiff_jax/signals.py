"""Exit statuses of their own, and signals that end a command at any moment, not only where Python happens to listen."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import ExtensionFileLoader
from types import FrameType
from typing import Any, Never

# Those of sysexits.h: start again to go on / a hang, ended by the watchdog.
PREEMPTED = 75
HUNG = 70
INTERRUPTED = 130

_SECONDS_TO_ASK_AGAIN = 0.05


class Terminated(BaseException):
    """SIGTERM came; what is under way cleans up behind itself. Not a `SystemExit`, which ends the process where C code
    prints it."""


class _Asked:
    """The signal that asked this process to end, and whether it was raised already."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.raised = False

    def error(self) -> BaseException:
        return KeyboardInterrupt() if self.number == signal.SIGINT else Terminated()


_asked: _Asked | None = None


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """While it lasts SIGTERM raises `Terminated` and Ctrl-C `KeyboardInterrupt`, until one of them gets through.

    An exception raised between two lines of Python may land in a callback that cannot pass it on (the garbage
    collector's); then it is raised again, and whatever error became of it is not shown. While an extension is being
    imported nothing is raised: its C++ may end the process for it. Outside of the main thread, which is the only one
    that hears signals, nothing changes.

    Raises:
        Terminated, KeyboardInterrupt: a signal came and `with` did not end well.
    """
    global _asked
    if threading.current_thread() is not threading.main_thread() or _asked is not None:
        yield
        return
    asked = _asked = _Asked()

    def again() -> None:
        timer = threading.Timer(_SECONDS_TO_ASK_AGAIN, os.kill, (os.getpid(), asked.number))
        timer.daemon = True
        timer.start()

    def note(number: int, frame: FrameType | None) -> None:
        # Schedulers send SIGTERM more than once; a second Ctrl-C means it.
        if asked.raised and number == signal.SIGTERM:
            return
        asked.number = asked.number or number
        if _imports_extension(frame):
            again()
            return
        asked.raised = True
        raise asked.error()

    def unraisable(args: Any) -> None:
        if not isinstance(args.exc_value, (KeyboardInterrupt, Terminated)):
            before_hook(args)
            return
        asked.raised = False
        again()

    before_hook, sys.unraisablehook = sys.unraisablehook, unraisable
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        raise
    except BaseException as error:
        if asked.number is not None:
            raise asked.error() from error
        raise
    finally:
        _asked = None
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = before_hook


def _imports_extension(frame: FrameType | None) -> bool:
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
            return True
        frame = frame.f_back
    return False


def check() -> None:
    """Raises again what a signal raised, where it was swallowed on its way; call it where work starts anew."""
    if _asked is not None and _asked.number is not None and threading.current_thread() is threading.main_thread():
        raise _asked.error()


def leave(run: Callable[[], int]) -> Never:
    """Ends the process with the status that `run` returns; with another one than 0 it does so at once.

    What failed may have left threads that wait for what will never come (Orbax's for minutes), and Python would wait
    for them. An exception ends in its traceback and status 1.
    """
    try:
        status = run()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    if not status:
        sys.exit(0)
    if "multiprocessing.util" in sys.modules:
        # Else its helper process warns of semaphores that nobody gave back. Joins nothing.
        sys.modules["multiprocessing.util"]._run_finalizers(0)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)
