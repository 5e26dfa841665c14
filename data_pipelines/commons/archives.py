"""Members of wheels, npm's tarballs and Debian packages, as data: nothing in them is imported, run or unpickled."""

import contextlib
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from omnidiff_jax.errors import UserError

# What readers raise of a file that is not what it should be; what the disk raises is something else.
_DAMAGE = (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError, ValueError, tarfile.TarError, zipfile.BadZipFile)
_AR, _HEADER, _MAGIC = b"!<arch>\n", 60, b"`\n"


class _Member:
    """A file in an archive: its name, its size as the archive tells it, and its bytes."""

    def __init__(self, name: str, size: int, content: IO[bytes]):
        self.name, self.size, self.content = name, size, content


@contextlib.contextmanager
def members(archive: Path) -> Iterator[Iterator[_Member]]:
    """The files of an archive, in its order; each is read before the next one is asked for.

    Args:
        archive: `.whl` (zip), `.tgz` (gzipped tar), or `.deb` (ar with a compressed tar).

    Raises:
        UserError: it proves damaged while it is open.
    """
    try:
        if archive.suffix == ".whl":
            yield _zipped(archive)
        else:
            with _data_of(archive) if archive.suffix == ".deb" else open(archive, "rb") as data:
                yield _tarred(data)
    except _DAMAGE as error:
        raise UserError(f"{archive} is no whole archive ({error}); download it again") from error


def _zipped(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if not info.is_dir():
                with file.open(info) as content:
                    yield _Member(info.filename, info.file_size, content)


def _tarred(file: IO[bytes]) -> Iterator[_Member]:
    with tarfile.open(fileobj=file, mode="r|*") as tar:
        for info in tar:
            content = tar.extractfile(info) if info.isreg() else None
            if content is not None:
                yield _Member(info.name, info.size, content)


@contextlib.contextmanager
def _data_of(archive: Path) -> Iterator[IO[bytes]]:
    """The compressed tar of a Debian package, a member of an `ar` archive (deb(5))."""
    with open(archive, "rb") as file:
        if file.read(len(_AR)) != _AR:
            raise ValueError("no Debian package")
        while header := file.read(_HEADER):
            if len(header) < _HEADER or header[-2:] != _MAGIC:
                raise ValueError("damaged header")
            size = int(header[48:58])
            if header[:16].startswith(b"data.tar"):
                yield _Window(file, size)  # type: ignore[misc]
                return
            file.seek(size + size % 2, 1)
    raise ValueError("no data in it")


class _Window:
    """The next `size` bytes of a file, as a file that can only be read onwards."""

    def __init__(self, file: IO[bytes], size: int):
        self._file, self._left = file, size

    def read(self, size: int = -1) -> Any:
        content = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(content)
        return content
