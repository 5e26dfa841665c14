"""A tokenizer on disk: `config.json` (its frozen dataclass) beside `model.safetensors` (its parameters, float16).

Or what `omnidiff convert --to=orbax` made of a released one: an Orbax checkpoint with its sizes in `omnidiff.json`.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.core import meta
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load as parse_tensors
from safetensors.numpy import save as format_tensors

from omnidiff_jax import config as configs
from omnidiff_jax.eight_bits import SCALE, from_eight_bits, in_eight_bits
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import write_bytes

Config = TypeVar("Config")
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_HOME = Path(__file__).resolve().parent.parent / "assets"
CONVERTED_FILE = "omnidiff.json"
_WORTH = 16  # numbers of a channel that share a scale, at least


def nano_dir(name: str) -> Path:
    """Folder of the nano tokenizer shipped with the package, e.g. `nano_dir("image_tokenizer")`."""
    return _HOME / "nano" / name


def shipped_models() -> dict[str, Path]:
    """Name -> folder of every trained model that is shipped with the package, in the released form."""
    home = _HOME / "models"
    return {folder.name: folder for folder in sorted(home.iterdir()) if folder.is_dir()} if home.is_dir() else {}


def fingerprint(folders: Iterable[str | os.PathLike]) -> str:
    """Hex digest of tokenizer folders (or files), by the bytes of their files: equal only if they encode alike.

    Raises:
        UserError: a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for folder in map(Path, folders):
        for file in sorted(folder.rglob("*")) if folder.is_dir() else (folder,):
            # Orbax notes when it wrote; a conversion made again is the same tokenizer.
            if not file.is_dir() and file.name != "_CHECKPOINT_METADATA":
                digest.update(hashlib.blake2b(_read(file)).digest())
    return digest.hexdigest()


def save(directory: str | os.PathLike, config: Any, params: Any) -> None:
    """Writes `config` and `params` (floating leaves as float16, names joined by "/"); each file whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(directory)
    flat = flatten_dict(meta.unbox(params), sep="/")
    tensors = {name: np.ascontiguousarray(_shrink(np.asarray(leaf))) for name, leaf in flat.items()}
    write_bytes(folder / WEIGHTS_FILE, format_tensors(tensors))
    write_bytes(folder / CONFIG_FILE, (json.dumps(configs.to_dict(config), indent=2) + "\n").encode())


def shrink_to_eight_bits(file: Path) -> None:
    """Rewrites the `model.safetensors` of a saved tokenizer with its kernels in eight bits (`eight_bits`), a scale for
    each output channel, the last axis; `load` reads either.

    Raises:
        UserError: the file cannot be read or written.
    """
    held: dict[str, np.ndarray] = {}
    for name, tensor in _parse(file).items():
        if jax.numpy.issubdtype(tensor.dtype, np.floating) and tensor.ndim > 1 and tensor[..., 0].size >= _WORTH:
            held[name], held[name + SCALE] = in_eight_bits(tensor, axis=-1)
        else:
            held[name] = tensor
    write_bytes(file, format_tensors({name: np.ascontiguousarray(value) for name, value in held.items()}))


def load(
    directory: str | os.PathLike, config_type: type[Config], shapes: Callable[[Config], Any]
) -> tuple[Config, dict[str, Any]]:
    """Reads what `save` wrote, or a converted checkpoint.

    Args:
        directory: folder with `config.json` and `model.safetensors`, or with `omnidiff.json` and Orbax's files.
        config_type: the frozen dataclass of `config.json`.
        shapes: config -> the parameter tree it needs, as arrays or `jax.ShapeDtypeStruct`s (boxed or not).

    Returns:
        The config and the parameters (numpy; floating leaves float32).

    Raises:
        UserError: a file is missing, cannot be read, or does not hold the tensors the config asks for.
    """
    folder = Path(directory)
    if is_converted(folder):
        return _load_converted(folder, config_type, shapes)
    config = configs.build(config_type, _read_json(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
    path = folder / WEIGHTS_FILE
    found = _floats(path, _parse(path))
    if _HOME not in path.absolute().parents:  # what ships with the package was checked when it was put there
        _check(path, flatten_dict(meta.unbox(shapes(config)), sep="/"), found)
    return config, unflatten_dict({name: _grow(tensor) for name, tensor in found.items()}, sep="/")


def _parse(path: Path) -> dict[str, np.ndarray]:
    try:
        return parse_tensors(_read(path))
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}); export or copy it again") from error


def _floats(path: Path, held: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors, those of eight bits times their scales."""
    eight = {name for name, tensor in held.items() if tensor.dtype == np.int8 and name + SCALE in held}
    found = {name: tensor for name, tensor in held.items() if name.removesuffix(SCALE) not in eight}
    for name in eight:
        steps, scales = held[name], held[name + SCALE]
        if scales.shape != (*(1,) * (steps.ndim - 1), *steps.shape[-1:]):
            raise UserError(
                f"{path}: {name + SCALE!r} has shape {scales.shape}, no scale for each channel of {name!r} of shape "
                f"{steps.shape}; export or copy it again"
            )
        found[name] = from_eight_bits(steps, scales)
    return found


def is_converted(directory: str | os.PathLike) -> bool:
    """Whether a folder is a converted checkpoint rather than one that `save` wrote."""
    return (Path(directory) / CONVERTED_FILE).is_file()


def _load_converted(
    folder: Path, config_type: type[Config], shapes: Callable[[Config], Any]
) -> tuple[Config, dict[str, Any]]:
    path = folder / CONVERTED_FILE
    config = configs.build(config_type, _read_json(path).get("config", {}), str(path))
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            found = flatten_dict(checkpointer.restore(folder.absolute()), sep="/")
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{folder} cannot be restored ({reason[:200]}); convert it again") from error
    expected = flatten_dict(meta.unbox(shapes(config)), sep="/")
    # Buffers that no module reads are kept for the way back only.
    _check(path, expected, {name: found[name] for name in found if name in expected})
    return config, unflatten_dict({name: _grow(np.asarray(found[name])) for name in expected}, sep="/")


def _check(path: Path, expected: Mapping[str, Any], found: Mapping[str, np.ndarray]) -> None:
    remedy = f"it does not belong to the {CONFIG_FILE} beside it; export both together"
    for name in expected:
        if name not in found:
            raise UserError(f"{path} lacks tensor {name!r}; {remedy}")
        if found[name].shape != tuple(expected[name].shape):
            raise UserError(
                f"{path}: tensor {name!r} has shape {found[name].shape}, not {tuple(expected[name].shape)}; {remedy}"
            )
    for name in found:
        if name not in expected:
            raise UserError(f"{path} holds an unknown tensor {name!r}; {remedy}")


def _shrink(leaf: np.ndarray) -> np.ndarray:
    return leaf.astype(np.float16) if jax.numpy.issubdtype(leaf.dtype, np.floating) else leaf


def _grow(leaf: np.ndarray) -> np.ndarray:
    return leaf.astype(np.float32) if jax.numpy.issubdtype(leaf.dtype, np.floating) else leaf


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        needed = f"a tokenizer folder holds {CONFIG_FILE} and {WEIGHTS_FILE}"
        raise UserError(f"cannot read {path} ({error.strerror}); {needed}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); export or copy it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(value).__name__}; export or copy it again")
    return value
