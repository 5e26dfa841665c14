"""Where a benchmark's answers are kept as they come: a folder, or one in a bucket, where what is added is an object."""

import fcntl
import os
from pathlib import Path
from typing import Protocol as Interface

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


class Place(Interface):
    """A folder; names are relative to it, parted by "/". Methods raise UserError where it cannot be read or written."""

    def __truediv__(self, name: str) -> "Place": ...

    def read(self, name: str) -> bytes | None:
        """Content of a file; None where there is none."""

    def write(self, name: str, content: bytes) -> None:
        """Writes a file whole or not at all."""

    def parts(self, stem: str) -> list[str]:
        """Names of what was added under names that begin with STEM and a dot, in their order."""

    def added(self, name: str) -> Added:
        """Goes on adding to `NAME.jsonl`; raises UserError where another process does."""


def open_place(word: str | os.PathLike[str]) -> Place:
    """The place that a path or URL names; raises UserError where it cannot be written."""
    if is_remote(word):
        bucket = Bucket(word)
        bucket.check()
        return BucketPlace(bucket)
    folder = path(word)
    check_place(folder)
    return FolderPlace(folder)


class FolderPlace:
    """A folder of this host, or one that several hosts see."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __truediv__(self, name: str) -> Place:
        return FolderPlace(self._folder / name)

    def __str__(self) -> str:
        return str(self._folder)

    def read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"cannot read {self._folder / name}: {error.strerror or error}") from error

    def write(self, name: str, content: bytes) -> None:
        write_bytes(self._folder / name, content)

    def parts(self, stem: str) -> list[str]:
        return sorted(file.name for file in self._folder.glob(f"{stem}.*.jsonl"))

    def added(self, name: str) -> Added:
        return _AddedFile(self._folder / f"{name}.jsonl")


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


class BucketPlace:
    """A folder of a bucket."""

    def __init__(self, bucket: Bucket):
        self._bucket = bucket

    def __truediv__(self, name: str) -> Place:
        return BucketPlace(self._bucket / name)

    def __str__(self) -> str:
        return self._bucket.url

    def read(self, name: str) -> bytes | None:
        return self._bucket.read(name)

    def write(self, name: str, content: bytes) -> None:
        self._bucket.write(name, content)

    def parts(self, stem: str) -> list[str]:
        names = self._bucket.list()
        return sorted(name for name in names if name.startswith(f"{stem}.") and name.endswith(".jsonl"))

    def added(self, name: str) -> Added:
        return _AddedObjects(self._bucket, name, len(self.parts(name)))


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
