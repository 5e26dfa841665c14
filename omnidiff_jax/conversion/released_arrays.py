"""A released checkpoint: recognised and checked before a tensor is read, and read as if it were converted."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from omnidiff_jax.conversion.arrays import relaid
from omnidiff_jax.conversion.components import KEPT, Component, recognise
from omnidiff_jax.conversion.parts import checked_cast, row_axis, some
from omnidiff_jax.conversion.rules import Assignment, flat_params, plan, torch_shapes, transform
from omnidiff_jax.conversion.sources import ReleasedFolder, open_released
from omnidiff_jax.conversion.told import assumed
from omnidiff_jax.errors import UserError

# Buffers of training that some releases carry and no module reads.
_EXTRA = re.compile(rf"({KEPT}/.*|ema_count|ema_weight)")


@dataclass(frozen=True)
class Planned:
    """What a released checkpoint is and where its tensors go, before one of them is read.

    Attributes:
        kind: its component.
        config: its sizes.
        assumed: fields of `config` that nobody told.
        places: where each tensor goes.
        boxed: the parameters of the model as shapes, with logical axis names.
    """

    kind: Component
    config: Any
    assumed: dict[str, Any]
    places: Sequence[Assignment]
    boxed: Any

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Path -> shape of the model's parameters."""
        return {path: tuple(leaf.shape) for path, leaf in flat_params(self.boxed).items()}


def planned(folder: ReleasedFolder, component: str | None = None) -> Planned:
    """Recognises a checkpoint and checks names, shapes and types of its tensors.

    Args:
        folder: an open one.
        component: a name in `COMPONENTS`; None = told from the tensors' names.

    Raises:
        UserError: a tensor is missing, left over, of another shape or type; the config does not tell what the tensors
            do not, or contradicts itself.
    """
    kind = recognise(folder.owner, component)
    config = kind.config(folder.shapes, folder.config)
    rules = kind.rules(config)
    places = plan(rules, folder.shapes)
    boxed = kind.abstract(config)
    _check_shapes(kind, torch_shapes(rules, boxed), flat_params(boxed), folder.shapes, places)
    _check_types(folder, flat_params(boxed), places)
    return Planned(kind, config, assumed(kind.name, config, folder.config), places, boxed)


class ReleasedArrays:
    """Arrays by "/"-joined path, as `ArrayFolder` gives them; nothing is held between two reads.

    Attributes:
        found: what the checkpoint is.
        shapes: path -> shape.
    """

    def __init__(self, folder: ReleasedFolder, found: Planned):
        self.found, self._folder = found, folder
        self._places: dict[str, dict[tuple[int, ...], Assignment]] = defaultdict(dict)
        for place in found.places:
            self._places[place.target][place.index] = place
        self.shapes = found.shapes

    def read(self, path: str, index: tuple[int | slice, ...] = ()) -> np.ndarray:
        """A part of an array, a tensor of the checkpoint at a time.

        Raises:
            UserError: a tensor holds NaN or infinities, or its file has become shorter.
        """
        places = self._places[path]
        stacked = len(next(iter(places)))
        whole = (*index, *(slice(None),) * (len(self.shapes[path]) - len(index)))
        return self._gather(places, (), whole[:stacked], whole[stacked:])

    def _gather(self, places: Any, layer: tuple[int, ...], layers: Any, within: tuple[int | slice, ...]) -> np.ndarray:
        if not layers:
            return self._tensor(places[layer], within)
        first, *rest = layers
        if isinstance(first, int):
            return self._gather(places, (*layer, first), rest, within)
        depth = 1 + max(place[len(layer)] for place in places)
        return np.stack([self._gather(places, (*layer, n), rest, within) for n in range(*first.indices(depth))])

    def _tensor(self, place: Assignment, within: tuple[int | slice, ...]) -> np.ndarray:
        rows: tuple[int, ...] = ()
        if within and place.transform in ("none", "linear"):  # whose rows stay rows, or become columns
            axis = row_axis(place.transform)
            if isinstance(span := within[axis], slice):
                start, stop, _ = span.indices(self._folder.shapes[place.source][0])
                rows, within = (start, stop), (*within[:axis], slice(None), *within[axis + 1 :])
        value = self._folder.read(place.source, *rows)
        value = checked_cast(place.source, value, value.dtype, allow_nan=False)
        return relaid(transform(place.transform).forward(value)[within])


@contextmanager
def open_as_arrays(path: Path, component: str | None = None) -> Iterator[ReleasedArrays]:
    """Opens a released checkpoint, with every check of a conversion but those of values, which come with the reading.

    Raises:
        UserError: as `to_orbax`.
    """
    with open_released(path) as folder:
        yield ReleasedArrays(folder, planned(folder, component))


def _check_shapes(
    kind: Component, expected: Mapping[str, Any], leaves: Mapping[str, Any], found: Mapping[str, Any], places: Any
) -> None:
    targets = {place.target for place in places}
    if missing := leaves.keys() - targets:
        raise UserError(f"the checkpoint leaves {len(missing)} parameters of {kind.name} unfilled: {some(missing)}")
    if missing := expected.keys() - found.keys():
        raise UserError(f"the config says of {len(missing)} tensors that the checkpoint lacks: {some(missing)}")
    for place in places:
        if place.target not in leaves:
            if not _EXTRA.fullmatch(place.target):
                raise UserError(f"{kind.name} has no place for tensor {place.source!r}")
        elif place.source not in expected:
            raise UserError(
                f"the config has no layer for tensor {place.source!r}; config and weights do not belong together"
            )
        elif tuple(found[place.source]) != tuple(expected[place.source]):
            raise UserError(
                f"tensor {place.source!r} has shape {list(found[place.source])} where the config says "
                f"{list(expected[place.source])}; config and weights do not belong together"
            )


def _check_types(folder: ReleasedFolder, leaves: Mapping[str, Any], places: Sequence[Assignment]) -> None:
    for place in places:
        found = folder.dtype(place.source)
        if place.target in leaves and not jax.numpy.issubdtype(found, np.floating):
            raise UserError(
                f"tensor {place.source!r} holds {found.name}, and the model's weights are floats: a quantized "
                "checkpoint must be given as bfloat16, float16 or float32"
            )
