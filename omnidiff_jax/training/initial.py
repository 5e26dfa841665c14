"""Starting from a converted checkpoint: parts are read shard by shard, the vocabulary is grown, the rest is fresh."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from omnidiff_jax.config import Natural, NonNegative, Seed
from omnidiff_jax.conversion.arrays import ABOUT, ArrayFolder, open_arrays
from omnidiff_jax.errors import UserError

EMBEDDING, HEAD = "backbone/embedding", "backbone/head"


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """What a run starts from.

    Attributes:
        folder: an Orbax folder of `omnidiff convert --component=omni`; "" = fresh parameters.
        rows: ids that mean the same in the checkpoint and here, the first ones; 0 = all that the checkpoint has.
            Dream-7B has 151667 (its other rows are padding).
        new_rows: the embedding and head rows of all further ids: the mean of the known ones, or random.
        stddev: of random rows.
        seed: of random rows.
    """

    folder: str = ""
    rows: Natural = 0
    new_rows: Literal["mean", "random"] = "mean"
    stddev: NonNegative = 0.02
    seed: Seed = 0


def load_initial(config: InitConfig, target: Any, fresh: Callable[[jax.Array], Any], key: jax.Array) -> dict[str, Any]:
    """The parameters that a run starts from, on its mesh.

    Args:
        config: where from.
        target: the model's parameters as `jax.ShapeDtypeStruct`s with shardings.
        fresh: makes parameters from a key; only the parts that the checkpoint lacks are computed.
        key: for them.

    Raises:
        UserError: the folder is no converted backbone, or an array has another shape than the model's.
    """
    folder = Path(config.folder)
    _check_component(folder)
    wanted = flatten_dict(target, sep="/")
    with open_arrays(folder) as store:
        loaded = {path: _load(store, path, leaf, config) for path, leaf in wanted.items() if path in store.arrays}
        parts = {path.split("/")[0] for path in loaded}
        for path in wanted:
            if path.split("/")[0] in parts and path not in loaded:
                raise UserError(f"{folder} lacks the array {path}, which config.model asks for")
    if "backbone" not in parts:
        raise UserError(f"{folder} holds no backbone; give a checkpoint converted as --component=omni")
    rest = {path: leaf for path, leaf in wanted.items() if path not in loaded}
    if rest:
        make = jax.jit(
            lambda k: {path: leaf for path, leaf in flatten_dict(fresh(k), sep="/").items() if path in rest},
            out_shardings={path: leaf.sharding for path, leaf in rest.items()},
        )
        loaded |= make(key)
    return unflatten_dict(loaded, sep="/")


def _check_component(folder: Path) -> None:
    try:
        component = json.loads((folder / ABOUT).read_text())["component"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"config.init.folder = {folder} is not a converted checkpoint ({type(error).__name__}); make one with "
            "omnidiff convert --from=released --to=orbax"
        ) from error
    if component != "omni":
        raise UserError(f"config.init.folder = {folder} holds a {component} checkpoint; a run starts from an omni one")


def _load(store: ArrayFolder, path: str, leaf: Any, config: InitConfig) -> jax.Array:
    """One array, each device reading its own part."""
    shape = store.shapes[path]
    axis = {EMBEDDING: 0, HEAD: 1}.get(path)
    if axis is not None and shape[axis] != leaf.shape[axis]:
        return _grown(store, path, leaf, axis, config)
    if shape != tuple(leaf.shape):
        raise UserError(
            f"{config.folder}: array {path} has shape {list(shape)}, config.model says {list(leaf.shape)}; "
            "use the sizes of the checkpoint"
        )
    return jax.make_array_from_callback(
        tuple(leaf.shape), leaf.sharding, lambda index: store.read(path, index or ()).astype(leaf.dtype)
    )


def _grown(store: ArrayFolder, path: str, leaf: Any, axis: int, config: InitConfig) -> jax.Array:
    """Embedding [V, D] or head [D, V] with rows for the ids that the checkpoint does not know."""
    shape, size = store.shapes[path], leaf.shape[axis]
    known = min(config.rows or shape[axis], shape[axis], size)
    if shape[1 - axis] != leaf.shape[1 - axis]:
        raise UserError(
            f"{config.folder}: array {path} has width {shape[1 - axis]}, config.model.width is {leaf.shape[1 - axis]}"
        )
    keep = (slice(0, known), slice(None)) if axis == 0 else (slice(None), slice(0, known))
    old = store.read(path, keep).astype(np.float32)
    width = leaf.shape[1 - axis]
    if config.new_rows == "mean":
        new = np.broadcast_to(old.mean(axis=axis, keepdims=True, dtype=np.float64), _with(shape, axis, size - known))
    else:
        rng = np.random.default_rng([config.seed, axis])
        rows = rng.standard_normal((size - known, width), np.float32) * np.float32(config.stddev)
        new = rows if axis == 0 else rows.T
    whole = np.concatenate([old, new.astype(np.float32)], axis=axis).astype(leaf.dtype)
    return jax.make_array_from_callback(tuple(leaf.shape), leaf.sharding, lambda index: whole[index])


def _with(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return tuple(size if i == axis else n for i, n in enumerate(shape))


def on_one_device(params: Any) -> Any:
    """Abstract parameters placed whole on the first device, as `load_initial` takes them."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(x.dtype), sharding=device), params)
