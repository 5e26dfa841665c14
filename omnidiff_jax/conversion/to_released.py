"""Orbax checkpoints to safetensors in the released names, layouts and files, a part of a tensor at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np

from omnidiff_jax.config import build, choose, to_dict
from omnidiff_jax.conversion.arrays import ABOUT, ArrayFolder, open_arrays, relaid
from omnidiff_jax.conversion.components import COMPONENTS, Component
from omnidiff_jax.conversion.parts import (
    FILES,
    Summary,
    cast,
    checked_cast,
    part_rows,
    region,
    row_axis,
    run_jobs,
    some,
    spans,
)
from omnidiff_jax.conversion.released import EIGHT_BITS
from omnidiff_jax.conversion.rules import Assignment, plan_inverse, torch_shapes, transform
from omnidiff_jax.conversion.tensor_files import SafetensorsWriter
from omnidiff_jax.eight_bits import SCALE, in_eight_bits
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import new_folder

SHARD = 5 << 30
"""Bytes of a safetensors file where the checkpoint does not say how it was split."""


def to_released(
    source: Path,
    target: Path,
    *,
    dtype: np.dtype | None = None,
    allow_nan: bool = False,
    shard_bytes: int = SHARD,
) -> Summary:
    """Converts what `to_orbax` made to safetensors in the released names, layouts and files.

    Args:
        source: a params-only Orbax checkpoint that says what it holds.
        target: folder to make; it must not exist.
        dtype: of floating-point tensors; None keeps each array's; int8 writes matrices in eight bits with scales
            (`eight_bits`), and the rest in float16.
        allow_nan: convert arrays with NaN or infinities in them.
        shard_bytes: most bytes of a file, where the checkpoint does not say how it was split.

    Raises:
        UserError: as `to_orbax`.
    """
    about = _about(source)
    kind = choose(COMPONENTS, about["component"], "component")
    config: Any = build(kind.config_type, about["config"], f"{source / ABOUT}: config")
    with open_arrays(source) as store:
        return write_released(
            store,
            target,
            kind.name,
            config,
            arrangement=about.get("released"),
            assumed=about.get("assumed"),
            carried=source / FILES,
            dtype=dtype,
            allow_nan=allow_nan,
            shard_bytes=shard_bytes,
        )


def write_released(
    store: ArrayFolder,
    target: Path,
    component: str,
    config: Any,
    *,
    arrangement: Mapping[str, Any] | None = None,
    assumed: Mapping[str, Any] | None = None,
    carried: Path | None = None,
    dtype: np.dtype | None = None,
    allow_nan: bool = False,
    shard_bytes: int = SHARD,
) -> Summary:
    """Writes arrays as a checkpoint in the released names.

    Args:
        store: the parameters.
        target, dtype, allow_nan, shard_bytes: as for `to_released`.
        component: a name in `COMPONENTS`.
        config: its sizes.
        arrangement: which tensor lay in which file; None = split by size.
        assumed: fields of `config` that nobody told; a config that is written here says so.
        carried: folder of small files to put beside, if it exists.
    """
    kind = choose(COMPONENTS, component, "component")
    if dtype == np.int8 and allow_nan:
        raise UserError("int8 has no place for NaN or infinities; leave --allow_nan, or convert to another --dtype")
    with new_folder(target) as partial:
        partial.mkdir()
        rules = kind.rules(config)
        stored = {path: jax.ShapeDtypeStruct(shape, np.uint8) for path, shape in store.shapes.items()}
        places = plan_inverse(rules, store.shapes)
        shapes, expected = torch_shapes(rules, stored), torch_shapes(rules, kind.abstract(config))
        for place in places:
            if shapes[place.source] != expected.get(place.source, shapes[place.source]):
                raise UserError(
                    f"array {place.target!r} gives {place.source!r} the shape {list(shapes[place.source])} where the "
                    f"config says {list(expected[place.source])}"
                )
        if missing := expected.keys() - shapes.keys():
            raise UserError(f"{store.folder} lacks the arrays of {len(missing)} tensors: {some(missing)}")
        eight = {name for name, shape in shapes.items() if dtype == np.int8 and _is_matrix(name, shape)}
        rest = np.dtype(np.float16) if dtype == np.int8 else dtype
        types = {place.source: cast(store.dtype(place.target), rest) for place in places}
        types |= dict.fromkeys(eight, np.dtype(np.int8)) | {name + SCALE: np.dtype(np.float32) for name in eight}
        shapes |= {name + SCALE: (shapes[name][0], 1) for name in eight}
        files, index, metadata = _files(arrangement, shapes, types, shard_bytes)
        owner = {name: file for file, names in files.items() for name in names}
        with ExitStack() as stack:
            writers = {}
            for file, names in files.items():
                tensors = [(name, types[name], shapes[name]) for name in names]
                writers[file] = SafetensorsWriter(partial / file, tensors, metadata.get(file, {}))
                stack.callback(writers[file].close)
            jobs = (
                _job(store, writers, owner, place, span, types[place.source], allow_nan)
                for place in places
                for span in spans(shapes[place.source], _stored_rows(store, place, shapes[place.source]))
            )
            run_jobs(jobs)
        total = sum(prod(shape) * types[name].itemsize for name, shape in shapes.items())
        if index is not None:
            listing = {"metadata": {"total_size": total}, "weight_map": dict(sorted(owner.items()))}
            (partial / index).write_text(json.dumps(listing, indent=2) + "\n")
        _config_files(carried, partial, kind, config, assumed, bool(eight))
        return Summary(kind.name, len(shapes), total)


def _about(source: Path) -> dict[str, Any]:
    try:
        about = json.loads((source / ABOUT).read_text())
        known = {"component": str(about["component"]), "config": dict(about["config"])}
        return known | {"released": about.get("released"), "assumed": dict(about.get("assumed") or {})}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{source} does not say what it holds ({ABOUT}: {type(error).__name__}); give a folder that "
            "`omnidiff convert --to=orbax` made"
        ) from error


def _stored_rows(store: ArrayFolder, place: Assignment, shape: tuple[int, ...]) -> int | None:
    """Rows of a part, a multiple of the pieces in which the array is stored."""
    rows = part_rows(place.transform, shape, store.dtype(place.target).itemsize)
    if rows is None:
        return None
    pieces = store.arrays[place.target].chunk_layout.read_chunk.shape or ()
    piece = pieces[len(place.index) + row_axis(place.transform)] or 1
    return max(rows // piece, 1) * piece


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is worth eight bits: a scale is small beside its row."""
    return name.endswith(".weight") and len(shape) == 2 and shape[1] >= 16


