"""Released checkpoints to Orbax, a part of a tensor at a time; the result appears whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, PartitionSpec

from omnidiff_jax.config import to_dict
from omnidiff_jax.conversion.arrays import ABOUT, ArrayFolder, Leaf, create, relaid
from omnidiff_jax.conversion.parts import (
    FILES,
    Summary,
    cast,
    checked_cast,
    part_rows,
    region,
    row_axis,
    run_jobs,
    spans,
)
from omnidiff_jax.conversion.released_arrays import planned
from omnidiff_jax.conversion.rules import Assignment, transform
from omnidiff_jax.conversion.sources import ReleasedFolder, open_released
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import new_folder
from omnidiff_jax.sharding.rules import param_specs

_CARRIED = {".json", ".yaml", ".yml", ".txt", ".model", ".mvn", ".jinja", ".md"}
_LARGEST_CARRIED = 64 << 20


@dataclass(frozen=True)
class Layout:
    """How the arrays are cut into files, so that devices read their own: sizes of mesh axes, and a strategy."""

    mesh: Mapping[str, int]
    strategy: str = "fsdp"


def to_orbax(
    source: Path,
    target: Path,
    *,
    component: str | None = None,
    dtype: np.dtype | None = None,
    allow_nan: bool = False,
    layout: Layout | None = None,
) -> Summary:
    """Converts a released checkpoint to a params-only Orbax one.

    Args:
        source: folder of the hub's form, or one file of tensors.
        target: folder to make; it must not exist.
        component: a name in `COMPONENTS`; None = told from the tensors' names.
        dtype: of floating-point arrays; None keeps each tensor's.
        allow_nan: convert tensors with NaN or infinities in them.
        layout: cuts arrays along the mesh's shards.

    Raises:
        UserError: a file is broken; a tensor is missing, left over, of another shape than the config's, quantized, or
            holds NaN, an infinity or a number beyond `dtype`; the config does not tell what the tensors do not; the
            target exists or cannot be written. Nothing is left behind.
    """
    with open_released(source) as folder, new_folder(target) as partial:
        found = planned(folder, component)
        shapes, places = folder.shapes, found.places
        leaves, steps = _leaves(folder, places, dtype, _specs(found.boxed, layout), layout)
        store = create(partial, leaves)
        jobs = (
            _job(folder, store, place, span, dtype, allow_nan)
            for place in sorted(places, key=lambda p: _offset(folder, p.source))
            for span in spans(shapes[place.source], steps[place.target])
        )
        run_jobs(jobs)
        about = {"component": found.kind.name, "config": to_dict(found.config), "released": _arrangement(folder)}
        if found.assumed:
            about["assumed"] = found.assumed
        if layout is not None:
            about["layout"] = {"mesh": dict(layout.mesh), "strategy": layout.strategy}
        (partial / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
        _carry(folder.folder, partial / FILES)
        size = sum(prod(s) * folder.dtype(n).itemsize for n, s in shapes.items())
        return Summary(found.kind.name, len(shapes), size, found.assumed)


def _specs(boxed: Any, layout: Layout | None) -> dict[str, PartitionSpec]:
    if layout is None:
        return {}
    mesh: Any = AbstractMesh(tuple(layout.mesh.values()), tuple(layout.mesh))
    specs = param_specs(boxed, layout.strategy, mesh)
    leaves = jax.tree_util.tree_flatten_with_path(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))[0]
    return {"/".join(str(key.key) for key in path): spec for path, spec in leaves}


def _leaves(
    folder: ReleasedFolder,
    places: Sequence[Assignment],
    dtype: np.dtype | None,
    specs: Mapping[str, PartitionSpec],
    layout: Layout | None,
) -> tuple[dict[str, Leaf], dict[str, int | None]]:
    """Arrays to be made, and for each the rows of a source tensor that are moved at once (None = all)."""
    shapes, leaves, steps = folder.shapes, {}, {}
    first: dict[str, Assignment] = {}
    depth: dict[str, tuple[int, ...]] = {}
    for place in places:
        kept = first.setdefault(place.target, place)
        depth[place.target] = tuple(i + 1 for i in place.index)  # places come in the order of the stack
        same = shapes[kept.source] == shapes[place.source]
        if not same or folder.dtype(kept.source) != folder.dtype(place.source):
            raise UserError(
                f"tensors {kept.source!r} ({folder.dtype(kept.source)}{list(shapes[kept.source])}) and "
                f"{place.source!r} ({folder.dtype(place.source)}{list(shapes[place.source])}) belong to one stack and "
                "must be alike"
            )
    for path, place in first.items():
        source = shapes[place.source]
        layers, inner = depth[path], _moved_shape(place.transform, source)
        kind = cast(folder.dtype(place.source), dtype)
        chunk = list(inner)
        for axis, names in enumerate(tuple(specs.get(path, ()))[len(layers) :]):
            assert layout is not None
            for name in (names,) if isinstance(names, str) else names or ():
                chunk[axis] //= layout.mesh[name]
        steps[path] = rows = part_rows(place.transform, source, kind.itemsize)
        if rows is not None:
            axis = row_axis(place.transform)
            chunk[axis] = _divisor(chunk[axis], rows)
            steps[path] = max(rows // chunk[axis], 1) * chunk[axis]
        leaves[path] = Leaf((*layers, *inner), kind, (*(1,) * len(layers), *chunk))
    return leaves, steps


def _moved_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return jax.eval_shape(transform(name).forward, jax.ShapeDtypeStruct(shape, np.uint8)).shape


def _divisor(size: int, most: int) -> int:
    """The largest divisor of `size` in most / 2 .. most; `most` where there is none."""
    return next((n for n in range(min(most, size), most // 2, -1) if size % n == 0), min(most, size))


def _offset(folder: ReleasedFolder, name: str) -> tuple[str, int]:
    file = folder.owner[name]
    return file, getattr(folder.files[file].entries[name], "start", 0)


def _job(
    folder: ReleasedFolder,
    store: ArrayFolder,
    place: Assignment,
    span: tuple[int, int] | None,
    dtype: np.dtype | None,
    allow_nan: bool,
) -> Callable[[], None]:
    def job() -> None:
        value = folder.read(place.source, *(span or ()))
        value = checked_cast(place.source, value, cast(value.dtype, dtype), allow_nan)
        store.write(place.target, region(place, span), relaid(transform(place.transform).forward(value)))

    return job


def _arrangement(folder: ReleasedFolder) -> dict[str, Any] | None:
    """Which tensor lay in which file, for the way back; torch files come back as safetensors of the usual size."""
    if any(not name.endswith(".safetensors") for name in folder.files):
        return None
    return {
        "index": folder.index,
        "files": {name: list(reader.entries) for name, reader in folder.files.items()},
        "metadata": {name: dict(reader.metadata) for name, reader in folder.files.items()},
    }


def _carry(source: Path, target: Path) -> None:
    """Copies the small files of a released folder, but for its index."""
    for path in sorted(source.iterdir()):
        small = path.is_file() and path.suffix in _CARRIED and path.stat().st_size <= _LARGEST_CARRIED
        if small and not path.name.endswith(".index.json") and path.name != ABOUT:
            target.mkdir(exist_ok=True)
            shutil.copyfile(path, target / path.name)
