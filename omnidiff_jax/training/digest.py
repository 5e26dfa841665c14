"""Checksums of a checkpoint's files: written before it counts as whole, compared before it is read."""

import concurrent.futures
import hashlib
import json
import os
from pathlib import Path
from typing import Any

DIGEST = "digest.json"
# Orbax writes the time of the commit into it afterwards, and restoring needs nothing in it. (Nor in the
# commit_success.txt that it adds at the very end.)
_UNSEALED = (DIGEST, "_CHECKPOINT_METADATA")
_PART = "digest.part."
_THREADS = 8


def write_part(folder: Path, name: str) -> None:
    """Sums of the files under `folder/name`, kept beside it until `write_digest` takes them over.

    Each process of a run calls it for the files that it wrote itself: one host would read those of a large model for
    longer than it takes to the next save.
    """
    files = sorted(str(path.relative_to(folder)) for path in (folder / name).rglob("*") if path.is_file())
    (folder / f"{_PART}{name}.json").write_text(json.dumps(_sums(folder, files)))


def write_digest(folder: Path) -> None:
    """Seals `folder`: `digest.json` holds size and SHA-256 of the other files under it, parts' as they are."""
    content: dict[str, dict[str, Any]] = {}
    for part in sorted(folder.rglob(f"{_PART}*.json")):
        place = part.parent.relative_to(folder)
        content |= {str(place / name): entry for name, entry in json.loads(part.read_text()).items()}
        part.unlink()
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in _UNSEALED)
    names = {str(path.relative_to(folder)) for path in files}
    content |= _sums(folder, sorted(names - content.keys()))
    temporary = folder / f"{DIGEST}.tmp"
    with temporary.open("w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / DIGEST)


def _sums(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:  # hashing releases the interpreter's lock
        sums = list(pool.map(lambda name: _sum(folder / name), names))
    return {name: {"bytes": size, "sha256": digest} for name, (size, digest) in zip(names, sums, strict=True)}


def damage(folder: Path, part: int = 0, parts: int = 1) -> str:
    """What is wrong with a sealed folder, "" if nothing: the first file that is missing, cut short or changed.

    Args:
        folder: as `write_digest` left it.
        part, parts: look at every `parts`-th file only, from number `part`; processes share the reading so.
    """
    try:
        content = json.loads((folder / DIGEST).read_text())
        expected = [(name, entry["bytes"], entry["sha256"]) for name, entry in sorted(content.items())]
    except OSError as error:
        return f"{DIGEST} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{DIGEST} is damaged"
    mine = expected[part::parts]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda entry: _compare(folder, *entry), mine)
        return next((problem for problem in found if problem), "")


def _compare(folder: Path, name: str, size: int, digest: str) -> str:
    try:
        found = (folder / name).stat().st_size
        if found != size:
            return f"{name} has {found} bytes instead of {size}"
        return "" if _sum(folder / name)[1] == digest else f"{name} does not have the checksum it was saved with"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"


def _sum(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest
