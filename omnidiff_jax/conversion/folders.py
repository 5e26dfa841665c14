"""What a folder is: a training run, a converted or a released checkpoint, or a tokenizer; told from names alone."""

from __future__ import annotations

import json
import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omnidiff_jax.conversion.arrays import ABOUT
from omnidiff_jax.conversion.components import recognise
from omnidiff_jax.conversion.sources import SAFETENSORS, TORCH
from omnidiff_jax.conversion.tensor_files import SafetensorsFile
from omnidiff_jax.errors import UserError
from omnidiff_jax.tokenizers.assets import CONFIG_FILE, WEIGHTS_FILE
from omnidiff_jax.tokenizers.text import MODEL_FILE

CHECKPOINTS = "checkpoints"
"""Folder of a run's workdir that holds its checkpoints, one folder a step."""
_TEXT_TOKENIZERS = (MODEL_FILE, "tokenizer.json", "vocab.json")


@dataclass(frozen=True)
class Described:
    """What was found.

    Attributes:
        kind: "run": the workdir of a training run with at least one checkpoint; "converted": arrays that `omnidiff
            convert --to=orbax` wrote; "released": tensors in the released names; "tokenizer": one of this project's, or
            a text tokenizer.
        component: what a converted or released checkpoint holds, a name in `COMPONENTS`; "" where it cannot be told
            without reading the weights.
        words: one line for messages, such as "a converted omni checkpoint", or what is odd about an unknown one.
    """

    kind: Literal["run", "converted", "released", "tokenizer", "unknown"]
    component: str
    words: str


def describe_folder(path: str | os.PathLike[str]) -> Described:
    """Looks at names and headers only: nothing large is read, nothing is unpickled, nothing is raised."""
    place = Path(path)
    if not place.exists():
        return _unknown("nothing: it does not exist")
    if place.is_file():
        return _released(place, [place]) if place.suffix in (SAFETENSORS, *TORCH) else _unknown("a file, not a folder")
    if (steps := _steps(place / CHECKPOINTS)) > 0:
        return Described("run", "", f"the workdir of a run with {steps} checkpoint{'s' * (steps > 1)}")
    if place.name == CHECKPOINTS and _steps(place):
        return _unknown(f"the checkpoints of a run; name its workdir, {place.absolute().parent}")
    if place.absolute().parent.name == CHECKPOINTS and place.name.isdigit():
        return _unknown(f"one checkpoint of a run; name its workdir, {place.absolute().parents[1]}")
    if (place / ABOUT).is_file():
        return _converted(place / ABOUT)
    if files := sorted(p for p in place.iterdir() if p.suffix in (SAFETENSORS, *TORCH)):
        return _released(place, files)
    if any((place / name).is_file() for name in _TEXT_TOKENIZERS):
        return Described("tokenizer", "", "a text tokenizer")
    if (place / "_METADATA").is_file():
        return _unknown(f"arrays of Orbax without {ABOUT}, which says what they are")
    return _unknown("a folder without weights" if any(place.iterdir()) else "an empty folder")


def _unknown(words: str) -> Described:
    return Described("unknown", "", words)


def _steps(folder: Path) -> int:
    return sum(p.name.isdigit() and p.is_dir() for p in folder.iterdir()) if folder.is_dir() else 0


def _converted(about: Path) -> Described:
    try:
        component = str(json.loads(about.read_text())["component"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return _unknown(f"a converted checkpoint whose {ABOUT} is damaged ({type(error).__name__}); convert it again")
    return Described("converted", component, f"a converted {component} checkpoint")


def _released(place: Path, files: list[Path]) -> Described:
    safe = [file for file in files if file.suffix == SAFETENSORS]
    if not safe:
        return Described("released", "", "a checkpoint in torch files")
    names: set[str] = set()
    try:
        for file in safe:
            with closing(SafetensorsFile(file)) as reader:
                names |= reader.entries.keys()
        if any("/" in name for name in names) and place.is_dir() and (place / CONFIG_FILE).is_file():
            if [file.name for file in safe] == [WEIGHTS_FILE]:
                return Described("tokenizer", "", "a tokenizer of this project")
        component = recognise(names).name
    except UserError as error:
        return _unknown(f"no checkpoint that is known: {error}")
    return Described("released", component, f"a released {component} checkpoint")
