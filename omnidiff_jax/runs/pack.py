"""A run as a package: a folder that `load` finds by its name, and the same as a wheel."""

import base64
import dataclasses
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from omnidiff_jax import __version__
from omnidiff_jax.codecs.tokenizers import TokenizersConfig
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import path, write_bytes
from omnidiff_jax.runs.named import ABOUT_RUN, BESIDE, GROUP, HERE, MANIFEST, NAME, SUFFIXES, check_package, sha256
from omnidiff_jax.runs.stored import export_newest, newest
from omnidiff_jax.tokenizers.assets import WEIGHTS_FILE, shrink_to_eight_bits

_FORM = 1
_DATE = (1980, 1, 1, 0, 0, 0)  # the same files make the same wheel
# What the released form has of a text tokenizer.
_TEXT = ("text.model", "tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json")


@dataclasses.dataclass(frozen=True)
class Packed:
    """A model that was packed.

    Attributes:
        folder: that OMNIDIFF_MODELS may name the parent of.
        wheel: the same for pip.
        size: bytes of the wheel.
        sha256: of the wheel.
    """

    folder: Path
    wheel: Path
    size: int
    sha256: str


def pack(
    workdir: str | os.PathLike[str], name: str, target: str | os.PathLike[str], *, eight_bits: bool = False
) -> Packed:
    """Writes the newest checkpoint of a run, in half precision, with its tokenizers as `target/NAME` and as a wheel.

    No path of this machine is in it: where data lay is left out, tokenizers lie beside the weights.

    Args:
        workdir: of the run.
        name: that it will be loaded by.
        target: an existing or new folder.
        eight_bits: hold the matrices of the model and of the speech decoder as int8 with scales (`eight_bits`). What
            makes codes stays in half precision, so that they are those it was trained on.

    Raises:
        UserError: no run, no such name, the package is there already, or a tokenizer holds what no package may.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"--name={name} must be a small letter with up to 39 letters, digits and _ after it")
    home = path(target)
    folder = home / name
    if folder.exists():
        raise UserError(f"{folder} is there already; remove it, or name another folder")
    stored = newest(workdir)
    home.mkdir(parents=True, exist_ok=True)
    unfinished = home / f".{name}.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        export_newest(workdir, unfinished, dtype=np.dtype(np.int8 if eight_bits else np.float16))
        copied = {field: _copied(stored.config.tokenizers, field, unfinished) for field in BESIDE}
        decoder = unfinished / BESIDE["speech_decoder"] / WEIGHTS_FILE
        if eight_bits and decoder.is_file():
            shrink_to_eight_bits(decoder)
        about = unfinished / ABOUT_RUN
        write_bytes(about, (json.dumps(_portable(json.loads(about.read_text()), copied), indent=2) + "\n").encode())
        files = sorted(file for file in unfinished.rglob("*") if file.is_file())
        listed = {
            file.relative_to(unfinished).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256(file)}
            for file in files
        }
        content = {"form": _FORM, "name": name, "step": stored.step, "version": __version__, "files": listed}
        write_bytes(unfinished / MANIFEST, (json.dumps(content, indent=1) + "\n").encode())
        check_package(unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    wheel = _wheel(folder, name, f"{__version__}.post{stored.step}", home)
    return Packed(folder, wheel, wheel.stat().st_size, sha256(wheel))


def _copied(config: TokenizersConfig, field: str, target: Path) -> bool:
    """Copies a tokenizer beside the weights, if it is a folder; the shipped ones are everywhere."""
    if getattr(config, field) == "nano":
        return False
    place, inner = config.folder(field), target / BESIDE[field]
    files = [file for file in place.rglob("*") if file.is_file()] if place.is_dir() else [place]
    if field == "text":
        files = [file for file in files if file.name in _TEXT or file == place]
    for file in files:
        if not file.name.endswith(SUFFIXES):
            raise UserError(f"{file} cannot be packed: of tokenizers there may be {', '.join(SUFFIXES)} only")
        name = "text.model" if file == place else file.relative_to(place)
        (inner / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, inner / name)
    return True


def _portable(config: dict[str, Any], copied: Mapping[str, bool]) -> dict[str, Any]:
    """A run's config without places on the machine that trained it."""
    config["tokenizers"] |= {field: HERE for field, is_copied in copied.items() if is_copied}
    for sources in (config["data"]["sources"], config["held_out"]["sources"]):
        for source in sources.values():
            source.update(path="", root="")
    config["init"]["folder"] = config["compilation_cache"] = ""
    return config


def _wheel(folder: Path, name: str, version: str, home: Path) -> Path:
    """A wheel of data alone (the binary distribution format of PyPA): the files of a package and its entry point."""
    package = f"omnidiff_model_{name}"
    about = f"{package}-{version}.dist-info"
    texts = {
        "METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        f"Summary: The model {name} of omnidiff_jax\nRequires-Dist: omnidiff_jax\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: omnidiff pack\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "entry_points.txt": f"[{GROUP}]\n{name} = {package}\n",
    }
    target = home / f"{package}-{version}-py3-none-any.whl"
    unfinished = target.with_suffix(".part")
    lines = []
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            lines.append(_added(archive, f"{package}/{file.relative_to(folder).as_posix()}", file.read_bytes()))
        for other, text in texts.items():
            lines.append(_added(archive, f"{about}/{other}", text.encode()))
        _added(archive, f"{about}/RECORD", "\n".join([*lines, f"{about}/RECORD,,", ""]).encode())
    unfinished.rename(target)
    return target


def _added(archive: zipfile.ZipFile, name: str, content: bytes) -> str:
    """Adds a file; its line of RECORD."""
    info = zipfile.ZipInfo(name, _DATE)
    info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    archive.writestr(info, content)
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}"
