"""A released checkpoint on disk as one mapping of tensors: safetensors or torch files, one or many, with an index."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from omnidiff_jax.conversion.tensor_files import SafetensorsFile, no_weights
from omnidiff_jax.eight_bits import SCALE, from_eight_bits
from omnidiff_jax.errors import UserError

SAFETENSORS, TORCH = ".safetensors", (".bin", ".pt", ".pth")
_TORCH_STARTS = (b"PK\x03\x04", b"\x80")  # an archive of today, a pickle of before torch 1.6
# Groups in which training scripts wrap a state dict.
_WRAPPERS = ("state_dict", "model", "generator", "module")


class TensorReader(Protocol):
    """One file of tensors: `entries` has dtype and shape by name."""

    path: Path
    entries: Any
    metadata: dict[str, str]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray: ...

    def close(self) -> None: ...


def refuse_no_weights(path: Path) -> None:
    """Raises a `UserError` for a file that is a pointer, a page or the like instead of tensors; reads its beginning."""
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    what = "" if start.startswith(_TORCH_STARTS) else no_weights(start)
    if what:
        raise UserError(f"{path} is {what}")


class TorchFile:
    """A torch file, mapped into memory and never unpickled beyond tensors (`weights_only`)."""

    def __init__(self, path: Path):
        refuse_no_weights(path)
        try:
            import torch
        except ImportError as error:
            raise UserError(
                f"{path} needs torch to be read: pip install 'omnidiff_jax[torch]', or convert it to safetensors"
            ) from error
        self.path, self._torch = path, torch
        self.metadata: dict[str, str] = {}
        try:
            # Files of before torch 1.6 are no archives and cannot be mapped.
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except FileNotFoundError as error:
            raise UserError(f"cannot read {path}: it does not exist") from error
        except Exception as error:  # torch raises pickle, zip, runtime and value errors alike
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path} is not a torch file of tensors alone (code in it is not run): {reason}") from error
        self._tensors = self._unwrapped(loaded)
        self.entries = {name: _TorchEntry(self._type(name, t), t) for name, t in self._tensors.items()}

    def _type(self, name: str, tensor: Any) -> np.dtype:
        try:
            return self._numpy(tensor[:0] if tensor.ndim else tensor).dtype
        except (TypeError, RuntimeError, NotImplementedError) as error:  # torch's own for what numpy has no name for
            raise UserError(
                f"{self.path}: tensor {name!r} is {tensor.dtype} ({tensor.layout}), which is not read; weights must be "
                "dense bfloat16, float16, float32 or float64"
            ) from error

    def _unwrapped(self, loaded: Any) -> dict[str, Any]:
        while isinstance(loaded, dict):
            if loaded and all(isinstance(value, self._torch.Tensor) for value in loaded.values()):
                return dict(loaded)
            inner = [key for key in _WRAPPERS if isinstance(loaded.get(key), dict)]
            if len(inner) != 1:
                break
            loaded = loaded[inner[0]]
        raise UserError(f"{self.path} holds no state dict (name -> tensor)")

    def _numpy(self, tensor: Any) -> np.ndarray:
        import ml_dtypes

        if tensor.dtype == self._torch.bfloat16:
            return tensor.contiguous().view(self._torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.contiguous().numpy()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        tensor = self._tensors[name]
        return self._numpy(tensor[start:stop] if start or stop is not None else tensor)

    def close(self) -> None:
        self._tensors = {}


@dataclass(frozen=True)
class _TorchEntry:
    dtype: np.dtype
    tensor: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)


@dataclass(frozen=True)
class ReleasedFolder:
    """An open checkpoint.

    Attributes:
        folder: where it is.
        files: file name -> tensors.
        owner: tensor name -> file name.
        scales: tensor held in eight bits -> the tensor of its scales and its file (see `eight_bits`); not in `owner`.
        index: name of the index file, or None.
        config: `config.json`, `config.yaml` or `configuration.json`, whichever there is; empty without one.
    """

    folder: Path
    files: dict[str, TensorReader]
    owner: dict[str, str]
    scales: dict[str, tuple[str, str]]
    index: str | None
    config: dict[str, Any]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self.files[file].entries[name].shape) for name, file in self.owner.items()}

    def dtype(self, name: str) -> np.dtype:
        """Of what is read: float32 where eight bits and their scales are held."""
        return np.dtype(np.float32) if name in self.scales else self.files[self.owner[name]].entries[name].dtype

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows `start` to `stop` of a tensor (all by default)."""
        value = self.files[self.owner[name]].read(name, start, stop)
        if name not in self.scales:
            return value
        scales, file = self.scales[name]
        rows = (start, stop) if len(self.files[file].entries[scales].shape) == value.ndim else ()
        return from_eight_bits(value, self.files[file].read(scales, *rows))

    @property
    def largest_file(self) -> int:
        """Bytes."""
        return max(reader.path.stat().st_size for reader in self.files.values())


