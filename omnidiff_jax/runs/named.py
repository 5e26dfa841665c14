"""Trained models by name: those shipped with the library, and packages that lie beside it or are installed.

A package is a folder `NAME` of weights in the released form, its run's config and its tokenizers, with `package.json`
(every file's bytes and sha256). It lies in a folder of OMNIDIFF_MODELS, or in `omnidiff_jax/models` of the user's data
folder; or a wheel brings it, whose entry point `NAME` of the group `omnidiff_jax.models` is the package that holds it.
`omnidiff pack` makes both.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omnidiff_jax.config import suggest
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import safe_join
from omnidiff_jax.tokenizers.assets import shipped_models

# What an export of a run leaves beside released weights: the run's config, for whoever loads them.
ABOUT_RUN = "omnidiff_run.json"
# Tokenizers beside released or converted weights: field of `TokenizersConfig` -> folder, the weights' own for "".
BESIDE = {
    "text": "",
    "image": "image_tokenizer",
    "speech_encoder": "speech_encoder",
    "speech_tokenizer": "speech_tokenizer",
    "speech_decoder": "speech_decoder",
}
# What a packed run's config has in place of a tokenizer's folder: it lies beside the weights.
HERE = "here"
VARIABLE = "OMNIDIFF_MODELS"
GROUP = "omnidiff_jax.models"
MANIFEST = "package.json"
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
# Models that this project trains and does not ship with the library, being larger.
APART = ("commons",)
# Nothing that runs when it is read: no pickles, no code.
SUFFIXES = (".json", ".model", ".safetensors", ".txt")
_LARGEST = 1 << 20  # bytes of a manifest
_REMEDY = "install or copy the package again"


def named_models() -> dict[str, Path]:
    """Name -> folder of every model that can be loaded by a name; of two of one name the nearest: shipped, then those
    of OMNIDIFF_MODELS, of the user's data folder, installed ones."""
    found: dict[str, Path] = {}
    for name, folder in (*shipped_models().items(), *_lying(), *_installed()):
        found.setdefault(name, folder)
    return found


def _lying() -> Iterator[tuple[str, Path]]:
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    named = [Path(word).expanduser() for word in os.environ.get(VARIABLE, "").split(os.pathsep) if word]
    for home in (*named, data / "omnidiff_jax" / "models"):
        for manifest in sorted(home.glob(f"*/{MANIFEST}")):
            yield manifest.parent.name, manifest.parent


def _installed() -> Iterator[tuple[str, Path]]:
    for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: point.name):
        # Found, not imported: a package of data has no code.
        spec = importlib.util.find_spec(point.value) if point.value.isidentifier() else None
        for folder in list(spec.submodule_search_locations or ()) if spec else ():
            if (Path(folder) / MANIFEST).is_file():
                yield point.name, Path(folder)


def find_model(name: str) -> Path | None:
    """The folder of a model by its name, whole as it was packed; None where it is no name of a model.

    Raises:
        UserError: what it holds is not what was packed.
    """
    if not NAME.fullmatch(name):
        return None
    folder = named_models().get(name)
    if folder is not None and folder not in shipped_models().values():
        check_package(folder)
    return folder


def absent(what: str) -> UserError:
    """What is said of a word that is neither a model's name nor a folder."""
    if what in APART:
        return UserError(
            f"the model {what!r} is not here; pip install its wheel omnidiff_model_{what}-*.whl, or unpack it into a "
            f"folder that {VARIABLE} names (omnidiff pack makes one of a run)"
        )
    known = named_models()
    said = f"models by name: {', '.join(known)}" if known else "no models are shipped"
    hint = f"; {suggest(what, known)}" if known else ""
    return UserError(f"{what} is neither a folder nor the name of a model ({said}){hint}")


def check_package(folder: Path) -> None:
    """Compares a package with its manifest: no file too many, none of another size or content, none outside.

    Raises:
        UserError: it differs.
    """
    files = _files(folder / MANIFEST)
    there = {
        file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir() and file.name != MANIFEST
    }
    if further := sorted(there - files.keys()):
        raise UserError(f"{folder} holds {further[0]}, which its {MANIFEST} does not name; {_REMEDY}")
    for name, (size, _) in files.items():
        file = Path(safe_join(folder, name))
        if not file.is_file():
            raise UserError(f"{folder} lacks {name}; {_REMEDY}")
        if file.stat().st_size != size:
            raise UserError(f"{file} has {file.stat().st_size} bytes, not the {size} that were packed; {_REMEDY}")
    for name, (_, digest) in files.items():
        if sha256(folder / name) != digest:
            raise UserError(f"{folder / name} is not what was packed (its sha256 differs); {_REMEDY}")
    if ABOUT_RUN not in files:
        raise UserError(f"{folder} lacks {ABOUT_RUN}, the config of its run; {_REMEDY}")
    for field, place in json.loads((folder / ABOUT_RUN).read_bytes()).get("tokenizers", {}).items():
        if field in BESIDE and place not in ("nano", HERE):
            raise UserError(f"{folder / ABOUT_RUN}: tokenizers.{field} = {place!r} leads out of it; do not use it")


def _files(manifest: Path) -> dict[str, tuple[int, str]]:
    """Name -> bytes and sha256 of a manifest's files."""
    try:
        if manifest.stat().st_size > _LARGEST:
            raise ValueError(f"over {_LARGEST} bytes")
        listed: dict[str, Any] = json.loads(manifest.read_bytes())["files"]
        files = {name: (int(one["bytes"]), str(one["sha256"])) for name, one in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{manifest} is no list of a package's files ({error}); {_REMEDY}") from error
    for name in files:
        if not name.endswith(SUFFIXES):
            raise UserError(f"{manifest} names {name}; a package holds {', '.join(SUFFIXES)} only; do not use it")
    return files


def sha256(file: Path) -> str:
    """Hex digest of a file."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
