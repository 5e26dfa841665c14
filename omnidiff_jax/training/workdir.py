"""A run's folder: on a disk as it is; in a bucket by way of a folder on this host that is uploaded as it grows.

What a kill may lose is what a resume computes again: a checkpoint counts once its `digest.json` is in the bucket, which
is written last, after the metrics of its steps. A start fetches from the bucket alone; what an earlier one left on the
host is thrown away.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from omnidiff_jax.buckets import Bucket, is_remote
from omnidiff_jax.errors import UserError
from omnidiff_jax.fetching import cache_folder, download, made_once
from omnidiff_jax.files import path
from omnidiff_jax.sharding.distributed import barrier, is_primary
from omnidiff_jax.training.checkpoint import CheckpointConfig
from omnidiff_jax.training.digest import DIGEST, damage
from omnidiff_jax.training.operations.lock import NAME as LOCK
from omnidiff_jax.training.operations.lock import RunLock

CHECKPOINTS, DATA, MANIFEST = "checkpoints", "data", "manifest.json"
# Written by this start alone, or never read again: not fetched.
_ONE_WAY = ("tensorboard/", "profile/", "samples/", "predictions/", "export/")
_UPLOADING = ".uploading"
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_BETWEEN_UPLOADS = 30.0


class Workdir:
    """Where a run's files are on this host.

    Attributes:
        path: the folder.
    """

    def __init__(self, folder: Path):
        self.path = folder

    def keep(self, config: CheckpointConfig) -> None:
        """Says which checkpoints are kept."""

    def check(self) -> None:
        """Raises where what was saved could not be brought to its place."""

    def flush(self) -> None:
        """Waits until everything is in its place."""


@contextlib.contextmanager
def open_workdir(word: str | os.PathLike[str]) -> Iterator[Workdir]:
    """A run's folder, which is in its place again when the `with` ends; who holds it may ask again.

    Every process of a run calls it. In a bucket it is locked against other runs.

    Raises:
        UserError: another run holds it, or the bucket cannot be read or written.
    """
    if not is_remote(word):
        yield Workdir(path(word))
        return
    key = str(word)
    if key in _held:
        yield _held[key]
        return
    with _mirror(word) as place:
        _held[key] = place
        try:
            yield place
        finally:
            del _held[key]


_held: dict[str, "Workdir"] = {}


def mirror_folder(url: str) -> Path:
    """The folder on this host through which a run in a bucket goes; it belongs to the run that is under way."""
    return cache_folder().parent / "workdirs" / hashlib.blake2b(url.encode(), digest_size=12).hexdigest()


@contextlib.contextmanager
def _mirror(word: str | os.PathLike[str]) -> Iterator[Workdir]:
    bucket = Bucket(word)
    folder = mirror_folder(bucket.url)
    refusal: UserError | None = None
    uploads: Uploads | None = None
    lock = RunLock(bucket.url, place=bucket)
    if is_primary():
        try:
            bucket.check()
            lock.take()
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            fetch(bucket, folder)
            forget_half(bucket)
            uploads = Uploads(bucket, folder)
        except UserError as error:
            refusal = error
    if jax.process_count() > 1:
        if multihost_utils.broadcast_one_to_all(np.array(refusal is not None)):
            lock.release()
            raise refusal or UserError(f"{word} is refused to this run; the first process says why")
        seen = multihost_utils.process_allgather(np.array(folder.is_dir())).reshape(-1)
        if not np.all(seen):
            lock.release()
            raise UserError(
                f"{word}: the processes do not see one folder {folder}, through which the run goes to its bucket; set "
                "XDG_CACHE_HOME or OMNIDIFF_CACHE to a place that all of them share"
            )
    if refusal is not None:
        lock.release()
        raise refusal
    place = uploads or Workdir(folder)
    try:
        try:
            yield place
        except SystemExit:  # preempted, and saved
            _bring_home(place)
            raise
        except BaseException:
            with contextlib.suppress(UserError):  # the error under way says more
                place.flush()
            raise
        _bring_home(place)
    finally:
        if uploads is not None:
            uploads.close()
        lock.release()


def _bring_home(place: Workdir) -> None:
    barrier("the run's files are written")
    place.flush()


def steps_in(names: Iterator[str] | list[str]) -> list[int]:
    """Steps of the whole checkpoints among the names of a workdir's objects, newest first."""
    found = set()
    for name in names:
        parts = name.split("/")
        if len(parts) == 3 and parts[0] == CHECKPOINTS and parts[1].isdigit() and parts[2] == DIGEST:
            found.add(int(parts[1]))
    return sorted(found, reverse=True)


def fetch(bucket: Bucket, folder: Path, data: bool = True) -> None:
    """Brings a workdir near: metrics and the like, the newest checkpoint that is undamaged, and its whole data sets.

    Args:
        bucket: where it lies.
        folder: empty.
        data: whether the data sets are needed.
    """
    objects = bucket.list()

    def bring(wanted: Callable[[str], bool]) -> None:
        download(bucket, {name: size for name, size in objects.items() if wanted(name)}, folder)

    bring(lambda name: not name.startswith((f"{CHECKPOINTS}/", f"{DATA}/", *_ONE_WAY, LOCK)))
    for step in steps_in(list(objects)):
        place = folder / CHECKPOINTS / str(step)
        bring(lambda name, step=step: name.startswith(f"{CHECKPOINTS}/{step}/"))  # type: ignore[misc]
        if not (wrong := damage(place)):
            break
        print(
            f"checkpoint {bucket.url}/{CHECKPOINTS}/{step} is damaged: {wrong}; using the one before", file=sys.stderr
        )
        shutil.rmtree(place)
    if data:
        bring(lambda name: name.startswith(f"{DATA}/") and "/".join((*name.split("/")[:2], MANIFEST)) in objects)


