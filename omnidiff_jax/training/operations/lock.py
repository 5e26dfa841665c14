"""One run in a workdir: a lock file that names who holds it, and is taken over from a holder that is gone.

What is needed of the place is little: to create a file only where there is none, to read, replace and delete it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from omnidiff_jax.errors import UserError
from omnidiff_jax.sharding.distributed import is_primary

NAME = "run.lock"
SECONDS_BETWEEN_BEATS = 10.0
# Without a beat for so long, by the watch of who looks, a holder on another machine is taken for dead.
SECONDS_TO_DIE = 60.0


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        token: of this one holding.
        host: name of the machine, for people.
        machine: what tells whether `pid` means a process here: boot and process-id space, "" where unknown.
        pid: process.
        born: when the process began, in the machine's own units, so that a pid given out again is another process.
        since: when it took the lock, local time, for people.
        beats: counts up while the holder lives.
    """

    token: str
    host: str
    machine: str
    pid: int
    born: str
    since: str
    beats: int = 0

    @classmethod
    def me(cls) -> Holder:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(uuid.uuid4().hex, socket.gethostname(), _machine(), os.getpid(), _born(os.getpid()), now)

    @classmethod
    def parse(cls, content: bytes) -> Holder:
        """A file cut short, or of something else, is held by nobody known: only its beats could tell."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return cls(
                uuid.uuid5(uuid.NAMESPACE_OID, content.hex()).hex, "an unknown host", "", 0, "", "an unknown time"
            )

    def dump(self) -> bytes:
        return (json.dumps(dataclasses.asdict(self)) + "\n").encode()

    def lives(self) -> bool | None:
        """Whether the holder runs, where that can be known here; else None."""
        if not self.machine or self.machine != _machine():
            return None
        return _born(self.pid) == self.born


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


class RunLock:
    """`workdir/run.lock`. Between machines a holder is known by its beats; on one machine by its process."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        seconds_between_beats: float = SECONDS_BETWEEN_BEATS,
        seconds_to_die: float = SECONDS_TO_DIE,
        place: Place | None = None,
    ):
        """Args: workdir, for messages, and where the lock stands if `place` is None."""
        self._workdir, self._folder = workdir, Path(workdir) if place is None else None
        self._place: Place = Folder(Path(workdir)) if place is None else place
        self._beat_every, self._patience = seconds_between_beats, seconds_to_die
        self._me: Holder | None = None
        self._thief: Holder | None = None
        self._made = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Takes the lock. It may wait for a minute where the holder is on another machine and shows no life.

        Raises:
            UserError: somebody else has it, or it cannot be written.
        """
        me = Holder.me()
        self._made = self._folder is not None and not self._folder.exists()
        try:
            self._take(NAME, me)
        except OSError as error:
            raise UserError(
                f"cannot write {self._workdir}/{NAME}: {error.strerror or error}; name another --workdir, or make it "
                "writable"
            ) from error
        self._me = me
        self._thread = threading.Thread(target=self._beat, daemon=True, name="run-lock")
        self._thread.start()

    def check(self) -> None:
        """Raises a `UserError` where another run took the workdir over, because this one stood still for too long."""
        if self._thief is not None:
            raise UserError(
                f"{self._workdir} was taken over by process {self._thief.pid} on {self._thief.host} at "
                f"{self._thief.since}, while this run stood still; it goes on there"
            )

    def release(self) -> None:
        """Gives it back; a folder that the lock made, and that nobody used, goes too."""
        if self._thread is None or self._me is None:
            return
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError, UserError):
            found = self._holder(NAME)
            if found is not None and found.token == self._me.token:
                self._place.delete(NAME)
            if self._made and self._folder is not None:
                self._folder.rmdir()

    def _take(self, name: str, me: Holder) -> None:
        while not self._place.create(name, me.dump()):
            holder = self._holder(name)
            if holder is None:
                continue
            if self._alive(name, holder):
                raise UserError(
                    f"{self._workdir} is in use: process {holder.pid} on {holder.host} trains there since "
                    f"{holder.since}; wait for it, stop it, or name another --workdir"
                )
            # One inheritor a holder: who creates the file of its token, and still finds it holding.
            claim = f"{NAME}.{holder.token}"
            self._take(claim, me)
            try:
                found = self._holder(name)
                if found is not None and found.token == holder.token:
                    self._place.write(name, me.dump())
                    return
            finally:
                self._place.delete(claim)

    def _alive(self, name: str, holder: Holder) -> bool:
        known = holder.lives()
        if known is not None:
            return known
        print(
            f"{self._workdir}/{name} is held from {holder.host}; looking for signs of life", file=sys.stderr, flush=True
        )
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._beat_every))
            if self._holder(name) != holder:
                return self._holder(name) is not None  # it beats, or was released or inherited: look again
        return False

    def _holder(self, name: str) -> Holder | None:
        content = self._place.read(name)
        return None if content is None else Holder.parse(content)

    def _beat(self) -> None:
        while not self._stop.wait(self._beat_every):
            # A disk that is full, or a place away for a while, does not end the holding.
            with contextlib.suppress(OSError, UserError):
                found = self._holder(NAME)
                if self._me is None or found is not None and found.token != self._me.token:
                    self._thief = found
                    return
                beaten = dataclasses.replace(self._me, beats=self._me.beats + 1)
                self._place.write(NAME, beaten.dump())
                self._me = beaten


def _machine() -> str:
    """This boot of this machine and the space that process ids mean something in; "" where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process began; "" where there is none. One that is dead but not yet waited for is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


class Place(Protocol):
    """What a lock needs of the folder or bucket that it stands in."""

    def create(self, name: str, content: bytes) -> bool:
        """Writes a file where there is none, whole or not at all; returns whether it did."""

    def read(self, name: str) -> bytes | None:
        """Its content; None where there is none."""

    def write(self, name: str, content: bytes) -> None:
        """Replaces it, whole or not at all."""

    def delete(self, name: str) -> None:
        """Removes it, if it is there."""


class Folder:
    """A place on a disk."""

    def __init__(self, path: Path):
        self._path = path

    def create(self, name: str, content: bytes) -> bool:
        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._beside(content) as beside:
            try:
                os.link(beside, path)
                return True
            except FileExistsError:
                return False
            except OSError:  # a file system without links: whoever reads too early sees a file cut short
                pass
        try:
            with path.open("xb") as file:
                file.write(content)
            return True
        except FileExistsError:
            return False

    def read(self, name: str) -> bytes | None:
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        with self._beside(content) as beside:
            os.replace(beside, self._path / name)

    def delete(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _beside(self, content: bytes) -> Iterator[str]:
        number, name = tempfile.mkstemp(dir=self._path, prefix=f".{NAME}.")
        try:
            with os.fdopen(number, "wb") as file:
                file.write(content)
            yield name
        finally:
            Path(name).unlink(missing_ok=True)