@contextmanager
def open_released(path: Path) -> Iterator[ReleasedFolder]:
    """Opens a checkpoint folder, or a single file of tensors.

    Raises:
        UserError: nothing to read, a broken file, an index that does not match its files or points out of the folder.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give a folder of config.json and *.safetensors")
    folder = path if path.is_dir() else path.parent
    index, names = (None, [path.name]) if path.is_file() else _files(folder)
    files: dict[str, TensorReader] = {}
    try:
        for name in names:
            file = folder / name
            files[name] = SafetensorsFile(file) if file.suffix == SAFETENSORS else TorchFile(file)
        owner: dict[str, str] = {}
        for name, reader in files.items():
            for tensor in reader.entries:
                if tensor in owner:
                    raise UserError(f"{folder}: tensor {tensor!r} is in {owner[tensor]} and in {name}; keep one")
                owner[tensor] = name
        if index is not None:
            _check_index(folder / index, owner)
        scales = _scales(files, owner)
        owner = {tensor: name for tensor, name in owner.items() if (tensor, name) not in scales.values()}
        yield ReleasedFolder(folder, files, owner, scales, index, read_config(folder))
    finally:
        for reader in files.values():
            reader.close()


def _scales(files: Mapping[str, TensorReader], owner: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The tensors of int8 that have scales, with where those are.

    Raises:
        UserError: scales of another shape or type than one a row, or one for all.
    """
    found: dict[str, tuple[str, str]] = {}
    for tensor, name in owner.items():
        entry = files[name].entries[tensor]
        if entry.dtype != np.int8 or (file := owner.get(scales := tensor + SCALE)) is None:
            continue
        told = files[file].entries[scales]
        known = tuple(told.shape) in ((*entry.shape[:1], *(1,) * (len(entry.shape) - 1)), (1,), ())
        if not known or not jax.numpy.issubdtype(told.dtype, np.floating):
            raise UserError(
                f"{files[file].path}: {scales!r} is {told.dtype.name}{list(told.shape)}, no scale for each row of "
                f"{tensor!r} of shape {list(entry.shape)}; give a checkpoint in bfloat16, float16 or float32"
            )
        found[tensor] = (scales, file)
    return found


def _files(folder: Path) -> tuple[str | None, list[str]]:
    """Index and tensor files of a folder, safetensors before torch files."""
    for suffixes in ((SAFETENSORS,), TORCH):
        indices = sorted(p.name for suffix in suffixes for p in folder.glob(f"*{suffix}.index.json"))
        if len(indices) > 1:
            raise UserError(f"{folder} holds several indices ({', '.join(indices)}); keep one")
        if indices:
            weights = _weight_map(folder / indices[0])
            return indices[0], sorted(set(weights.values()))
        found = sorted(p.name for p in folder.iterdir() if p.suffix in suffixes and p.is_file())
        if len(found) > 1 and suffixes == TORCH:
            raise UserError(f"{folder} holds several torch files ({', '.join(found)}); name one of them as SRC")
        if found:
            return None, found
    raise UserError(f"{folder} holds no *.safetensors, *.bin or *.pt; give a folder with weights")


def _weight_map(path: Path) -> dict[str, str]:
    weights = _json(path).get("weight_map")
    if not isinstance(weights, dict) or not weights or not all(isinstance(file, str) for file in weights.values()):
        raise UserError(f"{path} has no weight_map of tensor names to file names; download it again")
    for tensor, file in weights.items():
        # One plain name: nothing outside the folder may be read because an index says so.
        if file != Path(file).name or file in ("", ".", "..") or "\\" in file or "\0" in file:
            raise UserError(f"{path}: tensor {tensor!r} points to {file!r}, which is not a file of the folder")
        if Path(file).suffix not in (SAFETENSORS, *TORCH):
            raise UserError(f"{path}: tensor {tensor!r} points to {file!r}, which is no file of tensors")
        if (path.parent / file).is_symlink() and not _inside_cache(path.parent, file):
            raise UserError(f"{path}: {file!r} is a link that leads out of the folder")
    return weights


def _inside_cache(folder: Path, file: str) -> bool:
    """The hub's cache keeps files as links from `snapshots/REV/` to `blobs/` beside it."""
    target, home = (folder / file).resolve(), folder.resolve()
    in_cache = home.parent.name == "snapshots" and target.parent == home.parents[1] / "blobs"
    return in_cache or target.is_relative_to(home)


def _check_index(path: Path, owner: dict[str, str]) -> None:
    weights = _weight_map(path)
    for tensor, file in weights.items():
        if owner.get(tensor) != file:
            there = f"is in {owner[tensor]}" if tensor in owner else "is in no file"
            raise UserError(f"{path} says tensor {tensor!r} is in {file}, but it {there}; download both again")
    if extra := owner.keys() - weights.keys():
        raise UserError(f"{path} does not list {len(extra)} tensors of its files, such as {min(extra)!r}")


def read_config(folder: Path) -> dict[str, Any]:
    """The config beside the weights, {} without one; yaml tags (`!new:...`) are read as their contents."""
    for name in ("config.json", "configuration.json"):
        if (folder / name).is_file():
            return _json(folder / name)
    for name in ("config.yaml", "config.yml"):
        if (folder / name).is_file():
            return _yaml(folder / name)
    return {}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain data only; a tag's contents stand for it."""

    def untagged(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        return loader.construct_scalar(node)

    Loader.add_multi_constructor("!", untagged)
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not readable yaml: {' '.join(str(error).split())[:200]}") from error
    return value if isinstance(value, dict) else {}
