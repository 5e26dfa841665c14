"""File names from outside, files that are written whole or not at all, and what lies in buckets brought near.

A path of the user is local, `gs://…` or `s3://…`. The library works on local files: what lies in a bucket is fetched
into a bounded cache before it is read (`local_copy`), what is to lie in one is written beside and uploaded (`written`).
"""

import contextlib
import fcntl
import hashlib
import os
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from omnidiff_jax.buckets import Bucket, is_remote
from omnidiff_jax.errors import UserError

# Bytes that copies of what lies in buckets may take on this host, but for those in use.
CACHE_BYTES = 200 * 2**30


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


def cache_folder() -> Path:
    """Where copies of what lies in buckets are kept: OMNIDIFF_CACHE, or the user's cache folder."""
    given = os.environ.get("OMNIDIFF_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else home / "omnidiff_jax" / "buckets"


def local_copy(word: str | os.PathLike[str], markers: Sequence[str] = ()) -> Path:
    """Where a file or folder can be read on this host: the path itself, or a copy of what lies in a bucket.

    A copy is made once and again when the original changes; the ones not used for longest make way (`CACHE_BYTES`).
    Several processes may ask for the same one.

    Args:
        word: a path or URL.
        markers: names of which one must stand in a folder in a bucket, or it is not whole.

    Raises:
        UserError: there is nothing, a folder that is not whole, or it cannot be fetched.
    """
    if not is_remote(word):
        return path(word)
    bucket = Bucket(word)
    objects = bucket.list()
    if not objects:
        above, _, name = bucket.url.rpartition("/")
        objects, bucket, single = Bucket(above).list(name), Bucket(above), name
        if single not in objects:
            raise UserError(f"there is nothing at {word}; check the name")
        objects = {single: objects[single]}
    else:
        single = ""
        if markers and not any(marker in objects for marker in markers):
            raise UserError(f"{word} is not whole: it has no {' or '.join(markers)}; upload or build it again")
    told = "\n".join(f"{name} {size}" for name, size in sorted(objects.items()))
    stamp = b"".join(bucket.read(marker) or b"" for marker in markers if marker in objects)
    key = hashlib.blake2b(f"{word}\n{told}".encode() + stamp, digest_size=16).hexdigest()

    def download(folder: Path) -> None:
        for name in objects:
            bucket.get(name, folder / name)

    home = made_once(key, download, sum(objects.values()))
    return home / single if single else home


def made_once(key: str, make: Callable[[Path], None], size: int = 0) -> Path:
    """A folder of the cache, made by the first process that asks for it.

    Args:
        key: its name.
        make: fills it, given the empty folder.
        size: bytes that it will take.
    """
    home = cache_folder() / key
    with _locked(cache_folder() / f"{key}.lock"):
        if not home.is_dir():
            _make_room(size)
            with new_folder(home) as building:
                building.mkdir()
                make(building)
        os.utime(home)
        _hold(home)
    return home


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


_in_use: dict[Path, IO[str]] = {}


def _hold(copy: Path) -> None:
    """Keeps a copy from making way while this process lives."""
    if copy not in _in_use:
        file = copy.with_name(f"{copy.name}.use").open("w")
        fcntl.flock(file, fcntl.LOCK_SH)
        _in_use[copy] = file


def _make_room(needed: int) -> None:
    """Removes the copies that were not used for longest until there is room for as many bytes."""
    home = cache_folder()
    home.mkdir(parents=True, exist_ok=True)
    copies = sorted((folder for folder in home.iterdir() if folder.is_dir()), key=lambda folder: folder.stat().st_mtime)
    sizes = {folder: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in copies}
    used = sum(sizes.values())
    for folder in copies:
        if used + needed <= int(os.environ.get("OMNIDIFF_CACHE_BYTES", CACHE_BYTES)):
            return
        with contextlib.suppress(BlockingIOError), _locked(home / f"{folder.name}.use", wait=False):
            shutil.rmtree(folder, ignore_errors=True)
            used -= sizes[folder]


@contextmanager
def _locked(file: Path, wait: bool = True) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def safe_join(root: str | os.PathLike[str], name: str | os.PathLike[str]) -> Path | str:
    """`root/name`, links resolved, for a `name` that came from a data file; a URL where `root` is one.

    Raises:
        UserError: `name` is empty or absolute, or leads out of `root` through `..` or a link.
    """
    base = Path(root).resolve()
    text = os.fspath(name)
    if not text or "\0" in text:
        raise UserError(f"{text!r} is not a file name; give a path under {root}")
    if Path(text).is_absolute():
        raise UserError(f"{text} is absolute; media paths are relative to {root}")
    if is_remote(root):
        inside = posixpath.normpath(text)
        if inside.startswith(".."):
            raise UserError(f"{text} leads out of {root}; media must lie under it")
        return f"{os.fspath(root).rstrip('/')}/{inside}"
    joined = (base / text).resolve()
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
