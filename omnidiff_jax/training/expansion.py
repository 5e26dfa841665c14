"""More layers than a checkpoint has: block expansion (LLaMA Pro, arXiv 2401.02415).

A new layer is a copy of the one before it, but for its output projections, which are zero: the deeper model is the same
function as the checkpoint's, and learns from there.
"""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np

LAYERS = "backbone/layers/"
# What a layer adds to the stream comes out of these two.
OUTPUTS = (LAYERS + "attention/out/kernel", LAYERS + "mlp/down/kernel")


class Arrays(Protocol):
    """Parameters by "/"-joined path, wherever they are kept."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read(self, path: str, index: tuple[int | slice, ...] = ()) -> np.ndarray: ...


def origins(there: int, layers: int) -> list[tuple[int, bool]]:
    """Where each of `layers` layers comes from: its number among those `there`, and whether it is a copy.

    Copies are spread evenly: of 4 layers, 6 are 0, 1, copy of 1, 2, 3, copy of 3.
    """
    more, made = layers - there, []
    for layer in range(there):
        copies = (layer + 1) * more // there - layer * more // there
        made += [(layer, False)] + [(layer, True)] * copies
    return made


@dataclasses.dataclass(frozen=True)
class Expanded:
    """The arrays of a checkpoint as those of a deeper model.

    Attributes:
        arrays: the checkpoint's.
        layers: of the model, at least as many as the checkpoint has.
    """

    arrays: Arrays
    layers: int

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {
            path: (self.layers, *shape[1:]) if path.startswith(LAYERS) else shape
            for path, shape in self.arrays.shapes.items()
        }

    def read(self, path: str, index: tuple[int | slice, ...] = ()) -> np.ndarray:
        """A part of an array, layer by layer, as only whole layers of the checkpoint are known to lie together."""
        if not path.startswith(LAYERS):
            return self.arrays.read(path, index)
        first, *rest = index or (slice(None),)
        places = origins(self.arrays.shapes[path][0], self.layers)
        asked = places[first] if isinstance(first, slice) else [places[first]]
        read = [self.arrays.read(path, (slice(origin, origin + 1), *rest)) for origin, _ in asked]
        parts = [
            np.zeros_like(part) if copied and path in OUTPUTS else part
            for part, (_, copied) in zip(read, asked, strict=True)
        ]
        whole = np.concatenate(parts)
        return whole if isinstance(first, slice) else whole[0]
