"""What lies in buckets, brought near: many objects at once, into a cache of bounded size, before it is asked for.

`local_copy` gives the local place of a path or URL, `fetch_ahead` begins what it will be asked for later: while a run
opens, its sets come in beside each other and beside everything else that is to be done.
"""

import contextlib
import fcntl
import functools
import hashlib
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from omnidiff_jax.buckets import Bucket, is_remote
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import path, safe_join
from omnidiff_jax.progress import Progress

# Bytes that copies of what lies in buckets may take on this host, but for those in use.
CACHE_BYTES = 200 * 2**30
# Parts under way at a time in this process, all fetches together, and bytes of each: both bound the memory they take.
_AT_ONCE = 16
_PART = 16 * 2**20
_SECONDS_UNTIL_SHOWN = 5.0
_BUILDING = ".part"


def cache_folder() -> Path:
    """Where copies of what lies in buckets are kept: OMNIDIFF_CACHE, or the user's cache folder."""
    given = os.environ.get("OMNIDIFF_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else home / "omnidiff_jax" / "buckets"


# ---- copies ----------------------------------------------------------------------------------------------------


def local_copy(word: str | os.PathLike[str], markers: Sequence[str] = ()) -> Path:
    """Where a file or folder can be read on this host: the path itself, or a copy of what lies in a bucket.

    A copy is made once and again when the original changes; the ones not used for longest make way (`CACHE_BYTES`).
    Several processes may ask for the same one. One that is fetched ahead is waited for.

    Args:
        word: a path or URL.
        markers: names of which one must stand in a folder in a bucket, or it is not whole.

    Raises:
        UserError: there is nothing, a folder that is not whole, or it cannot be fetched.
    """
    return outcome(_copy, os.fspath(word), tuple(markers)) if is_remote(word) else path(word)


def fetch_ahead(word: str | os.PathLike[str], markers: Sequence[str] = ()) -> None:
    """Begins the copy that `local_copy` will be asked for, which raises what goes wrong; local paths are passed over.

    Args:
        word, markers: as `local_copy` will be given them.
    """
    if is_remote(word):
        ahead(_copy, os.fspath(word), tuple(markers))


class _Listing(NamedTuple):
    """What a URL names: `objects` of `bucket` with their sizes, one called `single` where it is no folder."""

    bucket: Bucket
    objects: Mapping[str, int]
    single: str
    key: str


def _listing(word: str, markers: Sequence[str]) -> _Listing:
    bucket, single = Bucket(word), ""
    objects = bucket.list()
    if not objects:
        above, _, single = bucket.url.rpartition("/")
        bucket = Bucket(above)
        found = bucket.list(single)
        if single not in found:
            raise UserError(f"there is nothing at {word}; check the name")
        objects = {single: found[single]}
    elif markers and not any(marker in objects for marker in markers):
        raise UserError(f"{word} is not whole: it has no {' or '.join(markers)}; upload or build it again")
    told = "\n".join(f"{name} {size}" for name, size in sorted(objects.items()))
    stamp = b"".join(bucket.read(marker) or b"" for marker in markers if marker in objects)
    key = hashlib.blake2b(f"{word}\n{told}".encode() + stamp, digest_size=16).hexdigest()
    return _Listing(bucket, objects, single, key)


def _copy(word: str, markers: Sequence[str]) -> Path:
    bucket, objects, single, key = _listing(word, markers)

    def fill(folder: Path) -> None:
        download(bucket, objects, folder)
        together = len(objects) == 1 and sum(objects.values()) <= _PART  # one part is of one moment
        if not together and _listing(word, markers).key != key:
            raise UserError(f"{word} was changed while it was fetched; start again when it is whole")

    home = made_once(key, fill, sum(objects.values()))
    return home / single if single else home


# ---- ahead -----------------------------------------------------------------------------------------------------

_begun: dict[tuple[Any, ...], Future[Any]] = {}


def ahead(call: Callable[..., Any], *arguments: Any) -> None:
    """Begins `call(*arguments)` in the background, for `outcome` to wait for. The arguments must be hashable."""
    before = _begun.get((call, *arguments))
    if before is not None and not before.done():
        return
    future = _begun[(call, *arguments)] = Future()

    def settle() -> None:
        try:
            future.set_result(call(*arguments))
        except BaseException as error:
            future.set_exception(error)

    # A daemon: a process that ends does not wait for what nobody asks for any more.
    threading.Thread(target=settle, daemon=True, name="ahead").start()


def outcome(call: Callable[..., Any], *arguments: Any) -> Any:
    """What `call(*arguments)` gives or raises: once from where it was begun `ahead`, else by calling."""
    future = _begun.pop((call, *arguments), None)
    return call(*arguments) if future is None else future.result()


# ---- objects ---------------------------------------------------------------------------------------------------


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_AT_ONCE, "fetch")


# A forked process has neither the threads nor what they were to bring.
os.register_at_fork(after_in_child=_pool.cache_clear)
os.register_at_fork(after_in_child=_begun.clear)


