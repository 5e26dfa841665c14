"""The device mesh: axes `data`, `fsdp`, `tensor`, `sequence`, within a slice (ICI) and between slices (DCN)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from omnidiff_jax.config import Count, Range
from omnidiff_jax.errors import UserError
from omnidiff_jax.sharding.rules import BATCH_AXES

AxisSize = Annotated[int, Range(at_least=-1, at_most=2**31 - 1)]


@dataclasses.dataclass(frozen=True)
class DcnConfig:
    """Sizes of the mesh axes between slices (or between hosts of GPUs), over the slow network; product = slices."""

    data: Count = 1
    fsdp: Count = 1
    tensor: Count = 1
    sequence: Count = 1


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes within a slice; one of them may be -1, the rest of the devices.

    Attributes:
        data: batch rows, parameters replicated.
        fsdp: batch rows and parameters.
        tensor: heads, hidden widths, vocabulary.
        sequence: token positions.
        dcn: how often each axis is repeated across slices.
    """

    data: AxisSize = 1
    fsdp: AxisSize = -1
    tensor: AxisSize = 1
    sequence: AxisSize = 1
    dcn: DcnConfig = DcnConfig()


def mesh_shape(config: MeshConfig, devices: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes of the axes within and between slices for a number of devices.

    Raises:
        UserError: sizes that do not multiply to `devices`, or more than one -1.
    """
    inner = [config.data, config.fsdp, config.tensor, config.sequence]
    outer = (config.dcn.data, config.dcn.fsdp, config.dcn.tensor, config.dcn.sequence)
    if min(outer) < 1 or any(size < 1 and size != -1 for size in inner):
        raise UserError(f"mesh sizes must be positive (one may be -1, the rest): {_describe(inner, outer)}")
    if inner.count(-1) > 1:
        raise UserError(f"only one mesh axis may be -1: {_describe(inner, outer)}")
    known = math.prod(size for size in inner if size != -1) * math.prod(outer)
    if -1 in inner:
        inner[inner.index(-1)] = max(devices // known, 1)
    if math.prod(inner) * math.prod(outer) != devices:
        raise UserError(f"a mesh of {_describe(inner, outer)} does not use exactly the {devices} devices there are")
    return tuple(inner), outer


def _describe(inner: Sequence[int], outer: Sequence[int]) -> str:
    names = [f.name for f in dataclasses.fields(DcnConfig)]
    text = " ".join(f"{name}={size}" for name, size in zip(names, inner, strict=True))
    between = " ".join(f"dcn.{name}={size}" for name, size in zip(names, outer, strict=True) if size != 1)
    return f"{text} {between}".strip()


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a config; enter it with `jax.set_mesh` (`with mesh:` drops linen's constraints).

    Args:
        config: sizes.
        devices: all of jax's by default; also devices of a topology that is not there, for ahead-of-time compilation.

    Raises:
        UserError: sizes that do not fit the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    inner, outer = mesh_shape(config, len(devices))
    names = tuple(f.name for f in dataclasses.fields(DcnConfig))
    auto = (AxisType.Auto,) * len(names)  # linen's constraints need it
    return Mesh(arrange(inner, outer, devices), names, axis_types=auto)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of an array whose first axis is rows of a batch; on a mesh without batch axes every device has all rows."""
    return NamedSharding(mesh, PartitionSpec(tuple(axis for axis in BATCH_AXES if axis in mesh.shape) or None))


def batch_parts(mesh: Mesh) -> int:
    """Number of parts that the mesh splits a batch into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES if axis in mesh.shape)


def arrange(inner: tuple[int, ...], outer: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices [data, fsdp, tensor, sequence], neighbours of a torus along one axis, slices outermost within each axis.

    An axis may take part of a side of the torus: data=2 fsdp=32 on 4x4x4.

    Raises:
        UserError: the devices do not form as many slices, or groups of processes, as `outer` asks for.
    """
    if math.prod(outer) == 1:
        return mesh_utils.create_device_mesh(inner, devices, allow_split_physical_axes=True)
    slices = {getattr(device, "slice_index", None) for device in devices}
    if None not in slices and len(slices) == math.prod(outer):
        return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    if len({device.process_index for device in devices}) == math.prod(outer):
        return mesh_utils.create_hybrid_device_mesh(
            inner, outer, devices, process_is_granule=True, allow_split_physical_axes=True
        )
    raise UserError(
        f"mesh.dcn asks for {math.prod(outer)} slices; the devices form {len(slices)} slices in "
        f"{len({device.process_index for device in devices})} processes"
    )
