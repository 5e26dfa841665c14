"""A params-only Orbax checkpoint, written and read array by array, each in parts.

Orbax itself writes whole arrays, and a scanned leaf of a 7B model is 4 GB. Here Orbax writes the skeleton (the tree's
metadata over arrays of no size), then each array is a plain zarr beside it, which `StandardCheckpointer().restore(DIR)`
reads like its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax.traverse_util import unflatten_dict

from omnidiff_jax.errors import UserError

ABOUT = "omnidiff.json"
"""What the checkpoint is, beside Orbax's own files: component, sizes, and how the released files were laid out."""


@dataclass(frozen=True)
class Leaf:
    """One array to be written.

    Attributes:
        shape: of the whole.
        dtype: its type.
        chunk: shape of a piece; writers of whole pieces do not disturb one another.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...]


class ArrayFolder:
    """Arrays of a checkpoint, by "/"-joined path."""

    def __init__(self, folder: Path, arrays: dict[str, ts.TensorStore]):
        self.folder = folder
        self.arrays = arrays

    def write(self, path: str, index: tuple[int | slice, ...], value: np.ndarray) -> None:
        self.arrays[path][index].write(value).result()

    def read(self, path: str, index: tuple[int | slice, ...] = ()) -> np.ndarray:
        return np.asarray(self.arrays[path][index].read().result())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {path: tuple(array.shape) for path, array in self.arrays.items()}

    def dtype(self, path: str) -> np.dtype:
        return np.dtype(self.arrays[path].dtype.numpy_dtype)


def create(folder: Path, leaves: Mapping[str, Leaf]) -> ArrayFolder:
    """A checkpoint of these arrays at `folder`, which must not exist; contents are to be written."""
    tree = unflatten_dict({path: np.zeros((), leaf.dtype) for path, leaf in leaves.items()}, sep="/")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False)) as saver:
        saver.save(folder.absolute(), args=ocp.args.PyTreeSave(tree))
    arrays = {}
    for path, leaf in leaves.items():
        place = folder / path.replace("/", ".")
        shutil.rmtree(place)
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": f"{place.absolute()}/"},
            "metadata": {
                "shape": list(leaf.shape),
                "chunks": [max(n, 1) for n in leaf.chunk],
                "dtype": _zarr_dtype(leaf.dtype),
                "compressor": None,
                "fill_value": None,
                "order": "C",
                "dimension_separator": ".",
            },
        }
        arrays[path] = ts.open(spec, create=True, context=_context()).result()
    return ArrayFolder(folder, arrays)


def _context() -> ts.Context:
    # Files are renamed into place as one folder at the end; syncing each piece would only slow it down.
    return ts.Context({"file_io_sync": False, "cache_pool": {"total_bytes_limit": 0}})


def _zarr_dtype(dtype: np.dtype) -> str:
    return "bfloat16" if dtype.name == "bfloat16" else dtype.str


@contextmanager
def open_arrays(folder: Path, under: str = "") -> Iterator[ArrayFolder]:
    """Opens a checkpoint that this module or Orbax wrote.

    Args:
        folder: with Orbax's `_METADATA`.
        under: only the arrays of this subtree, such as "params"; the prefix is cut off.

    Raises:
        UserError: it is no such checkpoint, or an array is missing.
    """
    metadata = folder / "_METADATA"
    try:
        tree = json.loads(metadata.read_text())
        entries = [[str(key["key"]) for key in row["key_metadata"]] for row in tree["tree_metadata"].values()]
        zarr3 = bool(tree.get("use_zarr3", False))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not an Orbax checkpoint of arrays ({type(error).__name__}: {error})") from error
    prefix = under.split("/") if under else []
    packed = (folder / "manifest.ocdbt").exists()
    arrays = {}
    for keys in entries:
        if keys[: len(prefix)] != prefix:
            continue
        name, base = ".".join(keys), f"{folder.absolute()}/"
        kvstore: Any = (
            {"driver": "ocdbt", "base": {"driver": "file", "path": base}, "path": f"{name}/"}
            if packed
            else {"driver": "file", "path": f"{base}{name}/"}
        )
        spec = {"driver": "zarr3" if zarr3 else "zarr", "kvstore": kvstore}
        try:
            opened = ts.open(spec, open=True, read=True, context=_context()).result()
        except ValueError as error:
            raise UserError(f"{folder} lacks the array {name}: {str(error).splitlines()[0][:200]}") from error
        arrays["/".join(keys[len(prefix) :])] = opened
    if not arrays:
        raise UserError(f"{folder} holds no arrays{f' under {under}' if under else ''}")
    yield ArrayFolder(folder, arrays)


def restore(folder: Path, target: Any = None) -> Any:
    """The parameters as Orbax reads them: numpy arrays, or as `target` (shapes with shardings) says.

    Raises:
        UserError: it is no Orbax checkpoint.
    """
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(folder.absolute(), target)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{folder} cannot be restored: {reason[:300]}") from error


def relaid(value: np.ndarray) -> np.ndarray:
    """`value` contiguous, bit for bit: jax lays strided views out an order of magnitude faster than numpy."""
    words = {1: np.uint8, 2: np.uint16, 4: np.uint32}
    if value.flags.c_contiguous or value.size < 1 << 16 or value.dtype.itemsize not in words:
        return np.ascontiguousarray(value)
    bits = value.view(words[value.dtype.itemsize])  # jax would round what it takes for numbers
    return np.asarray(jax.device_put(bits, jax.local_devices(backend="cpu")[0])).view(value.dtype)
