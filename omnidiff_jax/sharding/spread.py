"""Rows of a batch on one mesh of several processes: all have all of them, compute a part, and get the whole."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from omnidiff_jax.sharding.mesh import batch_parts, batch_sharding
from omnidiff_jax.sharding.rules import logical_rules


@dataclasses.dataclass(frozen=True)
class Spread:
    """Where rows lie.

    Every process calls alike, with equal values: a program over the mesh is one program.

    Attributes:
        mesh: of all processes.
        strategy: of `sharding.rules`, that the parameters lie by.
    """

    mesh: Mesh
    strategy: str

    def even(self, rows: int) -> int:
        """`rows` or the next number that every device has an equal part of."""
        parts = batch_parts(self.mesh)
        return -(-rows // parts) * parts

    def laid(self, tree: Any) -> Any:
        """Host arrays [R, ...] with an equal part of their rows on every device; R is `even`. Scalars as they are."""
        by_row = batch_sharding(self.mesh)

        def place(leaf: Any) -> Any:
            whole = np.asarray(leaf)
            if not whole.ndim or whole.shape[0] % batch_parts(self.mesh):
                return leaf
            return jax.make_array_from_callback(whole.shape, by_row, lambda index: whole[index])

        return jax.tree.map(place, tree)

    def gathered(self, tree: Any) -> Any:
        """The whole of every array, on the host of every process."""
        if jax.process_count() == 1:
            return jax.device_get(tree)
        return multihost_utils.process_allgather(tree, tiled=True)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Within it activations lie by the strategy's rules, as in training."""
        with jax.set_mesh(self.mesh), logical_rules(self.strategy):
            yield


def spread_over(mesh: Mesh, strategy: str) -> Spread | None:
    """What lays rows over a mesh; None where all of its devices are this process's, which jax needs no help with."""
    several = len({device.process_index for device in mesh.devices.flat}) > 1
    return Spread(mesh, strategy) if several else None