def local_run(word: str | os.PathLike[str]) -> Path:
    """A run's folder to read from: the path itself, or a copy of what the newest checkpoint in a bucket needs.

    Raises:
        UserError: there is no whole checkpoint in the bucket.
    """
    if not is_remote(word):
        return path(word)
    bucket = Bucket(word)
    objects = bucket.list(f"{CHECKPOINTS}/")
    steps = steps_in(list(objects))
    if not steps:
        raise UserError(f"no checkpoints in {word}; train there first (omnidiff train --workdir={word})")
    seals = [bucket.read(f"{CHECKPOINTS}/{step}/{DIGEST}") or b"" for step in steps]
    key = hashlib.blake2b(bucket.url.encode() + b"".join(seals), digest_size=16).hexdigest()
    size = sum(size for name, size in objects.items() if name.startswith(f"{CHECKPOINTS}/{steps[0]}/"))
    return made_once(f"run-{key}", lambda folder: fetch(bucket, folder, data=False), size)


def forget_half(bucket: Bucket) -> None:
    """Removes what broken-off uploads of checkpoints left."""
    names = list(bucket.list(f"{CHECKPOINTS}/"))
    whole = {f"{CHECKPOINTS}/{step}" for step in steps_in(names)}
    bucket.delete(*(name for name in names if "/".join(name.split("/")[:2]) not in whole))


class Uploads(Workdir):
    """Uploads what a run writes: small files now and then, checkpoints and data sets when they are whole."""

    def __init__(self, bucket: Bucket, folder: Path):
        super().__init__(folder)
        self._bucket = bucket
        self._config = CheckpointConfig()
        self._done = set(self._whole())
        self._sent: dict[str, tuple[int, int]] = {name: _state(folder / name) for name in self._small()}
        self._error: UserError | None = None
        self._working = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="uploads")
        self._thread.start()

    def keep(self, config: CheckpointConfig) -> None:
        self._config = config

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def flush(self) -> None:
        self._upload(small=True)
        self.check()

    def close(self) -> None:
        """Stops; what was not flushed stays behind."""
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        waited = 0.0
        while not self._stop.wait(_SECONDS_BETWEEN_LOOKS) and self._error is None:
            waited += _SECONDS_BETWEEN_LOOKS
            small = waited >= _SECONDS_BETWEEN_UPLOADS
            self._upload(small)
            waited = 0.0 if small else waited

    def _upload(self, small: bool) -> None:
        with self._working:
            if self._error is not None:
                return
            try:
                self._upload_whole()
                if small:
                    self._upload_small()
            except UserError as error:
                self._error = error

    def _whole(self) -> list[str]:
        """Data sets and checkpoints that have their markers (and their last names), in the order of their steps."""
        found = []
        for top, marker in ((DATA, MANIFEST), (CHECKPOINTS, DIGEST)):
            home = self.path / top
            # Checkpoints in the order of their steps: one that breaks off lets no later one pass it.
            for folder in sorted(home.iterdir(), key=_in_order) if home.is_dir() else ():
                numbered = top == DATA or folder.name.isdigit()
                if numbered and not folder.name.startswith(".") and (folder / marker).is_file():
                    found.append(f"{top}/{folder.name}")
        return found

    def _upload_whole(self) -> None:
        for name in self._whole():
            if name in self._done:
                continue
            top = name.partition("/")[0]
            if top == CHECKPOINTS:
                self._upload_small()
            with self._held_still(name) as folder:
                if folder is not None:
                    marker, digest = (DIGEST, folder / DIGEST) if top == CHECKPOINTS else (MANIFEST, None)
                    needed = json.loads(digest.read_bytes()) if digest else ()
                    self._bucket.put_folder(folder, name, marker, needed)
            self._done.add(name)
            if top == CHECKPOINTS:
                self._thin_out()

    @contextlib.contextmanager
    def _held_still(self, name: str) -> Iterator[Path | None]:
        """A folder's files under another name, since a newer checkpoint may remove it meanwhile; None if it has."""
        still: Path | None = self.path / _UPLOADING
        try:
            shutil.copytree(self.path / name, self.path / _UPLOADING, copy_function=os.link)
        except (FileNotFoundError, shutil.Error):
            still = None
        try:
            yield still
        finally:
            shutil.rmtree(self.path / _UPLOADING, ignore_errors=True)

    def _thin_out(self) -> None:
        """Removes checkpoints that are not kept, their seal first."""
        steps, period = steps_in(list(self._bucket.list(f"{CHECKPOINTS}/"))), self._config.keep_period
        for step in steps[self._config.keep :]:
            if not period or step % period:
                self._bucket.delete_folder(f"{CHECKPOINTS}/{step}", DIGEST)

    def _small(self) -> list[str]:
        names = []
        for file in self.path.rglob("*"):
            name = file.relative_to(self.path).as_posix()
            hidden = any(part.startswith(".") for part in name.split("/"))
            if file.is_file() and not hidden and not name.startswith((f"{CHECKPOINTS}/", f"{DATA}/", LOCK)):
                names.append(name)
        return names

    def _upload_small(self) -> None:
        for name in self._small():
            with contextlib.suppress(FileNotFoundError):
                now = _state(self.path / name)
                if self._sent.get(name) != now and not name.endswith(".tmp"):
                    self._bucket.put(self.path / name, name)
                    self._sent[name] = now


def _in_order(folder: Path) -> tuple[int, str]:
    return int(folder.name) if folder.name.isdigit() else 0, folder.name


def _state(file: Path) -> tuple[int, int]:
    info = file.stat()
    return info.st_size, info.st_mtime_ns