def _job(
    store: ArrayFolder,
    writers: Mapping[str, SafetensorsWriter],
    owner: Mapping[str, str],
    place: Assignment,
    span: tuple[int, int] | None,
    dtype: np.dtype,
    allow_nan: bool,
) -> Callable[[], None]:
    name, start = place.source, span[0] if span else 0

    def write(tensor: str, value: np.ndarray) -> None:
        writers[owner[tensor]].write(tensor, value, (value.nbytes // len(value)) * start if start else 0)

    def job() -> None:
        value = store.read(place.target, region(place, span))
        if dtype != np.int8:
            value = checked_cast(name, value, dtype, allow_nan)
            return write(name, relaid(transform(place.transform).inverse(value)))
        value = checked_cast(name, value, np.dtype(np.float32), allow_nan)
        steps, scales = in_eight_bits(relaid(transform(place.transform).inverse(value)))
        write(name, steps)
        write(name + SCALE, scales)

    return job


def _files(
    recorded: Mapping[str, Any] | None,
    shapes: Mapping[str, tuple[int, ...]],
    types: Mapping[str, np.dtype],
    shard_bytes: int,
) -> tuple[dict[str, list[str]], str | None, Mapping[str, Mapping[str, str]]]:
    """(file -> tensors, name of the index or None, file -> metadata): as it was, or split by size."""
    if recorded is not None:
        files = {str(file): [str(n) for n in names] for file, names in recorded["files"].items()}
        names = [name for group in files.values() for name in group]
        if sorted(names) == sorted(shapes) and all(file == Path(file).name for file in files):
            index = recorded.get("index")
            return files, None if index is None else Path(str(index)).name, recorded.get("metadata", {})
    groups: list[list[str]] = [[]]
    held = 0
    for name in sorted(shapes, key=_natural):
        size = prod(shapes[name]) * types[name].itemsize
        if groups[-1] and held + size > shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    metadata = {"format": "pt"}  # what readers of the hub's files ask for
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}, None, {"model.safetensors": metadata}
    files = {f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups)}
    return files, "model.safetensors.index.json", dict.fromkeys(files, metadata)


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Layer 10 after layer 9."""
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in name.split("."))


def _config_files(
    carried: Path | None,
    target: Path,
    kind: Component,
    config: Any,
    assumed: Mapping[str, Any] | None,
    eight_bits: bool,
) -> None:
    if carried is not None and carried.is_dir():
        for path in sorted(carried.iterdir()):
            shutil.copyfile(path, target / path.name)
    if not any((target / name).exists() for name in ("config.json", "configuration.json", "config.yaml")):
        own = {"component": kind.name, "config": to_dict(config)} | ({"assumed": dict(assumed)} if assumed else {})
        text = json.dumps(kind.released_json(config) | {"omnidiff": own}, indent=2)
        (target / "config.json").write_text(text + "\n")
    own_json = target / "config.json"
    if own_json.exists():
        told = json.loads(own_json.read_text())
        said = {key: value for key, value in told.items() if key not in ("quantization_config", "compression_config")}
        said |= {"quantization_config": EIGHT_BITS} if eight_bits else {}
        if said != told:
            own_json.write_text(json.dumps(said, indent=2) + "\n")
