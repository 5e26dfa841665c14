"""File names from outside, and files and folders that are written whole or not at all, on this host or in a bucket.

A path of the user is local, `gs://…` or `s3://…`. The library works on local files: what lies in a bucket is fetched
before it is read (`fetching.local_copy`), what is to lie in one is written beside and uploaded (`written`).
"""

import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omnidiff_jax.buckets import Bucket, is_remote
from omnidiff_jax.errors import UserError


def path(word: str | os.PathLike[str]) -> Path:
    """A local path as the user wrote it, `~` expanded; spaces and letters of any script are theirs to use.

    Raises:
        UserError: an empty path, or a URL, which is never taken for a folder.
    """
    text = os.fspath(word)
    if not text.strip() or "\0" in text:
        raise UserError(f"{text!r} is no path; name a file or folder")
    if is_remote(text):
        raise UserError(f"{text} lies in a bucket, where a local path is needed")
    return Path(text).expanduser()


def expanded(word: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """A path as `path` makes it, a URL as it is: what is read later, piece by piece."""
    return word if is_remote(word) else path(word)


@contextmanager
def whole_folders(word: str | os.PathLike[str], marker: str) -> Iterator[Path]:
    """A local place for folders that each have a marker; in a bucket each is uploaded with its marker last."""
    if not is_remote(word):
        yield path(word)
        return
    bucket = Bucket(word)
    bucket.check()
    with tempfile.TemporaryDirectory(prefix="omnidiff-") as folder:
        yield Path(folder)
        for inner in sorted(Path(folder).iterdir()):
            (bucket / inner.name).put_folder(
                inner,
                "",
                marker
                if (inner / marker).is_file()
                else max(file.relative_to(inner).as_posix() for file in inner.rglob("*") if file.is_file()),
            )


@contextmanager
def updated(word: str | os.PathLike[str], names: Sequence[str]) -> Iterator[Path]:
    """A folder in which some files are read and files are written: the path itself, or one beside that is uploaded.

    Args:
        names: of the files that are read where they are there.
    """
    if not is_remote(word):
        place = path(word)
        check_place(place)
        place.mkdir(parents=True, exist_ok=True)
        yield place
        return
    bucket = Bucket(word)
    with tempfile.TemporaryDirectory(prefix="omnidiff-") as folder:
        for name in names:
            content = bucket.read(name)
            if content is not None:
                write_bytes(Path(folder) / name, content)
        yield Path(folder)
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                bucket.put(file, file.relative_to(folder).as_posix())


@contextmanager
def written(word: str | os.PathLike[str], marker: str = "") -> Iterator[Path]:
    """A local place to write a file or folder, which then gets its name, or is uploaded with its marker last.

    For a local path it is the path itself.
    """
    if not is_remote(word):
        yield path(word)
        return
    bucket = Bucket(word)
    bucket.check()
    with tempfile.TemporaryDirectory(prefix="omnidiff-") as folder:
        place = Path(folder) / bucket.url.rpartition("/")[2]
        yield place
        if place.is_dir():
            names = [file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file()]
            bucket.put_folder(place, "", marker if marker in names else max(names))
        elif place.exists():
            above, _, name = bucket.url.rpartition("/")
            Bucket(above).put(place, name)


def safe_join(root: str | os.PathLike[str], name: str | os.PathLike[str], links: bool = False) -> Path | str:
    """`root/name`, links resolved, for a `name` that came from a data file; a URL where `root` is one.

    Args:
        root: folder that the file must lie in.
        name: relative to it, or absolute and under it, as released manifests have it.
        links: whether a link may lead out of `root`; it is followed when the file is read.

    Raises:
        UserError: `name` is empty, lies elsewhere, or leads out of `root` through `..` or a link.
    """
    text = os.fspath(name)
    if not text or "\0" in text:
        raise UserError(f"{text!r} is not a file name; give a path under {root}")
    if Path(text).is_absolute():
        above = os.path.abspath(root)
        if is_remote(root) or os.path.commonpath([above, text]) != above:
            raise UserError(f"{text} is absolute; media paths are relative to {root}, or lie under it")
        text = os.path.relpath(text, above)
    if is_remote(root):
        inside = posixpath.normpath(text)
        if inside.startswith(".."):
            raise UserError(f"{text} leads out of {root}; media must lie under it")
        return f"{os.fspath(root).rstrip('/')}/{inside}"
    base = Path(os.path.abspath(root)) if links else Path(root).resolve()
    joined = Path(os.path.normpath(base / text)) if links else (base / text).resolve()
    if not joined.is_relative_to(base):
        raise UserError(f"{text} leads out of {root}; media must lie under it, links included")
    return joined


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file whole or not at all: readers see the old content or the new, never a part.

    Missing folders are made.

    Raises:
        UserError: the folder cannot be written, or the disk is full; an old file is left as it was.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:32]}.")
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}; choose another folder") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except OSError as error:
        os.unlink(temporary)
        reason = error.strerror or error
        raise UserError(f"cannot write {target}: {reason}; free space or choose another folder") from error
    except BaseException:
        os.unlink(temporary)
        raise


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A place to build `target`, which gets its name at the end; on any failure nothing of it is left.

    Raises:
        UserError: `target` exists already, or the disk cannot be written or is full.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} exists already; name a new folder or remove it")
    target = target.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        home = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:32]}."))
    except OSError as error:
        raise UserError(f"cannot write beside {target}: {error.strerror or error}") from error
    try:
        partial = home / "it"
        yield partial
        if target.exists():
            target.rmdir()
        os.rename(partial, target)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {target}: {reason}; free space or name another folder") from error
    except ValueError as error:
        # tensorstore's way to say that a file could not be written
        if "writing" in str(error) or "No space" in str(error):
            raise UserError(f"cannot write {target}: {str(error).splitlines()[0][:200]}") from error
        raise
    finally:
        shutil.rmtree(home, ignore_errors=True)


def check_place(target: Path) -> None:
    """Refuses a file or folder that cannot be written, before the work whose results it is for; nothing is left there.

    Raises:
        UserError: the nearest folder that is there takes no files.
    """
    try:
        first = target.absolute() if target.is_dir() else target.absolute().parent
        with tempfile.TemporaryFile(dir=next(folder for folder in (first, *first.parents) if folder.exists())):
            pass
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}; choose another folder") from error


def check_file(path: str | os.PathLike[str], what: str, max_bytes: int) -> int:
    """Size of a file that is about to be read, after the checks that need no decoding.

    Args:
        path: the file.
        what: "image" or "audio file", for messages.
        max_bytes: the largest size allowed.

    Raises:
        UserError: missing, not a regular file, unreadable, empty, or larger than `max_bytes`.
    """
    file = Path(path)
    try:
        info = file.stat()
    except (OSError, ValueError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise UserError(f"{what} {file} {reason}; check the path") from error
    if not file.is_file():
        raise UserError(f"{what} {file} is not a regular file; give a file's path")
    if info.st_size == 0:
        raise UserError(f"{what} {file} is empty (0 bytes); copy or export it again")
    if info.st_size > max_bytes:
        raise UserError(
            f"{what} {file} is {info.st_size / 2**20:.1f} MiB, over the limit of {max_bytes / 2**20:.0f} MiB; "
            "give a smaller one"
        )
    return info.st_size
