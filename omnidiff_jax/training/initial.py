"""Starting from weights that are there: a run's, converted or released ones. Each device reads its own part, the
vocabulary is grown, the rest is fresh."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from omnidiff_jax.config import Natural, NonNegative, Seed, build, to_dict
from omnidiff_jax.conversion.arrays import ABOUT, open_arrays
from omnidiff_jax.conversion.folders import CHECKPOINTS, describe_folder
from omnidiff_jax.conversion.released_arrays import open_as_arrays
from omnidiff_jax.conversion.told import differences
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.backbone import BackboneConfig
from omnidiff_jax.models.omni import OmniConfig
from omnidiff_jax.training.checkpoint import CheckpointConfig, Checkpointer
from omnidiff_jax.training.expansion import LAYERS, Arrays, Expanded
from omnidiff_jax.training.export import open_trained
from omnidiff_jax.training.lora import LoraConfig

EMBEDDING, HEAD = "backbone/embedding", "backbone/head"


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """What a run starts from.

    Attributes:
        folder: the workdir of a run, a converted or released checkpoint of the whole model or its backbone, or the
            name of a shipped model; "" = fresh parameters.
        rows: ids that mean the same in the checkpoint and here, the first ones; 0 = all that the checkpoint has.
            Dream-7B has 151667 (its other rows are padding).
        new_rows: the embedding and head rows of all further ids: the mean of the known ones, or random.
        stddev: of random rows.
        seed: of random rows.
        layers: "same" as the checkpoint has, or "expanded": where the model has more, the further ones are copies that
            change nothing yet (`expansion`).
    """

    folder: str = ""
    rows: Natural = 0
    new_rows: Literal["mean", "random"] = "mean"
    stddev: NonNegative = 0.02
    seed: Seed = 0
    layers: Literal["same", "expanded"] = "same"


@dataclasses.dataclass(frozen=True)
class Source:
    """What a folder holds.

    Attributes:
        arrays: the parameters that one samples with.
        sizes: what is known of their model, as nested plain dicts: part -> field -> value.
        words: what it is, for messages.
        tokenizers: fingerprint of those that its ids come from; "" = not known.
    """

    arrays: Arrays
    sizes: Mapping[str, Any]
    words: str
    tokenizers: str = ""


@contextmanager
def open_source(folder: str | os.PathLike[str], where: str = "config.init.folder") -> Iterator[Source]:
    """Opens any folder that a model can start from; nothing is copied.

    Args:
        folder: the workdir of a run (its newest whole checkpoint: the average where it keeps one, LoRA products added),
            a converted checkpoint, or a released one.
        where: what names it, for messages.

    Raises:
        UserError: it is none of these, or holds no whole model.
    """
    place, found = Path(folder), describe_folder(folder)
    if found.kind == "run":
        with _open_run(place, where) as source:
            yield source
    elif found.kind == "converted" and found.component == "omni":
        about = json.loads((place / ABOUT).read_text())
        with open_arrays(place) as arrays:
            yield Source(arrays, _group(about, "config"), found.words)
    elif found.kind == "released" and found.component in ("omni", ""):
        with open_as_arrays(place, "omni") as arrays:
            for name, value in arrays.found.assumed.items():
                print(f"{where} = {place} does not tell {name}; assumed {value!r} as released", file=sys.stderr)
            yield Source(arrays, to_dict(arrays.found.config), found.words)
    else:
        raise UserError(
            f"{where} = {place} is {found.words}; a model starts from the workdir of a run, or from a converted or "
            "released checkpoint of the whole model (component omni)"
        )


@contextmanager
def _open_run(workdir: Path, where: str) -> Iterator[Source]:
    with closing(Checkpointer(workdir, CheckpointConfig(), read_only=True)) as saver:
        step = saver.latest()
        config = saver.config(step)
    if config.get("program") != "omni":
        raise UserError(f"{where} = {workdir} trained the {config.get('program')}; name a run of the whole model")
    lora = build(LoraConfig, config.get("lora") or {}, f"{workdir}: config.lora")
    factors = tuple(int(bits) for bits in config.get("image_factors") or ())
    averaged = bool(_group(config, "optimizer").get("ema_decay"))
    words = f"checkpoint {step} of a run"
    with open_trained(workdir / CHECKPOINTS / str(step) / "state", lora, factors, averaged=averaged) as arrays:
        sizes = {"backbone": to_dict(BackboneConfig()) | dict(_group(config, "model"))}
        yield Source(arrays, sizes, words, str(_group(config, "tokenizers").get("fingerprint", "")))


def _group(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


# What may differ between the model that weights were made with and the one that goes on from them: how it is computed,
# how fresh weights are drawn, quirks of training, and facts that a released checkpoint does not hold.
FREE = {
    "vocab_size", "dtype", "attention", "attention_mask", "remat", "scan_layers", "init_stddev", "embed_stddev",
    "residual_stddev", "padding_idx", "padding_visible", "queries", "position_table", "padding", "max_positions",
}  # fmt: skip


def check_sizes(model: OmniConfig, source: Source, where: str) -> None:
    """Refuses weights of another architecture, which may well have the same shapes.

    Raises:
        UserError: naming every field that differs, with both values.
    """
    ours: dict[str, Any] = {"backbone": to_dict(model.backbone)}
    if model.speech_encoder is not None:
        ours |= {"speech_encoder": to_dict(model.speech_encoder), "adapter": to_dict(model.adapter)}
    found = list(differences(ours, source.sizes, FREE))
    if found:
        said = "; ".join(f"{field} is {there!r} there and {here!r} here" for field, here, there in found)
        fields = {field for field, _, _ in found}
        flags = [
            f"--config.model.{field.removeprefix('backbone.')}={there!r}"
            for field, _, there in found
            if field.startswith("backbone.")
        ]
        others = any(not field.startswith("backbone.") for field in fields)
        remedy = [" ".join(flags)] * bool(flags) + ["the speech encoder that belongs to it"] * others
        raise UserError(f"{where} ({source.words}) is of another model: {said}; use {' and '.join(remedy)}")


def load_initial(
    config: InitConfig,
    model: OmniConfig,
    target: Any,
    fresh: Callable[[jax.Array], Any],
    key: jax.Array,
    tokenizers: str = "",
    keep: Callable[[str, jax.Array], Any] = lambda path, array: array,
) -> dict[str, Any]:
    """The parameters that a run starts from, on its mesh.

    Args:
        config: where from.
        model: of the run; what it shares with the checkpoint's must be alike.
        target: the model's parameters as `jax.ShapeDtypeStruct`s with shardings.
        fresh: makes parameters from a key; only the parts that the checkpoint lacks are computed.
        key: for them.
        tokenizers: fingerprint of those that this run's ids come from; "" = not known.
        keep: what becomes of an array of the checkpoint, by its path, before the next one is read; the largest are read
            first, while little else is held.

    Raises:
        UserError: the folder holds no backbone or one of another architecture, its ids mean something else, or an array
            has another shape than the model's.
    """
    wanted = flatten_dict(target, sep="/")
    with open_source(config.folder) as source:
        if config.layers == "expanded":
            source = _expanded(source, model.backbone.layers)
        arrays = source.arrays
        check_sizes(model, source, f"config.init.folder = {config.folder}")
        if not config.rows and tokenizers and source.tokenizers not in ("", tokenizers):
            raise UserError(
                f"config.init.folder = {config.folder} ({source.words}) has other tokenizers (fingerprint "
                f"{source.tokenizers}, here {tokenizers}): its ids mean something else; use those of before, or say "
                "with config.init.rows how many of the first ids mean the same"
            )
        there = sorted((path for path in wanted if path in arrays.shapes), key=lambda path: -wanted[path].size)
        loaded = {path: keep(path, _load(arrays, path, wanted[path], config)) for path in there}
        parts = {path.split("/")[0] for path in loaded}
        for path in wanted:
            if path.split("/")[0] in parts and path not in loaded:
                raise UserError(f"{config.folder} lacks the array {path}, which config.model asks for")
    if "backbone" not in parts:
        raise UserError(f"{config.folder} holds no backbone; give a checkpoint converted as --component=omni")
    rest = {path: leaf for path, leaf in wanted.items() if path not in loaded}
    if rest:
        make = jax.jit(
            lambda k: {path: leaf for path, leaf in flatten_dict(fresh(k), sep="/").items() if path in rest},
            out_shardings={path: leaf.sharding for path, leaf in rest.items()},
        )
        loaded |= make(key)
    return unflatten_dict(loaded, sep="/")


def _expanded(source: Source, layers: int) -> Source:
    """The source as one of a model with at least as many layers."""
    there = {shape[0] for path, shape in source.arrays.shapes.items() if path.startswith(LAYERS)}
    if not there or max(there) >= layers:
        return source
    sizes = {**source.sizes, "backbone": {**source.sizes.get("backbone", {}), "layers": layers}}
    return dataclasses.replace(source, arrays=Expanded(source.arrays, layers), sizes=sizes)


def _load(store: Arrays, path: str, leaf: Any, config: InitConfig) -> jax.Array:
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


def _grown(store: Arrays, path: str, leaf: Any, axis: int, config: InitConfig) -> jax.Array:
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
