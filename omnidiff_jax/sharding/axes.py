"""Logical axis names. Modules label parameters and activations with these; `rules.py` maps them to mesh axes.

Use the constants, or the strings they hold. A name outside these sets is refused by `constrain` and by
`rules.parameter_shardings`: linen itself would replicate it silently.
"""

import functools
import math

import jax
from flax import linen as nn
from jax.sharding import PartitionSpec

from omnidiff_jax.config import suggest
from omnidiff_jax.errors import UserError

# Parameters.
LAYERS = "layers"  # stacked layers of a scan
VOCAB = "vocab"  # rows of an embedding table, columns of the head
EMBED = "embed"  # width D of the residual stream
HEADS = "heads"
KV_HEADS = "kv_heads"
HEAD_DIM = "head_dim"
MLP = "mlp"  # hidden width F
NORM = "norm"  # scales and biases of norms
KERNEL = "kernel"  # taps of a convolution
CONV_IN = "conv_in"
CONV_OUT = "conv_out"
CODEBOOK = "codebook"  # entries of a quantizer
CODE_DIM = "code_dim"

# Activations.
BATCH = "batch"
LENGTH = "length"  # token positions
KV_LENGTH = "kv_length"  # token positions of keys and values, gathered where queries are split
FRAMES = "frames"  # speech frames or image rows
ACT_EMBED = "act_embed"
ACT_HEADS = "act_heads"
ACT_KV_HEADS = "act_kv_heads"
ACT_MLP = "act_mlp"
ACT_VOCAB = "act_vocab"
TABLE_BATCH = "table_batch"  # of rows just looked up in the embedding table: split as it is, not yet as the batch
TABLE_EMBED = "table_embed"  # width of such rows

PARAMETER_AXES = frozenset(
    {LAYERS, VOCAB, EMBED, HEADS, KV_HEADS, HEAD_DIM, MLP, NORM, KERNEL, CONV_IN, CONV_OUT, CODEBOOK, CODE_DIM}
)
ACTIVATION_AXES = frozenset(
    {BATCH, LENGTH, KV_LENGTH, FRAMES, ACT_EMBED, ACT_HEADS, ACT_KV_HEADS, ACT_MLP, ACT_VOCAB, HEAD_DIM}
    | {TABLE_BATCH, TABLE_EMBED}
)


def check_names(names: tuple[str | None, ...], known: frozenset[str], where: str) -> None:
    """Refuses a logical axis name that no rule table knows.

    Raises:
        UserError: names the axis, its place, and the nearest known name.
    """
    for name in names:
        if name is not None and name not in known:
            raise UserError(f"unknown logical axis {name!r} of {where}; {suggest(name, known)}")


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Shards an activation by the rules in force (`rules.logical_rules`); the identity where there are none.

    Args:
        x: any array with one axis per name.
        names: activation axis names; None leaves an axis unsharded.

    Raises:
        UserError: a name that is not an activation axis.
    """
    check_names(names, ACTIVATION_AXES, f"an activation of shape {x.shape}")
    return nn.with_logical_constraint(x, names)


def split_over(name: str) -> tuple[str, ...]:
    """The mesh axes of more than one device that the rules in force put the logical axis `name` on."""
    check_names((name,), ACTIVATION_AXES | PARAMETER_AXES, "an array")
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    for rule_name, mesh_axes in nn.get_logical_axis_rules():
        if rule_name == name and mesh_axes is not None:
            names = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes
            return tuple(axis for axis in names if sizes.get(axis, 1) > 1)
    return ()


def is_split(name: str) -> bool:
    """Whether the rules in force split the activation axis `name`."""
    return bool(split_over(name))


def gather(x: jax.Array, *names: str | None) -> jax.Array:
    """A parameter of axes `names`, made whole where it is split over the same mesh axes as the batch.

    Said in so many words, and of the parameter as it is computed with: the compiler gathers the few bytes of bfloat16,
    and once. Left alone under tensor parallelism libtpu multiplies piece by piece as the pieces come, and writes the
    result as often. Gradients come back in pieces, as the parameter is held.
    """
    sizes, batch = dict(jax.sharding.get_abstract_mesh().shape), split_over(BATCH)
    held: list[tuple[str, ...]] = []
    for name, extent in zip(names, x.shape, strict=True):
        mesh_axes = tuple(axis for axis in split_over(name) if not any(axis in used for used in held)) if name else ()
        held.append(mesh_axes if extent % math.prod(sizes[axis] for axis in mesh_axes) == 0 else ())
    whole = [tuple(axis for axis in mesh_axes if axis not in batch) for mesh_axes in held]
    if whole == held:
        return x
    pieces, full = (PartitionSpec(*(mesh_axes or None for mesh_axes in spec)) for spec in (held, whole))
    # A gradient made whole first would be added up over all that the batch is split over, between nodes too. Where that
    # is only what the parameter is split over, libtpu makes a reduce-scatter of it, and is kept from working in pieces.
    only = {axis for mesh_axes in held for axis in mesh_axes if axis in batch} == set(batch)
    back = (full, pieces) if only and platform() == "tpu" else (pieces,)
    return _through(x, (pieces, full), back)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _through(x: jax.Array, there: tuple[PartitionSpec, ...], back: tuple[PartitionSpec, ...]) -> jax.Array:
    """`x` laid as each of `there` in turn, and its gradient as each of `back`."""
    for spec in there:
        x = jax.lax.with_sharding_constraint(x, spec)
    return x


def _through_fwd(x: jax.Array, there: tuple[PartitionSpec, ...], back: tuple[PartitionSpec, ...]):
    return _through(x, there, back), None


def _through_bwd(there: tuple[PartitionSpec, ...], back: tuple[PartitionSpec, ...], _: None, gradient: jax.Array):
    return (_through(gradient, back, there),)


_through.defvjp(_through_fwd, _through_bwd)


def sum_batch(x: jax.Array, *names: str) -> jax.Array:
    """The sum over the first axis, which is split as `BATCH`, laid like a parameter of axes `names`.

    Written out as a reduce-scatter: the compiler would leave the whole sum on every device and cut it afterwards,
    twice the bytes sent and all of the memory. Where sizes do not divide, it is left to the compiler.

    Args:
        x: [G, ...], one axis for each of `names` after the first.
    """
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    batch, wanted = split_over(BATCH), [split_over(name) for name in names]
    ways = [math.prod(sizes[axis] for axis in mesh_axes) for mesh_axes in (batch, *wanted)]
    if not batch or any(extent % n for extent, n in zip(x.shape, ways, strict=True)):
        return x.sum(0)
    # What is split like the batch is scattered; the rest (the vocabulary over `tensor`) is split already.
    scattered = [tuple(axis for axis in mesh_axes if axis in batch) for mesh_axes in wanted]
    before = [tuple(axis for axis in mesh_axes if axis not in batch) or None for mesh_axes in wanted]
    summed = tuple(axis for axis in batch if not any(axis in mesh_axes for mesh_axes in scattered))

    def add(part: jax.Array) -> jax.Array:
        part = part.sum(0)
        for dimension, mesh_axes in enumerate(scattered):
            if mesh_axes:
                part = jax.lax.psum_scatter(part, mesh_axes, scatter_dimension=dimension, tiled=True)
        return jax.lax.psum(part, summed) if summed else part

    after = PartitionSpec(*(mesh_axes or None for mesh_axes in wanted))
    return jax.shard_map(add, in_specs=PartitionSpec(batch, *before), out_specs=after, check_vma=False)(x)


def platform() -> str:
    """Of the devices that what is being traced is for: those of the mesh in force (there or not), else jax's own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()
