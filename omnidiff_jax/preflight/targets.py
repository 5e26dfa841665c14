"""What a program can be compiled for: TPU topologies, GPU nodes and CPU devices, and the numbers of their chips."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from omnidiff_jax.config import choose
from omnidiff_jax.errors import UserError
from omnidiff_jax.sharding.mesh import MeshConfig, make_mesh, mesh_shape
from omnidiff_jax.sharding.rules import MESH_AXES

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Datasheet numbers of one device.

    Attributes:
        memory: bytes a program may use.
        flops: dense bfloat16 operations a second.
        bandwidth: bytes a second between memory and cores.
        link: bytes a second out of one device over all its links within a slice or node.
        network: bytes a second out of one device between slices or nodes.
        torus: axes of the network within a slice; a collective over part of the slice uses one of them. 1 = a switch.
        node: devices of one node (GPUs); 0 where a slice is the unit.
    """

    memory: float
    flops: float
    bandwidth: float
    link: float
    network: float
    torus: int = 1
    node: int = 0


# TPU memory is what libtpu leaves to programs; GPU memory is 92 % of the card's, as
# XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 gives. CPU rates are nominal, for shape's sake.
CHIPS: dict[str, Chip] = {
    "v5e": Chip(15.75 * GIB, 197e12, 819e9, 180e9, 3.1e9, torus=2),
    "v5p": Chip(95.74 * GIB, 459e12, 2765e9, 540e9, 6.25e9, torus=3),
    "v6e": Chip(31.25 * GIB, 918e12, 1640e9, 360e9, 12.5e9, torus=2),
    "h100": Chip(0.92 * 79.6 * GIB, 989.5e12, 3350e9, 450e9, 50e9, node=8),
    "h200": Chip(0.92 * 139.8 * GIB, 989.5e12, 4800e9, 450e9, 50e9, node=8),
    "cpu": Chip(0.0, 1e11, 2e10, 1e10, 1e9),
}

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16") + (
    "16x16x16",
)
SLICES: dict[str, tuple[str, ...]] = {"v5e": _FLAT, "v6e": _FLAT, "v5p": _DEEP}


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
        topology: as the user gave it.
        kind: a name in `CHIPS`.
        chip: its numbers.
        devices: how many, in all slices or nodes.
        granules: slices (TPU) or nodes (GPU) they form.
    """

    topology: str
    kind: str
    chip: Chip
    devices: int
    granules: int = 1

    @property
    def stand_in(self) -> bool:
        """Whether virtual CPU devices are compiled for in place of the named ones."""
        return self.kind in ("h100", "h200")

    @property
    def is_tpu(self) -> bool:
        return self.kind in SLICES


def parse_target(topology: str) -> Target:
    """The target of `v5p:4x4x4`, `v5e:16x16*2` (two slices), `h100:8x4` (8 GPUs in each of 4 nodes) or `cpu:8`.

    Raises:
        UserError: unknown kind or topology (the nearest is named), or a count that is none.
    """
    kind, _, shape = topology.partition(":")
    chip = choose(CHIPS, kind, "kind of device in topology")
    shape, _, slices = shape.partition("*")
    if not re.fullmatch(r"\d+(x\d+)*", shape) or (slices and not slices.isdigit()) or slices == "0":
        example = f"{kind}:{SLICES[kind][len(SLICES[kind]) // 2]}" if kind in SLICES else f"{kind}:8"
        raise UserError(f"topology {topology!r} names no devices; write {example}")
    sizes = [int(size) for size in shape.split("x")]
    if kind in SLICES:
        if shape not in SLICES[kind]:
            chips = math.log(max(math.prod(sizes), 1))
            near = min(SLICES[kind], key=lambda s: abs(math.log(math.prod(map(int, s.split("x")))) - chips))
            raise UserError(f"unknown topology {topology!r}; did you mean '{kind}:{near}'?")
        count = int(slices or 1)
        return Target(topology, kind, chip, math.prod(sizes) * count, count)
    if slices or len(sizes) > (2 if chip.node else 1) or min(sizes) < 1:
        raise UserError(f"topology {topology!r} is not a number of devices; write {kind}:8" + "x4" * bool(chip.node))
    if chip.node and sizes[0] > chip.node:
        raise UserError(f"topology {topology!r}: a node has at most {chip.node} GPUs; write {kind}:{chip.node}xNODES")
    if kind == "cpu":
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        chip = dataclasses.replace(chip, memory=pages / sizes[0])
    return Target(topology, kind, chip, math.prod(sizes), sizes[1] if len(sizes) > 1 else 1)


def prepare(target: Target) -> None:
    """Settings that must precede jax's first use of a device; has no effect on devices already in use."""
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    try:
        jax.config.update("jax_platforms", "cpu")  # nothing runs; a TPU runtime without TPUs would wait for them
        if not target.is_tpu:
            jax.config.update("jax_num_cpu_devices", target.devices)
    except RuntimeError:  # devices are in use already; `target_devices` counts them
        pass


def target_devices(target: Target) -> Sequence[jax.Device]:
    """Devices to compile for; those of a topology cannot run anything.

    Raises:
        UserError: libtpu is missing, or there are fewer CPU devices than asked for.
    """
    if target.is_tpu:
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(
                f"topology {target.topology!r} is compiled by libtpu (no TPU needed): pip install 'omnidiff_jax[tpu]'"
            )
        shape = target.topology.partition("*")[0]
        extra: dict[str, Any] = {"num_slices": target.granules} if target.granules > 1 else {}
        if target.devices == target.granules:  # libtpu takes a host for one of four chips unless told
            extra["chips_per_host_bounds"] = (1, 1, 1)
        try:
            return topologies.get_topology_desc(shape, platform="tpu", **extra).devices
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"libtpu does not know topology {target.topology!r}: {reason}") from error
    devices = jax.devices("cpu")
    if len(devices) < target.devices:
        raise UserError(
            f"topology {target.topology!r} needs {target.devices} CPU devices, jax has {len(devices)}; set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={target.devices}"
        )
    return devices[: target.devices]


def target_mesh(config: MeshConfig, target: Target) -> Mesh:
    """The mesh of a config over a target's devices.

    Raises:
        UserError: sizes that do not fit the devices, or slices.
    """
    devices = target_devices(target)
    if not target.stand_in or math.prod(mesh_shape(config, len(devices))[1]) == 1:
        return make_mesh(config, devices)
    inner, outer = mesh_shape(config, len(devices))
    if math.prod(outer) != target.granules:
        raise UserError(f"mesh.dcn asks for {math.prod(outer)} nodes; {target.topology!r} has {target.granules}")
    # As a hybrid mesh of real nodes would lie: nodes outermost within each axis.
    order = np.asarray(devices).reshape(*outer, *inner).transpose(0, 4, 1, 5, 2, 6, 3, 7)
    grid = order.reshape([a * b for a, b in zip(outer, inner, strict=True)])
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def granules_of(mesh: Mesh, target: Target) -> list[int]:
    """The slice or node of each device, in the mesh's order."""
    if target.is_tpu:
        return [getattr(device, "slice_index", 0) or 0 for device in mesh.devices.flat]
    each = max(target.devices // target.granules, 1)
    first = min(device.id for device in mesh.devices.flat)
    return [(device.id - first) // each for device in mesh.devices.flat]
