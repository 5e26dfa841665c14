"""Fixture files: `meta` (JSON), `params/NAME` (released names and layouts), `in/...`, `out/...`."""

from __future__ import annotations

import functools
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omnidiff_jax.errors import UserError


@dataclass(frozen=True)
class Fixture:
    """One file.

    Attributes:
        name: its file name without `.npz`.
        meta: what the file says about itself.
        arrays: everything else, by full name.
    """

    name: str
    meta: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    @property
    def kind(self) -> str:
        return str(self.meta.get("fixture", ""))

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """Released state dict: name -> array."""
        return self.group("params/")

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        """Recorded outputs by full name, `out/...`."""
        return {name: value for name, value in self.arrays.items() if name.startswith("out/")}

    def group(self, prefix: str) -> dict[str, Any]:
        """Arrays whose names start with `prefix`, which is cut off."""
        return {name[len(prefix) :]: value for name, value in self.arrays.items() if name.startswith(prefix)}

    def __getitem__(self, name: str) -> Any:
        """The array `name`, numpy (typed loosely: jax takes it where it asks for its own arrays).

        Raises:
            UserError: it is missing.
        """
        if name not in self.arrays:
            raise UserError(f"the fixture lacks {name}")
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def setting(self, *keys: str) -> Any:
        """`meta[key][key]...`.

        Raises:
            UserError: a key is missing.
        """
        value: Any = self.meta
        for depth, key in enumerate(keys):
            if not isinstance(value, Mapping) or key not in value:
                raise UserError(f"the fixture's meta lacks {'.'.join(keys[: depth + 1])}")
            value = value[key]
        return value


def load(path: Path) -> Fixture:
    """Reads a fixture file; never unpickles.

    Raises:
        UserError: it is no archive of arrays with a JSON object under `meta`.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays.pop("meta")[()]))
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path.name} is not a fixture (.npz of arrays with a JSON `meta`): {error}") from error
    if not isinstance(meta, dict):
        raise UserError(f"{path.name}: meta is not a JSON object")
    return Fixture(path.stem, meta, arrays)


class FixtureSet:
    """The fixtures of one folder; files are read when asked for and the last ones kept."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise UserError(f"--fixtures={folder} is not a folder; give one with .npz fixtures")
        self.paths = tuple(sorted(folder.glob("*.npz")))
        if not self.paths:
            raise UserError(f"--fixtures={folder} holds no .npz files")
        self._load = functools.lru_cache(maxsize=4)(load)

    def load(self, path: Path) -> Fixture:
        return self._load(path)

    def beside(self, file_name: str) -> Fixture:
        """The file of that name in the folder.

        Raises:
            UserError: it is not there, or the name points elsewhere.
        """
        for path in self.paths:
            if file_name in (path.name, path.stem):
                return self._load(path)
        raise UserError(f"the fixture needs {file_name} beside it")

    def of_kind(self, kind: str, hint: str = "") -> Fixture:
        """The one fixture of a kind; where there are several, the one whose file name `hint` mentions.

        Raises:
            UserError: there is none, or no telling which.
        """
        found = [path for path in self.paths if self._kind(path) == kind]
        named = [path for path in found if path.stem in hint]
        for candidates in (named, found):
            if len(candidates) == 1:
                return self._load(candidates[0])
        raise UserError(f"the fixture needs one fixture of kind {kind!r} beside it; the folder holds {len(found)}")

    def _kind(self, path: Path) -> str:
        try:
            with np.load(path, allow_pickle=False) as file:
                meta = json.loads(str(file["meta"][()]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return ""
        return str(meta.get("fixture", "")) if isinstance(meta, dict) else ""
