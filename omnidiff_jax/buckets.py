"""Object stores: `gs://bucket/…` and `s3://bucket/…` over fsspec, with one line for whatever is wrong with one.

An object is written whole or not at all; a folder is whole once its marker, written last, is there.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from omnidiff_jax.errors import UserError

T = TypeVar("T")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/{1,2}(.*)", re.DOTALL)
_ATTEMPTS = 4
# How clients say that one has not said who one is, or wrongly.
_NOBODY = r"credential|\b401\b|anonymous|unauthorized|InvalidAccessKey|InvalidToken|ExpiredToken|unauthenticated"


@dataclasses.dataclass(frozen=True)
class Scheme:
    """A kind of object store.

    Attributes:
        extra: of setup.py, that brings what it needs.
        module: that fsspec opens it with.
        credentials: variables that say who one is, and where an emulator or another provider is.
    """

    extra: str
    module: str
    credentials: str


SCHEMES: Mapping[str, Scheme] = {
    "gs": Scheme("gcs", "gcsfs", "GOOGLE_APPLICATION_CREDENTIALS (or STORAGE_EMULATOR_HOST for an emulator)"),
    "s3": Scheme(
        "s3", "s3fs", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL for other providers)"
    ),
}


def scheme_of(word: str | os.PathLike[str]) -> str:
    """ "gs" or "s3" of a URL, "" of a local path.

    Raises:
        UserError: a URL of another kind; it is never taken for a folder.
    """
    match = _URL.fullmatch(os.fspath(word))
    if not match:
        return ""
    scheme = match[1].lower()
    if scheme not in SCHEMES:
        raise UserError(f"{word}: paths are local, or begin with {' or '.join(f'{name}://' for name in SCHEMES)}")
    if not match[2].strip("/"):
        raise UserError(f"{word} names no bucket; give {scheme}://BUCKET/FOLDER")
    return scheme


def is_remote(word: str | os.PathLike[str]) -> bool:
    """Whether a path lies in an object store; raises as `scheme_of`."""
    return bool(scheme_of(word))


class Bucket:
    """A folder of an object store; names are relative to it, parted by "/".

    Every method raises a `UserError` that names the object, what is wrong and what would help.
    """

    def __init__(self, url: str | os.PathLike[str]):
        """Opens no connection yet.

        Raises:
            UserError: not a URL of a known kind, or what it needs is not installed or says not who one is.
        """
        self.scheme = scheme_of(url)
        if not self.scheme:
            raise UserError(f"{url} is a local path, where gs://… or s3://… is needed")
        self.url = f"{self.scheme}://{_URL.fullmatch(os.fspath(url))[2].strip('/')}"  # type: ignore[index]
        self._root = self.url.partition("://")[2]
        self._system = self._open()

    def __truediv__(self, name: str) -> Bucket:
        return Bucket(f"{self.url}/{name}")

    def list(self, prefix: str = "") -> dict[str, int]:
        """Size in bytes of every object under `prefix`, by name; {} where there is none.

        What consoles write in place of a folder, an object with "/" at its end, is none.
        """
        where = f"{self._root}/{prefix}".rstrip("/")
        with self._told(f"list {self.url}/{prefix}"):
            try:
                found = self._retried(lambda: self._system.find(where, detail=True, withdirs=False))
            except FileNotFoundError:
                self.check()
                return {}
        start = len(self._root) + 1
        sizes = {name[start:]: int(info["size"]) for name, info in found.items() if not name.endswith("/")}
        return {name: size for name, size in sizes.items() if name}

    def check(self) -> None:
        """Raises where the bucket itself is not there or not to be read."""
        bucket = self._root.partition("/")[0]
        with self._told(f"open {self.scheme}://{bucket}"):
            self._system.invalidate_cache()
            if not self._retried(lambda: self._system.exists(bucket)):
                raise FileNotFoundError(bucket)

    def read(self, name: str) -> bytes | None:
        """Content of an object; None where there is none."""
        with self._told(f"read {self.url}/{name}"):
            try:
                return self._retried(lambda: self._system.cat_file(f"{self._root}/{name}"))
            except FileNotFoundError:
                return None

    def read_part(self, name: str, start: int, end: int) -> bytes:
        """Bytes from `start` up to `end` of an object; fewer where it ends before."""
        with self._told(f"read {self.url}/{name}"):
            return self._retried(lambda: self._system.cat_file(f"{self._root}/{name}", start=start, end=end))

    def write(self, name: str, content: bytes) -> None:
        """Writes an object, whole or not at all."""
        with self._told(f"write {self.url}/{name}"):
            self._retried(lambda: self._system.pipe_file(f"{self._root}/{name}", content))

    def create(self, name: str, content: bytes) -> bool:
        """Writes an object where there is none; returns whether it did."""
        with self._told(f"write {self.url}/{name}"):
            try:
                if self._system.exists(f"{self._root}/{name}"):  # emulators overlook the condition
                    return False
                self._system.pipe_file(f"{self._root}/{name}", content, mode="create")
                return True
            except FileExistsError:
                return False

    def put(self, file: Path, name: str) -> None:
        """Uploads a file.

        Raises:
            FileNotFoundError: the file is gone from this host.
        """
        try:
            with self._told(f"write {self.url}/{name}"):
                self._retried(lambda: self._system.put_file(str(file), f"{self._root}/{name}"))
        except UserError:
            if not file.exists():
                raise FileNotFoundError(file) from None
            raise

    def delete(self, *names: str) -> None:
        """Removes objects; those that are not there are passed over."""
        for name in names:
            with self._told(f"remove {self.url}/{name}"):
                try:
                    self._retried(lambda name=name: self._system.rm_file(f"{self._root}/{name}"))  # type: ignore[misc]
                except FileNotFoundError:
                    pass

    def delete_folder(self, name: str, marker: str = "") -> None:
        """Removes a folder, its marker first, so that what is left of it at any moment does not look whole."""
        names = sorted(self.list(f"{name}/"), key=lambda found: found != f"{name}/{marker}")
        self.delete(*names)

    def put_folder(self, folder: Path, name: str, marker: str, needed: Iterable[str] = ()) -> None:
        """Uploads the files of a folder, its marker last.

        Args:
            folder: on this host.
            name: of the folder here.
            marker: a file in it.
            needed: names of files without which it is not whole.

        Raises:
            FileNotFoundError: one of the files is gone; the marker is not written.
        """
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        if missing := set(needed) - {file.relative_to(folder).as_posix() for file in files}:
            raise FileNotFoundError(folder / min(missing))
        files.sort(key=lambda file: file.relative_to(folder).as_posix() == marker)
        if not files or files[-1].relative_to(folder).as_posix() != marker:
            raise UserError(f"{folder} has no {marker}, so it is not whole; it is not uploaded")
        for file in files:
            self.put(
                file, f"{name}/{file.relative_to(folder).as_posix()}" if name else file.relative_to(folder).as_posix()
            )

    def _open(self) -> Any:
        scheme = SCHEMES[self.scheme]
        try:
            import fsspec

            # gcsfs would ask over gRPC first what kind of bucket it is, for minutes where only the JSON API answers.
            os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
            options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
            if self.scheme == "gs":
                options["token"] = _google_token(self.url)
            else:
                _check_amazon_credentials(self.url)
            return fsspec.filesystem(self.scheme, **options)
        except ImportError as error:
            raise UserError(
                f"{self.url} needs the extra {scheme.extra!r} ({error}): pip install 'omnidiff_jax[{scheme.extra}]'"
            ) from error

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except FileNotFoundError as error:
            raise UserError(
                f"cannot {what}: no such bucket or object ({_short(error)}); make the bucket, or check its name"
            ) from error
        except Exception as error:  # the clients raise dozens of kinds
            credentials = SCHEMES[self.scheme].credentials
            # Names of objects are no part of what the client says: they may hold any word.
            words = f"{type(error).__name__} {error}".replace(self._root, "")
            if re.search(_NOBODY, words, re.IGNORECASE):
                raise UserError(f"cannot {what}: no credentials ({_short(error)}); set {credentials}") from error
            if isinstance(error, PermissionError) or re.search(r"\b403\b|denied|forbidden", words, re.IGNORECASE):
                raise UserError(
                    f"cannot {what}: refused ({_short(error)}); these credentials may not do that: set {credentials}"
                ) from error
            raise UserError(f"cannot {what} ({_short(error)}); try again, or name another place") from error

    def _retried(self, call: Callable[[], T]) -> T:
        """Calls again after a moment where the connection broke off."""
        for attempt in range(_ATTEMPTS):
            try:
                return call()
            except (FileNotFoundError, FileExistsError, PermissionError):
                raise
            except OSError:
                if attempt + 1 == _ATTEMPTS:
                    raise
                time.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable")


def _google_token(url: str) -> str | None:
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return "anon"
    import google.auth
    import google.auth.exceptions

    try:
        google.auth.default()
    except google.auth.exceptions.DefaultCredentialsError as error:
        raise UserError(f"cannot open {url}: no credentials; set {SCHEMES['gs'].credentials}") from error
    return "google_default"


def _check_amazon_credentials(url: str) -> None:
    """s3fs would go on without any, and find nothing."""
    import botocore.session

    if botocore.session.get_session().get_credentials() is None:
        raise UserError(f"cannot open {url}: no credentials; set {SCHEMES['s3'].credentials}")


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]
