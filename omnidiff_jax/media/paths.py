"""File names from outside, and files that are written whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omnidiff_jax.errors import UserError


def safe_join(root: str | os.PathLike[str], name: str | os.PathLike[str]) -> Path:
    """`root/name`, links resolved, for a `name` that came from a data file.

    Raises:
        UserError: `name` is empty or absolute, or leads out of `root` through `..` or a link.
    """
    base = Path(root).resolve()
    text = os.fspath(name)
    if not text or "\0" in text:
        raise UserError(f"{text!r} is not a file name; give a path under {root}")
    if Path(text).is_absolute():
        raise UserError(f"{text} is absolute; media paths are relative to {root}")
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
