"""Folders on a disk and in buckets alike: what is there, what is read, and what is written whole or not at all.

`Folder` is one on a disk, `buckets.Bucket` one in an object store; both are a `Place`.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from omnidiff_jax.buckets import Bucket, is_remote
from omnidiff_jax.files import path


class Place(Protocol):
    """A folder; names are relative to it, parted by "/"."""

    def list(self, prefix: str = "") -> dict[str, int]:
        """Size in bytes of every file under `prefix`, by name; {} where there is none."""

    def create(self, name: str, content: bytes) -> bool:
        """Writes a file where there is none, whole or not at all; returns whether it did."""

    def read(self, name: str) -> bytes | None:
        """Its content; None where there is none."""

    def write(self, name: str, content: bytes) -> None:
        """Replaces it, whole or not at all."""

    def put(self, file: Path, name: str) -> None:
        """Gives a file of `scratch` its name there, or uploads it; it outlives a loss of power, the file may not."""

    def delete(self, *names: str) -> None:
        """Removes them, where they are there."""


def place_of(word: str | os.PathLike[str]) -> Place:
    """The place that a path of the user, or a URL, names; nothing is made yet."""
    return Bucket(word) if is_remote(word) else Folder(path(word))


@contextlib.contextmanager
def scratch(place: Place, name: str) -> Iterator[Path]:
    """A folder of this host for what is then `put` under a name; what a kill left of an earlier one is removed."""
    home = place.path if isinstance(place, Folder) else None
    if home is not None:
        home.mkdir(parents=True, exist_ok=True)
        for left in home.glob(f".{name}.*"):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=home, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def tidy(place: Place) -> None:
    """Removes what kills left of scratch folders, and a folder on a disk in which nothing else is."""
    if isinstance(place, Folder):
        for left in place.path.glob(".*"):
            shutil.rmtree(left, ignore_errors=True)
            with contextlib.suppress(OSError):
                left.unlink()
        with contextlib.suppress(OSError):
            place.path.rmdir()


class Folder:
    """A place on a disk. Its methods raise `OSError`.

    Attributes:
        path: where it is, or will be.
    """

    def __init__(self, path: Path):
        self.path = path

    def list(self, prefix: str = "") -> dict[str, int]:
        """As `Place.list`; hidden files and folders, which are under way, are passed over."""
        found = {}
        for folder, inner, files in os.walk(self.path / prefix):
            inner[:] = [name for name in inner if not name.startswith(".")]
            for name in files:
                if not name.startswith("."):
                    with contextlib.suppress(FileNotFoundError):
                        file = Path(folder, name)
                        found[file.relative_to(self.path).as_posix()] = file.stat().st_size
        return found

    def create(self, name: str, content: bytes) -> bool:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._beside(name, content) as beside:
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
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        with self._beside(name, content) as beside:
            os.replace(beside, self.path / name)

    def put(self, file: Path, name: str) -> None:
        _flush(file)
        os.replace(file, self.path / name)
        _flush((self.path / name).parent)

    def delete(self, *names: str) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _beside(self, name: str, content: bytes) -> Iterator[str]:
        number, beside = tempfile.mkstemp(dir=self.path, prefix=f".{name}.")
        try:
            with os.fdopen(number, "wb") as file:
                file.write(content)
            os.chmod(beside, 0o644)
            yield beside
        finally:
            Path(beside).unlink(missing_ok=True)


def _flush(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
