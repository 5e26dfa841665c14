"""Which mesh axes each logical axis is split over: one table per strategy, and what follows for parameters.

- `fsdp`: parameters over `fsdp`, batch over `data` and `fsdp`.
- `fsdp_tensor`: and heads, hidden widths and vocabulary over `tensor` (Megatron-style).
- `fsdp_sequence`: and token positions of queries over `sequence` (keys and values are gathered).
- `fsdp_tensor_sequence`: all of it.
- `replicated`: batch over `data` and `fsdp`; every device holds all parameters.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec

from omnidiff_jax.config import choose
from omnidiff_jax.errors import UserError
from omnidiff_jax.sharding import axes

MESH_AXES = ("data", "fsdp", "tensor", "sequence")
# Those that the rows of a batch are split over.
BATCH_AXES = ("data", "fsdp")

# An axis that its mesh axis does not divide stays whole; in a parameter of this many values that is refused.
LARGE = 1 << 24

Table = Mapping[str, tuple[str, ...]]

_UNSPLIT: Table = dict.fromkeys(sorted(axes.PARAMETER_AXES | axes.ACTIVATION_AXES), ())
_BATCH: Table = {axes.BATCH: BATCH_AXES, axes.TABLE_BATCH: BATCH_AXES}
_FSDP: Table = {
    axes.TABLE_BATCH: ("data",),
    axes.TABLE_EMBED: ("fsdp",),
    axes.EMBED: ("fsdp",),
    axes.CONV_OUT: ("fsdp",),
    axes.CODEBOOK: ("fsdp",),
}
_TENSOR: Table = {
    axes.VOCAB: ("tensor",),
    axes.HEADS: ("tensor",),
    axes.KV_HEADS: ("tensor",),
    axes.MLP: ("tensor",),
    axes.CONV_IN: ("tensor",),
    axes.ACT_HEADS: ("tensor",),
    axes.ACT_KV_HEADS: ("tensor",),
    axes.ACT_MLP: ("tensor",),
    axes.ACT_VOCAB: ("tensor",),
}
_SEQUENCE: Table = {axes.LENGTH: ("sequence",), axes.FRAMES: ("sequence",)}

STRATEGIES: dict[str, Table] = {
    "replicated": {**_UNSPLIT, **_BATCH},
    "fsdp": {**_UNSPLIT, **_BATCH, **_FSDP},
    "fsdp_tensor": {**_UNSPLIT, **_BATCH, **_FSDP, **_TENSOR},
    "fsdp_sequence": {**_UNSPLIT, **_BATCH, **_FSDP, **_SEQUENCE},
    "fsdp_tensor_sequence": {**_UNSPLIT, **_BATCH, **_FSDP, **_TENSOR, **_SEQUENCE},
}


def rule_table(strategy: str) -> Table:
    """The table named `strategy`: logical axis -> mesh axes, every known axis present.

    Raises:
        UserError: unknown strategy.
    """
    return choose(STRATEGIES, strategy, "sharding strategy")


@contextmanager
def logical_rules(strategy: str) -> Iterator[None]:
    """Within it, `axes.constrain` shards activations by the table; enter it where the model is traced."""
    with nn.logical_axis_rules([(name, mesh_axes or None) for name, mesh_axes in rule_table(strategy).items()]):
        yield


def param_specs(boxed: Any, strategy: str, mesh: Mesh) -> Any:
    """How each parameter lies on the mesh.

    Args:
        boxed: (abstract) parameters with their logical axis names, from `init` or its `jax.eval_shape`.
        strategy: a name in `STRATEGIES`.
        mesh: sizes of the mesh axes; one that it lacks has size 1.

    Returns:
        Tree of `PartitionSpec` like the unboxed parameters.

    Raises:
        UserError: unknown strategy; a logical name no table knows; a large parameter that a mesh axis does not divide.
    """
    table = rule_table(strategy)

    def spec(path: Any, leaf: Any) -> PartitionSpec:
        where = "/".join(str(getattr(key, "key", key)) for key in path)
        if not isinstance(leaf, nn.meta.AxisMetadata):
            return PartitionSpec()
        return _spec(where, leaf.names, leaf.unbox().shape, table, mesh)

    return jax.tree_util.tree_map_with_path(spec, boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))


def _spec(where: str, names: tuple[str | None, ...], shape: tuple[int, ...], table: Table, mesh: Mesh) -> PartitionSpec:
    axes.check_names(names, axes.PARAMETER_AXES, f"parameter {where}")
    parts: list[tuple[str, ...] | None] = []
    used: set[str] = set()
    size = 1
    for extent in shape:
        size *= extent
    for name, extent in zip(names, shape, strict=True):
        wanted = tuple(a for a in table.get(name or "", ()) if mesh.shape.get(a, 1) > 1 and a not in used)
        ways = 1
        for axis in wanted:
            ways *= mesh.shape[axis]
        if extent < ways:  # a depthwise kernel, key heads fewer than devices
            wanted = ()
        elif extent % ways:
            if size >= LARGE:
                raise UserError(
                    f"parameter {where}: its axis {name!r} of {extent} does not divide over mesh axis "
                    f"{'x'.join(wanted)} of {ways}; choose a mesh size that divides it"
                )
            wanted = ()
        used.update(wanted)
        parts.append(wanted or None)
    return PartitionSpec(*parts)
