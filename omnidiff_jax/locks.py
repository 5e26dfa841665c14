"""Locks: a file that names who holds a place, and is taken over from a holder that is gone.

What is needed of the place is little: to create a file only where there is none, to read, replace and delete it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
import uuid
from pathlib import Path

from omnidiff_jax.errors import UserError
from omnidiff_jax.places import Place

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


class Lock:
    """A file that names who holds something.

    Between machines a holder is known by its beats, on one machine by its process.
    """

    def __init__(
        self,
        place: Place,
        name: str,
        where: str,
        work: str,
        otherwise: str,
        seconds_between_beats: float = SECONDS_BETWEEN_BEATS,
        seconds_to_die: float = SECONDS_TO_DIE,
    ):
        """Holds nothing yet.

        Args:
            place: that the file stands in.
            name: of the file.
            where, work, otherwise: what messages call what is held, what a holder does there ("trains"), and what is to
                be done instead of waiting for it ("name another --workdir").
            seconds_between_beats, seconds_to_die: signs of life, and how long to wait for one.
        """
        self._place, self._name = place, name
        self._where, self._work, self._otherwise = where, work, otherwise
        self._beat_every, self._patience = seconds_between_beats, seconds_to_die
        self._me: Holder | None = None
        self._thief: Holder | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Takes the lock. It may wait for a minute where the holder is on another machine and shows no life.

        Raises:
            UserError: somebody else has it, or it cannot be written.
        """
        me = Holder.me()
        try:
            self._take(self._name, me)
        except OSError as error:
            raise UserError(
                f"cannot write {self._where}/{self._name}: {error.strerror or error}; {self._otherwise}, or make it "
                "writable"
            ) from error
        self._me = me
        self._thread = threading.Thread(target=self._beat, daemon=True, name=self._name)
        self._thread.start()

    def check(self) -> None:
        """Raises a `UserError` where another one took it over, because this one stood still for too long."""
        if self._thief is not None:
            raise UserError(
                f"{self._where} was taken over by process {self._thief.pid} on {self._thief.host} at "
                f"{self._thief.since}, while this run stood still; it goes on there"
            )

    def release(self) -> None:
        """Gives it back."""
        if self._thread is None or self._me is None:
            return
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError, UserError):
            found = self._holder(self._name)
            if found is not None and found.token == self._me.token:
                self._place.delete(self._name)

    def _take(self, name: str, me: Holder) -> None:
        while not self._place.create(name, me.dump()):
            holder = self._holder(name)
            if holder is None:
                continue
            if self._alive(name, holder):
                raise UserError(
                    f"{self._where} is in use: process {holder.pid} on {holder.host} {self._work} there since "
                    f"{holder.since}; wait for it, stop it, or {self._otherwise}"
                )
            # One inheritor a holder: who creates the file of its token, and still finds it holding.
            claim = f"{self._name}.{holder.token}"
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
            f"{self._where}/{name} is held from {holder.host}; looking for signs of life", file=sys.stderr, flush=True
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
                found = self._holder(self._name)
                if self._me is None or found is not None and found.token != self._me.token:
                    self._thief = found
                    return
                beaten = dataclasses.replace(self._me, beats=self._me.beats + 1)
                self._place.write(self._name, beaten.dump())
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
