"""Worker processes that end with the process that started them, and stop when it is asked to."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from omnidiff_jax import signals
from omnidiff_jax.errors import UserError
from omnidiff_jax.progress import Progress

Key = TypeVar("Key")
_SECONDS_TO_CLEAN_UP = 10.0
_SECONDS_BETWEEN_LOOKS = 0.5

_counter: Any = None  # in a worker: what `advance` counts with


class Workers:
    """Processes that run jobs.

        with Workers(4) as workers:
            for name, result in workers.run(build, {"asr": (config, "asr"), "tts": (config, "tts")}):
                …

    Where the `with` is left by an error, SIGTERM or Ctrl-C, the workers get SIGTERM: a job under way leaves by
    `signals.Terminated`, so that its `finally` and `with` remove what is half done; one that takes longer than ten
    seconds over it is killed. A worker whose parent is gone, however that came, does the same.
    """

    def __init__(self, processes: int, prepare: Callable[[], None] | None = None):
        """Starts `processes` workers, at least 1; `prepare`, importable, is called once in each of them."""
        self._context = multiprocessing.get_context("spawn")
        self._count = self._context.Value("q", 0)
        self._others = set(multiprocessing.active_children())
        self._pool = concurrent.futures.ProcessPoolExecutor(processes, self._context, _begin, (self._count, prepare))

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self._pool.shutdown()
            return
        mine = self._mine()
        closing = threading.Thread(
            target=self._pool.shutdown, args=(True,), kwargs={"cancel_futures": True}, daemon=True
        )
        closing.start()
        for process in mine:
            process.terminate()
        deadline = time.monotonic() + _SECONDS_TO_CLEAN_UP
        for process in mine:
            process.join(max(deadline - time.monotonic(), 0.01))
            process.kill()
            process.join()
        closing.join(_SECONDS_TO_CLEAN_UP)  # its threads give their semaphores back

    def run(
        self, function: Callable[..., Any], jobs: Mapping[Key, tuple[Any, ...]], progress: Progress | None = None
    ) -> Iterator[tuple[Key, Any]]:
        """Calls `function(*arguments)` for every job; yields (its key, the result) as they are done.

        Args:
            function: importable, as its arguments and result are picklable.
            jobs: key -> arguments.
            progress: kept up to date with what the jobs `advance`.

        Raises:
            UserError: a worker died. Whatever a job raises is raised here.
        """
        # Ctrl-C goes to every process of a terminal: who is born with it blocked leaves it to the parent.
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            futures = {self._pool.submit(_call, function, arguments): key for key, arguments in jobs.items()}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        waiting = set(futures)
        while waiting:
            done, waiting = concurrent.futures.wait(waiting, _SECONDS_BETWEEN_LOOKS, concurrent.futures.FIRST_COMPLETED)
            signals.check()
            if progress is not None:
                progress.update(self._count.value)
            for future in done:
                try:
                    yield futures[future], future.result()
                except BrokenProcessPool as error:
                    raise self._broken() from error

    def _broken(self) -> BaseException:
        statuses = []
        for process in self._mine():
            process.join(1.0)
            statuses.append(process.exitcode)
        if {signals.PREEMPTED, -signal.SIGTERM} & set(statuses):
            return signals.Terminated()  # a scheduler's SIGTERM reached them first
        return UserError("a worker process was killed; the machine may be short of memory: use fewer processes")

    def _mine(self) -> list[Any]:
        return [process for process in multiprocessing.active_children() if process not in self._others]


def advance(amount: int = 1) -> None:
    """In a job: counts work done, for the progress that the parent shows. Elsewhere it does nothing."""
    if _counter is not None:
        with _counter.get_lock():
            _counter.value += amount


def _begin(counter: Any, prepare: Callable[[], None] | None) -> None:
    """The first thing a worker does."""
    global _counter
    _counter = counter
    signal.signal(signal.SIGTERM, _end)
    follow_parent()
    if prepare is not None:
        prepare()


def follow_parent() -> None:
    """In a worker process: it gets SIGTERM once its parent is gone, and is ended soon after if that does not help."""
    threading.Thread(target=_follow_parent, daemon=True, name="follow-parent").start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_SECONDS_TO_CLEAN_UP)
        os._exit(signals.PREEMPTED)


def _end(number: int, frame: Any) -> None:
    """SIGTERM between two jobs."""
    os._exit(signals.PREEMPTED)


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        with signals.heeded():
            return function(*arguments)
    except signals.Terminated:
        os._exit(signals.PREEMPTED)  # the pool would take the next job
