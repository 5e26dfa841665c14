"""One run in a workdir: the lock that keeps a second one out."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from omnidiff_jax.errors import UserError
from omnidiff_jax.locks import SECONDS_BETWEEN_BEATS, SECONDS_TO_DIE, Lock
from omnidiff_jax.places import Folder, Place
from omnidiff_jax.sharding.distributed import is_primary

NAME = "run.lock"


@contextlib.contextmanager
def only_run(workdir: str | os.PathLike[str]) -> Iterator[RunLock]:
    """Holds `workdir` for this run; the thread that holds it may ask again. Enter it before anything in the workdir is
    touched.

    With several processes the first one holds it for all, and every process calls this together.

    Raises:
        UserError: another run holds it, or the folder cannot be written; on every process of this run.
    """
    key = os.path.abspath(workdir), threading.get_ident()
    if key in _held:
        yield _held[key]
        return
    lock, refusal = RunLock(workdir), None
    if is_primary():
        try:
            lock.take()
        except UserError as error:
            refusal = error
    if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.array(refusal is not None)):
        refusal = refusal or UserError(f"{workdir} is refused to this run; the first process says why")
    if refusal is not None:
        raise refusal
    _held[key] = lock
    try:
        yield lock
    finally:
        del _held[key]
        lock.release()


_held: dict[tuple[str, int], RunLock] = {}


class RunLock(Lock):
    """`workdir/run.lock`."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        seconds_between_beats: float = SECONDS_BETWEEN_BEATS,
        seconds_to_die: float = SECONDS_TO_DIE,
        place: Place | None = None,
    ):
        """Args: workdir, for messages, and where the lock stands if `place` is None."""
        self._folder = Path(workdir) if place is None else None
        self._made = False
        super().__init__(
            Folder(Path(workdir)) if place is None else place,
            NAME,
            str(workdir),
            "trains",
            "name another --workdir",
            seconds_between_beats,
            seconds_to_die,
        )

    def take(self) -> None:
        self._made = self._folder is not None and not self._folder.exists()
        super().take()

    def release(self) -> None:
        """Gives it back; a folder that the lock made, and that nobody used, goes too."""
        super().release()
        if self._made and self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.rmdir()
