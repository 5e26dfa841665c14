"""Whole checkpoints between the released form and Orbax, a part of a tensor at a time.

Nothing is held beyond the parts in the workers' hands, so memory does not grow with the model. The result appears under
its name when it is whole, or not at all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, PartitionSpec

from omnidiff_jax.config import build, choose, to_dict
from omnidiff_jax.conversion.arrays import ABOUT, ArrayFolder, Leaf, create, open_arrays, relaid
from omnidiff_jax.conversion.components import COMPONENTS, KEPT, Component, recognise
from omnidiff_jax.conversion.rules import Assignment, flat_params, plan, plan_inverse, torch_shapes, transform
from omnidiff_jax.conversion.sources import ReleasedFolder, open_released
from omnidiff_jax.conversion.tensor_files import SafetensorsWriter
from omnidiff_jax.errors import UserError
from omnidiff_jax.sharding.rules import param_specs

PART = 128 << 20
"""Bytes of a part: larger matrices are moved in blocks of rows."""
WORKERS = 3
FILES = "released_files"
"""Folder inside an Orbax checkpoint for the small files of the released one: configs, text tokenizer."""
SHARD = 5 << 30
"""Bytes of a safetensors file where the checkpoint does not say how it was split."""

_CARRIED = {".json", ".yaml", ".yml", ".txt", ".model", ".mvn", ".jinja", ".md"}
_LARGEST_CARRIED = 64 << 20
# Buffers of training that some releases carry and no module reads.
_EXTRA = re.compile(rf"({KEPT}/.*|ema_count|ema_weight)")


@dataclass(frozen=True)
class Layout:
    """How the arrays are cut into files, so that devices read their own: sizes of mesh axes, and a strategy."""

    mesh: Mapping[str, int]
    strategy: str = "fsdp"


@dataclass(frozen=True)
class Summary:
    """Attributes:
    component: what was converted.
    tensors: how many released tensors.
    bytes: of their values.
    """

    component: str
    tensors: int
    bytes: int


# ---- released -> Orbax --------------------------------------------------------------------------------------


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
        allow_nan: convert tensors with NaN in them.
        layout: cuts arrays along the mesh's shards.

    Raises:
        UserError: a file is broken; a tensor is missing, left over, of another shape than the config's, or holds NaN;
            the target exists or cannot be written. Nothing is left behind.
    """
    with open_released(source) as folder, new_folder(target) as partial:
        kind = recognise(folder.owner, component)
        shapes = folder.shapes
        config = kind.config(shapes, folder.config)
        rules = kind.rules(config)
        places = plan(rules, shapes)
        boxed = kind.abstract(config)
        _check_shapes(kind, torch_shapes(rules, boxed), flat_params(boxed), shapes, places)
        leaves, steps = _leaves(folder, places, dtype, _specs(boxed, layout), layout)
        store = create(partial, leaves)
        jobs = (
            _forward_job(folder, store, place, span, dtype, allow_nan)
            for place in sorted(places, key=lambda p: _offset(folder, p.source))
            for span in _spans(shapes[place.source], steps[place.target])
        )
        _run(jobs)
        about = {"component": kind.name, "config": to_dict(config), "released": _arrangement(folder)}
        if layout is not None:
            about["layout"] = {"mesh": dict(layout.mesh), "strategy": layout.strategy}
        (partial / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
        _carry(folder.folder, partial / FILES)
        return Summary(kind.name, len(shapes), sum(prod(s) * folder.dtype(n).itemsize for n, s in shapes.items()))


def _check_shapes(
    kind: Component, expected: Mapping[str, Any], leaves: Mapping[str, Any], found: Mapping[str, Any], places: Any
) -> None:
    targets = {place.target for place in places}
    if missing := leaves.keys() - targets:
        raise UserError(f"the checkpoint leaves {len(missing)} parameters of {kind.name} unfilled: {_some(missing)}")
    for place in places:
        if place.target not in leaves:
            if not _EXTRA.fullmatch(place.target):
                raise UserError(f"{kind.name} has no place for tensor {place.source!r}")
        elif tuple(found[place.source]) != tuple(expected[place.source]):
            raise UserError(
                f"tensor {place.source!r} has shape {list(found[place.source])} where the config says "
                f"{list(expected[place.source])}; config and weights do not belong together"
            )


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


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
        kind = _cast(folder.dtype(place.source), dtype)
        chunk = list(inner)
        for axis, names in enumerate(tuple(specs.get(path, ()))[len(layers) :]):
            assert layout is not None
            for name in (names,) if isinstance(names, str) else names or ():
                chunk[axis] //= layout.mesh[name]
        steps[path] = rows = _rows(place.transform, source, kind.itemsize)
        if rows is not None:
            axis = _row_axis(place.transform)
            chunk[axis] = _divisor(chunk[axis], rows)
            steps[path] = max(rows // chunk[axis], 1) * chunk[axis]
        leaves[path] = Leaf((*layers, *inner), kind, (*(1,) * len(layers), *chunk))
    return leaves, steps


def _cast(found: np.dtype, wanted: np.dtype | None) -> np.dtype:
    return wanted if wanted is not None and jax.numpy.issubdtype(found, np.floating) else found


def _moved_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return jax.eval_shape(transform(name).forward, jax.ShapeDtypeStruct(shape, np.uint8)).shape


def _rows(name: str, shape: tuple[int, ...], itemsize: int) -> int | None:
    """Rows of a released tensor that make a part; None where the tensor is moved whole."""
    if prod(shape) * itemsize <= PART or name not in ("none", "linear") or len(shape) != 2:
        return None
    return max(PART // (shape[1] * itemsize), 1)


def _row_axis(name: str) -> int:
    """Axis of the moved tensor that the released rows become."""
    return 1 if name == "linear" else 0


def _divisor(size: int, most: int) -> int:
    """The largest divisor of `size` in most / 2 .. most; `most` where there is none."""
    return next((n for n in range(min(most, size), most // 2, -1) if size % n == 0), min(most, size))


def _spans(shape: Sequence[int], step: int | None) -> list[tuple[int, int] | None]:
    if step is None:
        return [None]
    return [(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def _offset(folder: ReleasedFolder, name: str) -> tuple[str, int]:
    file = folder.owner[name]
    return file, getattr(folder.files[file].entries[name], "start", 0)


def _region(place: Assignment, span: tuple[int, int] | None) -> tuple[int | slice, ...]:
    """The part of the array that these rows of the released tensor become."""
    if span is None:
        return place.index
    rows = slice(*span)
    return (*place.index, slice(None), rows) if _row_axis(place.transform) else (*place.index, rows)


def _forward_job(
    folder: ReleasedFolder,
    store: ArrayFolder,
    place: Assignment,
    span: tuple[int, int] | None,
    dtype: np.dtype | None,
    allow_nan: bool,
) -> Callable[[], None]:
    def job() -> None:
        value = folder.read(place.source, *(span or ()))
        if not allow_nan:
            _refuse_nan(place.source, value)
        value = value.astype(_cast(value.dtype, dtype), copy=False)
        store.write(place.target, _region(place, span), relaid(transform(place.transform).forward(value)))

    return job


def _refuse_nan(name: str, value: np.ndarray) -> None:
    if has_nan(value):
        raise UserError(f"tensor {name!r} holds NaN; its file is broken, or pass --allow_nan to convert it as it is")


def has_nan(value: np.ndarray) -> bool:
    """Whether a NaN is among the values, at the speed of reading them."""
    if value.dtype.name == "bfloat16":
        return bool(value.size) and int((value.view(np.uint16) & 0x7FFF).max()) > 0x7F80
    return np.issubdtype(value.dtype, np.floating) and bool(value.size) and bool(np.isnan(value.min()))


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


# ---- Orbax -> released --------------------------------------------------------------------------------------


def to_released(
    source: Path,
    target: Path,
    *,
    dtype: np.dtype | None = None,
    allow_nan: bool = False,
    shard_bytes: int = SHARD,
    known: tuple[str, Any] | None = None,
    under: str = "",
) -> Summary:
    """Converts a params-only Orbax checkpoint to safetensors in the released names, layouts and files.

    Args:
        source: what `to_orbax` made, or any Orbax checkpoint of parameters with `known`.
        target: folder to make; it must not exist.
        dtype: of floating-point tensors; None keeps each array's.
        allow_nan: convert arrays with NaN in them.
        shard_bytes: most bytes of a file, where the checkpoint does not say how it was split.
        known: component and config of a checkpoint that does not say.
        under: subtree that holds the parameters.

    Raises:
        UserError: as `to_orbax`.
    """
    about = _about(source) if known is None else {}
    kind = choose(COMPONENTS, known[0] if known else about["component"], "component")
    config = known[1] if known else build(kind.config_type, about["config"], f"{source / ABOUT}: config")
    with open_arrays(source, under) as store, new_folder(target) as partial:
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
            raise UserError(f"{source} lacks the arrays of {len(missing)} tensors: {_some(missing)}")
        types = {place.source: _cast(store.dtype(place.target), dtype) for place in places}
        files, index, metadata = _files(about.get("released"), shapes, types, shard_bytes)
        writers = {}
        owner = {name: file for file, names in files.items() for name in names}
        try:
            for file, names in files.items():
                tensors = [(name, types[name], shapes[name]) for name in names]
                writers[file] = SafetensorsWriter(partial / file, tensors, metadata.get(file, {}))
            jobs = (
                _backward_job(store, writers[owner[place.source]], place, span, types[place.source], allow_nan)
                for place in places
                for span in _spans(shapes[place.source], _stored_rows(store, place, shapes[place.source]))
            )
            _run(jobs)
        finally:
            for writer in writers.values():
                writer.close()
        total = sum(prod(shape) * types[name].itemsize for name, shape in shapes.items())
        if index is not None:
            listing = {"metadata": {"total_size": total}, "weight_map": dict(sorted(owner.items()))}
            (partial / index).write_text(json.dumps(listing, indent=2) + "\n")
        _config_files(source, partial, kind, config)
        return Summary(kind.name, len(shapes), total)


def _about(source: Path) -> dict[str, Any]:
    try:
        about = json.loads((source / ABOUT).read_text())
        known = {"component": str(about["component"]), "config": dict(about["config"])}
        return known | {"released": about.get("released")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{source} does not say what it holds ({ABOUT}: {type(error).__name__}); give a folder that "
            "`omnidiff convert --to=orbax` made"
        ) from error


def _stored_rows(store: ArrayFolder, place: Assignment, shape: tuple[int, ...]) -> int | None:
    """Rows of a part, a multiple of the pieces in which the array is stored."""
    rows = _rows(place.transform, shape, store.dtype(place.target).itemsize)
    if rows is None:
        return None
    pieces = store.arrays[place.target].chunk_layout.read_chunk.shape or ()
    piece = pieces[len(place.index) + _row_axis(place.transform)] or 1
    return max(rows // piece, 1) * piece


def _backward_job(
    store: ArrayFolder,
    writer: SafetensorsWriter,
    place: Assignment,
    span: tuple[int, int] | None,
    dtype: np.dtype,
    allow_nan: bool,
) -> Callable[[], None]:
    def job() -> None:
        value = store.read(place.target, _region(place, span))
        if not allow_nan:
            _refuse_nan(place.source, value)
        value = relaid(transform(place.transform).inverse(value.astype(dtype, copy=False)))
        writer.write(place.source, value, (value.nbytes // len(value)) * span[0] if span else 0)

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


def _config_files(source: Path, target: Path, kind: Component, config: Any) -> None:
    if (source / FILES).is_dir():
        for path in sorted((source / FILES).iterdir()):
            shutil.copyfile(path, target / path.name)
    if not any((target / name).exists() for name in ("config.json", "configuration.json", "config.yaml")):
        own = {"component": kind.name, "config": to_dict(config)}
        text = json.dumps(kind.released_json(config) | {"omnidiff": own}, indent=2)
        (target / "config.json").write_text(text + "\n")


# ---- both ---------------------------------------------------------------------------------------------------


def _run(jobs: Iterator[Callable[[], None]]) -> None:
    """Runs the jobs a few at a time; the first that fails ends it all."""
    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(job) for job in jobs]
        wait(futures, return_when=FIRST_EXCEPTION)
        pool.shutdown(wait=True, cancel_futures=True)
    for future in futures:
        if not future.cancelled():
            future.result()


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A place to build `target`, which gets its name at the end; on any failure nothing of it is left.

    Raises:
        UserError: `target` exists already, or the disk cannot be written or is full.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} exists already; name a new folder or remove it")
    target = target.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        home = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:32]}."))
    except OSError as error:
        raise UserError(f"cannot write beside {target}: {error.strerror or error}") from error
    try:
        partial = home / "it"
        yield partial
        if target.exists():
            target.rmdir()
        os.rename(partial, target)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {target}: {reason}; free space or name another folder") from error
    except ValueError as error:
        # tensorstore's way to say that a file could not be written
        if "writing" in str(error) or "No space" in str(error):
            raise UserError(f"cannot write {target}: {str(error).splitlines()[0][:200]}") from error
        raise
    finally:
        shutil.rmtree(home, ignore_errors=True)

