"""Weights in eight bits, by qwix: the large matrices of the backbone with a scale for each output channel.

A quantized parameter (`Weights`) stands in the parameter tree where the float one stood, so that modules, scans and
samplers are the same; `contract`, `columns` and `look_up` are what the backbone does with either.
"""

import dataclasses
import importlib
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from omnidiff_jax.config import choose
from omnidiff_jax.errors import UserError
from omnidiff_jax.sharding import axes


@dataclasses.dataclass(frozen=True)
class Quantization:
    """How weights, and what is multiplied with them, are held.

    Attributes:
        summary: one line.
        weights: dtype of the weights.
        activations: whether activations are brought to the same dtype before a product (a scale for each token, by its
            largest value); else weights are brought back to the activations' dtype within it.
    """

    summary: str
    weights: Any
    activations: bool


QUANTIZATIONS = {
    "int8_weights": Quantization("int8 weights; products in the model's own dtype", jnp.int8, False),
    "int8": Quantization("int8 weights and activations", jnp.int8, True),
    "fp8": Quantization("float8 (e4m3) weights and activations", jnp.float8_e4m3fn, True),
}
# Kernels of the layers: path, and how many of the last axes are outputs; the first axis is that of the layers.
_KERNELS = (
    (re.compile(r"backbone/layers/attention/(query|key|value)/kernel"), 2),
    (re.compile(r"backbone/layers/attention/out/kernel"), 1),
    (re.compile(r"backbone/layers/mlp/(gate|up|down)/kernel"), 1),
)
# The two tables have a scale for each id.
_TABLES = {"backbone/embedding": (0,), "backbone/head": (1,)}


