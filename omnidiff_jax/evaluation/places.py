"""Where a benchmark's answers are kept as they come: a folder, or one in a bucket, where what is added is an object."""

import fcntl
import os
from pathlib import Path
from typing import Protocol as Interface

from omnidiff_jax import places
from omnidiff_jax.buckets import Bucket, is_remote
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import check_place, path, write_bytes


class Added(Interface):
    """A file or objects that content is added to."""

    def add(self, content: bytes) -> None:
        """Adds whole lines."""

    def flush(self) -> None:
        """What was added can be read by others from now on."""

    def close(self) -> None:
        """Flushes, and adds no more."""


class Place(places.Place, Interface):
    """A place of files that lines can be added to. Methods raise UserError where it cannot be read or written."""

    def __truediv__(self, name: str) -> "Place": ...

    def parts(self, stem: str) -> list[str]:
        """Names of what was added under names that begin with STEM and a dot, in their order."""

    def added(self, name: str) -> Added:
        """Goes on adding to `NAME.jsonl`; raises UserError where another process does."""


def open_place(word: str | os.PathLike[str]) -> Place:
    """The place that a path or URL names; raises UserError where it cannot be written."""
    if is_remote(word):
        bucket = BucketPlace(word)
        bucket.check()
        return bucket
    folder = path(word)
    check_place(folder)
    return FolderPlace(folder)


class FolderPlace(places.Folder):
    """A folder of this host, or one that several hosts see."""

    def __truediv__(self, name: str) -> Place:
        return FolderPlace(self.path / name)

    def __str__(self) -> str:
        return str(self.path)

    def read(self, name: str) -> bytes | None:
        try:
            return super().read(name)
        except OSError as error:
            raise UserError(f"cannot read {self.path / name}: {error.strerror or error}") from error

    def write(self, name: str, content: bytes) -> None:
        """As `Place.write`; folders within the name are made."""
        write_bytes(self.path / name, content)

    def parts(self, stem: str) -> list[str]:
        return sorted(file.name for file in self.path.glob(f"{stem}.*.jsonl"))

    def added(self, name: str) -> Added:
        return _AddedFile(self.path / f"{name}.jsonl")


class _AddedFile:
    """One file, held by who writes it; a line cut off by a kill is taken away by the next writer."""

    def __init__(self, file: Path):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(file, "ab")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            content = file.read_bytes()
            if not content.endswith(b"\n"):
                os.truncate(file, content.rfind(b"\n") + 1)
        except BlockingIOError as error:
            self._file.close()
            raise UserError(
                f"another process writes {file}; end it, or give each process a share of its own (--share=I/N)"
            ) from error
        except OSError as error:
            raise UserError(f"cannot write {file}: {error.strerror or error}") from error

    def add(self, content: bytes) -> None:
        self._file.write(content)
        self._file.flush()

    def flush(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.flush()
        self._file.close()


class BucketPlace(Bucket):
    """A folder of a bucket."""

    def __truediv__(self, name: str) -> "BucketPlace":
        return BucketPlace(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    def parts(self, stem: str) -> list[str]:
        return sorted(name for name in self.list() if name.startswith(f"{stem}.") and name.endswith(".jsonl"))

    def added(self, name: str) -> Added:
        return _AddedObjects(self, name, len(self.parts(name)))


class _AddedObjects:
    """Objects `NAME.NUMBER.jsonl`, one for what was added between two flushes."""

    def __init__(self, bucket: Bucket, name: str, number: int):
        self._bucket, self._name, self._number = bucket, name, number
        self._waiting: list[bytes] = []

    def add(self, content: bytes) -> None:
        self._waiting.append(content)

    def flush(self) -> None:
        if not self._waiting:
            return
        name = f"{self._name}.{self._number:06}.jsonl"
        if not self._bucket.create(name, b"".join(self._waiting)):
            raise UserError(
                f"another process writes {self._bucket.url}/{name}; end it, or give each process a share of its own "
                "(--share=I/N)"
            )
        self._waiting, self._number = [], self._number + 1

    def close(self) -> None:
        self.flush()