def download(bucket: Bucket, objects: Mapping[str, int], folder: Path) -> None:
    """Downloads objects beside each other, large ones in parts; one that takes long shows how far it is.

    Args:
        bucket: where they lie.
        objects: their sizes in bytes, by name, as `Bucket.list` gives them.
        folder: where they are put under their names.

    Raises:
        UserError: one cannot be read or has another size now, or the folder cannot be written; what came is left there.
    """
    began, total, came = time.monotonic(), sum(objects.values()), 0
    running: set[Future[int]] = set()
    shown: Progress | None = None
    try:
        parts = _parts(bucket, objects, folder)
        while True:
            # No more than can run: what breaks off is not followed by all that stands in a queue.
            for part in itertools.islice(parts, _AT_ONCE - len(running)):
                running.add(_pool().submit(part))
            if not running:
                break
            done, running = wait(running, return_when=FIRST_COMPLETED)
            came += sum(part.result() for part in done)
            if shown is None and time.monotonic() - began > _SECONDS_UNTIL_SHOWN:
                shown = Progress(total >> 20, label=f"MiB of {bucket.url}")
            if shown is not None:
                shown.update(came >> 20)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        wait(running)
        if shown is not None:
            shown.close()


def _parts(bucket: Bucket, objects: Mapping[str, int], folder: Path) -> Iterator[Callable[[], int]]:
    for name, size in objects.items():
        file = Path(safe_join(folder, name))
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as empty:
            empty.truncate(size)
        for start in range(0, size, _PART):
            yield functools.partial(_fetch_part, bucket, name, file, start, min(start + _PART, size))


def _fetch_part(bucket: Bucket, name: str, file: Path, start: int, end: int) -> int:
    content = bucket.read_part(name, start, end)
    if len(content) != end - start:
        raise UserError(
            f"cannot read {bucket.url}/{name}: {len(content)} bytes from {start} on, {end - start} were listed; it was "
            "changed while it was fetched: start again when it is whole"
        )
    with file.open("r+b") as target:
        target.seek(start)
        target.write(content)
    return len(content)


# ---- the cache -------------------------------------------------------------------------------------------------
# Beside a copy KEY stand KEY.lock, held while it is made, KEY.use, held by who reads it, and, while it is made,
# KEY.part with a file as large as the copy will be: room that others leave.

_in_use: dict[Path, IO[str]] = {}


def made_once(key: str, make: Callable[[Path], None], size: int = 0) -> Path:
    """A folder of the cache, made by the first process that asks for it; it does not make way while this one lives.

    Args:
        key: its name, without dots.
        make: fills it, given the empty folder.
        size: bytes that it will take.

    Raises:
        UserError: the cache cannot be written. Whatever `make` raises; then nothing is left of the folder.
    """
    home = cache_folder() / key
    try:
        with _locked(cache_folder() / f"{key}.lock"):
            _hold(home)
            if not home.is_dir():
                building = home.with_name(key + _BUILDING)
                try:
                    _make_room(building, size)
                    (building / "copy").mkdir()
                    make(building / "copy")
                    (building / "copy").rename(home)
                finally:
                    shutil.rmtree(building, ignore_errors=True)
            os.utime(home)
    except OSError as error:
        raise _unwritable(home, error) from error
    return home


def _unwritable(folder: Path, error: OSError) -> UserError:
    reason = error.strerror or error
    return UserError(f"cannot write {folder}: {reason}; free space, or name another folder by OMNIDIFF_CACHE")


def _hold(copy: Path) -> None:
    """Keeps a copy from making way while this process lives."""
    if copy not in _in_use:
        file = copy.with_name(f"{copy.name}.use").open("w")
        fcntl.flock(file, fcntl.LOCK_SH)
        _in_use[copy] = file


def _make_room(building: Path, size: int) -> None:
    """Makes the folder of a copy under way, `size` bytes kept free for it; those not used for longest make way."""
    home, limit = cache_folder(), int(os.environ.get("OMNIDIFF_CACHE_BYTES", CACHE_BYTES))
    with _locked(home / "room.lock"):
        shutil.rmtree(building, ignore_errors=True)
        for half in home.glob(f"*{_BUILDING}"):  # who made it was killed, if nobody holds its lock
            with contextlib.suppress(BlockingIOError), _locked(half.with_suffix(".lock"), wait=False):
                shutil.rmtree(half)
        building.mkdir()
        with (building / "room").open("wb") as room:
            room.truncate(size)
        copies = sorted(
            (folder for folder in home.iterdir() if folder.is_dir() and folder.suffix != _BUILDING),
            key=lambda folder: folder.stat().st_mtime,
        )
        sizes = {folder: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in copies}
        used = sum(sizes.values()) + sum(_size(room) for room in home.glob(f"*{_BUILDING}/room"))
        for folder in copies:
            if used <= limit:
                return
            with contextlib.suppress(BlockingIOError), _locked(home / f"{folder.name}.use", wait=False):
                going = folder.with_name(folder.name + _BUILDING)
                folder.rename(going)  # at once: a half-removed copy would look whole after a kill
                shutil.rmtree(going, ignore_errors=True)
                used -= sizes[folder]


def _size(file: Path) -> int:
    """Bytes of a file; 0 where it has gone."""
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_size
    return 0


@contextmanager
def _locked(file: Path, wait: bool = True) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