@struct.dataclass
class Weights:
    """A quantized parameter: values * scales.

    Attributes:
        values: of the parameter's shape (its first leaf, so that linen takes it for the parameter).
        scales: of the same number of axes, 1 along those that share a scale.
        activations: whether what is multiplied with it is quantized too.
    """

    values: jax.Array
    scales: jax.Array
    activations: bool = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values."""
        return self.values.shape


def quantize_params(params: Any, word: str) -> Any:
    """A model's parameters with the large matrices of its backbone quantized, one by one; all else as it is.

    Args:
        params: of `OmniModel`, unboxed, on devices, or abstract ones (`jax.ShapeDtypeStruct`).
        word: one of `QUANTIZATIONS`.

    Raises:
        UserError: an unknown word, or a dtype that these devices have no products of.
    """
    check_devices(word, params)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: quantize_array("/".join(str(key.key) for key in path), leaf, word), params
    )


def quantize_array(path: str, leaf: Any, word: str) -> Any:
    """One parameter of `quantize_params`, by its "/"-joined path; it waits until the floats are no longer needed.

    Raises:
        UserError: an unknown word.
    """
    chosen, channels = choose(QUANTIZATIONS, word, "quantization"), _channels(path, leaf.ndim)
    if channels is None:
        return leaf
    found = _quantized(leaf, channels, chosen)
    return found if isinstance(leaf, jax.ShapeDtypeStruct) else jax.block_until_ready(found)


def check_devices(word: str, params: Any = None) -> None:
    """Refuses a quantization whose products the devices do not have.

    Args:
        params: on those devices; None and abstract ones on devices that are not there pass for the default ones.

    Raises:
        UserError: it names the devices.
    """
    if choose(QUANTIZATIONS, word, "quantization").weights != jnp.float8_e4m3fn:
        return
    first = next(iter(jax.tree.leaves(params)), None)
    sharding = getattr(first, "sharding", None)
    devices = sharding.device_set if sharding is not None else jax.devices()
    for device in devices:
        if not _has_fp8(device):
            raise UserError(
                f"quantization {word!r}: {device.device_kind} has no products of float8 (NVIDIA from compute "
                "capability 8.9 and TPU from v7 have); use int8"
            )


def _has_fp8(device: Any) -> bool:
    if device.platform == "gpu":
        return float(getattr(device, "compute_capability", 0)) >= 8.9
    generation = re.search(r"TPU ?v?(\d+)", device.device_kind)
    return device.platform == "tpu" and generation is not None and int(generation[1]) >= 7


def _channels(path: str, ndim: int) -> tuple[int, ...] | None:
    """The axes along which a parameter has scales of their own; None where it stays as it is."""
    if path in _TABLES:
        return _TABLES[path]
    for pattern, outputs in _KERNELS:
        if pattern.fullmatch(path):
            return (0, *range(ndim - outputs, ndim))
    return None


def _quantized(leaf: Any, channels: tuple[int, ...], chosen: Quantization) -> Weights:
    qwix = _qwix()

    def work(x: jax.Array) -> Weights:
        array = qwix.quantize(x, chosen.weights, channelwise_axes=channels)
        return Weights(array.qvalue, array.scale, chosen.activations)

    sharding = getattr(leaf, "sharding", None)
    laid: Any = None
    if isinstance(sharding, NamedSharding):
        spec = tuple(sharding.spec) + (None,) * (leaf.ndim - len(sharding.spec))
        scales = PartitionSpec(*(part if axis in channels else None for axis, part in enumerate(spec)))
        laid = Weights(sharding, NamedSharding(sharding.mesh, scales), chosen.activations)  # type: ignore[arg-type]
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.jit(work, out_shardings=laid)(leaf)
    shapes = jax.eval_shape(work, leaf)
    if laid is not None:
        shapes = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, laid)
    return shapes


def contract(x: jax.Array, kernel: jax.Array | Weights, count: int, names: tuple[str | None, ...]) -> jax.Array:
    """Contracts the last `count` axes of `x` with the first of `kernel`, in the dtype of `x`.

    Args:
        x: [..., *inputs].
        kernel: [*inputs, *outputs].
        names: logical names of the kernel's axes.
    """
    if not isinstance(kernel, Weights):
        return jnp.tensordot(x, axes.gather(kernel.astype(x.dtype), *names), axes=count)
    return _product(x, dataclasses.replace(kernel, values=axes.gather(kernel.values, *names)), count)


def columns(head: jax.Array | Weights, hidden: jax.Array, start: int, stop: int | None) -> jax.Array:
    """float32 [..., stop - start]: `hidden` [..., D] with the columns start .. stop - 1 of `head` [D, V]."""
    if not isinstance(head, Weights):
        return jnp.matmul(hidden, head[:, start:stop].astype(hidden.dtype), preferred_element_type=jnp.float32)
    part = jax.tree.map(lambda x: x[:, start:stop], head)
    return _product(hidden, part, 1, jnp.float32)


def look_up(table: jax.Array | Weights, ids: jax.Array, dtype: str) -> jax.Array:
    """[..., D]: rows of `table` [V, D] in `dtype`."""
    if not isinstance(table, Weights):
        return jnp.take(table, ids, axis=0)
    values, scales = (jnp.take(x, ids, axis=0).astype(dtype) for x in (table.values, table.scales))
    return values * scales


def _product(x: jax.Array, kernel: Weights, count: int, dtype: Any = None) -> jax.Array:
    qwix, leading = _qwix(), x.ndim - count
    dtype = dtype or x.dtype
    contracted = tuple(range(leading, x.ndim)), tuple(range(count))
    right = qwix.QArray(kernel.values, kernel.scales.astype(dtype))
    left = x.astype(dtype)
    if kernel.activations:
        left = qwix.quantize(left, kernel.values.dtype, channelwise_axes=range(leading))
    return qwix.dot_general(left, right, (contracted, ((), ())))


def _qwix() -> Any:
    """The library, which takes half a second to import; models in floats do without it.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("qwix")
    except ImportError as error:
        raise UserError("quantization needs the extra quantize: pip install 'omnidiff_jax[quantize]'") from error
