"""Low precision for a model that answers: matrices as small numbers and a scale for each output (qwix's arrays).

Symmetric, after training, without calibration data. A parameter tree keeps its paths: a matrix of the backbone becomes
a `Quantized`, which says itself how it is multiplied, so that modules, canvases and engines need not be told. Biases,
norms, adapter and speech encoder stay as they are.
"""

import dataclasses
import fnmatch
from typing import Any

import jax
import jax.numpy as jnp
import qwix
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from omnidiff_jax.config import choose
from omnidiff_jax.errors import UserError
from omnidiff_jax.sharding import axes


@dataclasses.dataclass(frozen=True)
class Quantization:
    """How matrices are held and multiplied.

    Attributes:
        weights: dtype of the matrices.
        activations: dtype that what is multiplied by them is rounded to, each row by its own largest value; None = as
            it is.
        homes: parts of the names of the devices that multiply in it; () = all, slowly or not.
    """

    weights: str
    activations: str | None = None
    homes: tuple[str, ...] = ()

    def check(self, device: str) -> None:
        """Raises UserError where devices of this name (`jax.Device.device_kind`) do not multiply in it."""
        if self.homes and not any(home in device for home in self.homes):
            raise UserError(
                f"quantization to {self.weights} is for devices that multiply in it ({', '.join(self.homes)}), and "
                f"this one is {device!r}; use int8 or int8w"
            )


QUANTIZATIONS = {
    "int8w": Quantization("int8"),
    "int8": Quantization("int8", "int8"),
    "fp8": Quantization("float8_e4m3fn", "float8_e4m3fn", ("H100", "H200", "L4", "B200", "B300", "TPU7x")),
}

# Which matrices, and the axes that a scale is shared along: the contracted ones; of the table, a row. First match.
SHARED = {
    "backbone/layers/attention/out/kernel": (1, 2),
    "backbone/layers/*/*/kernel": (1,),
    "backbone/head": (0,),
    "backbone/embedding": (1,),
}


@struct.dataclass
class Quantized:
    """A matrix of small numbers.

    Attributes:
        array: numbers of the matrix's shape, and float32 scales of the same with 1 along the axes that share one.
        activations: as in `Quantization`.
    """

    array: qwix.QArray
    activations: str | None = struct.field(pytree_node=False, default=None)

    def columns(self, start: int, stop: int | None) -> "Quantized":
        """The columns start .. stop - 1 of a matrix."""
        return jax.tree.map(lambda x: x[:, start:stop], self)

    def rows(self, ids: jax.Array) -> jax.Array:
        """float32 rows [..., D] of a table at `ids` [...]."""
        numbers, scales = (jnp.take(x, ids, axis=0) for x in (self.array.qvalue, self.array.scale))
        return numbers.astype(jnp.float32) * scales

    def product(self, x: jax.Array, names: tuple[str | None, ...], contract: int = 1) -> jax.Array:
        """float32 product of the last `contract` axes of `x` with the first ones of the matrix of axes `names`."""
        shared = tuple(None if axis < contract else name for axis, name in enumerate(names))
        array = dataclasses.replace(
            self.array,
            qvalue=axes.gather(self.array.qvalue, *names),
            scale=axes.gather(self.array.scale, *shared),
        )
        leading = x.ndim - contract
        given: Any = x
        if self.activations is not None:
            given = qwix.quantize(x.astype(jnp.float32), self.activations, channelwise_axes=range(leading))
        dimensions = (tuple(range(leading, x.ndim)), tuple(range(contract))), ((), ())
        return qwix.dot_general(given, array, dimensions, preferred_element_type=jnp.float32)


def shared_axes(path: str) -> tuple[int, ...] | None:
    """The axes that a scale of the parameter at this "/"-joined path is shared along; None where it stays a float."""
    return next((axes for pattern, axes in SHARED.items() if fnmatch.fnmatchcase(path, pattern)), None)


def quantize_array(array: jax.Array, shared: tuple[int, ...], quantization: Quantization) -> Quantized:
    """One matrix, by its largest value along the axes `shared`; traceable."""
    own = [axis for axis in range(array.ndim) if axis not in shared]
    found = qwix.quantize(array.astype(jnp.float32), quantization.weights, channelwise_axes=own)
    return Quantized(found, quantization.activations)


def quantize_leaf(path: str, leaf: Any, quantization: Quantization) -> Any:
    """A parameter as it is held: quantised if it is a matrix of the backbone; concrete or abstract, laid out alike.

    Args:
        path: of the parameter, "/"-joined.
        leaf: an array, or a `jax.ShapeDtypeStruct` (then so are the result's).
        quantization: how.
    """
    shared = shared_axes(path)
    if shared is None:
        return leaf

    def make(array: jax.Array) -> Quantized:
        return quantize_array(array, shared, quantization)

    found, sharding = jax.eval_shape(make, leaf), getattr(leaf, "sharding", None)
    placed = None
    if isinstance(sharding, NamedSharding):
        placed = jax.tree.map(lambda part: _laid(sharding, part.shape, leaf.shape), found)
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.jit(make, out_shardings=placed)(leaf)
    if placed is None:
        return found
    return jax.tree.map(lambda part, to: jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=to), found, placed)


def _laid(sharding: NamedSharding, shape: tuple[int, ...], whole: tuple[int, ...]) -> NamedSharding:
    """A matrix's layout for its numbers or scales: an axis that is shared is not split."""
    spec = (*sharding.spec, *[None] * (len(whole) - len(sharding.spec)))
    kept = [name if size == all_of_it else None for name, size, all_of_it in zip(spec, shape, whole, strict=True)]
    return NamedSharding(sharding.mesh, PartitionSpec(*kept))


def quantize_params(params: Any, name: str) -> Any:
    """The parameters with the backbone's matrices quantised.

    Args:
        params: of `OmniModel`, unboxed, LoRA's products added; arrays or `jax.ShapeDtypeStruct`s.
        name: a name in `QUANTIZATIONS`.

    Raises:
        UserError: an unknown name.
    """
    quantization = choose(QUANTIZATIONS, name, "quantization")
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({path: quantize_leaf(path, leaf, quantization) for path, leaf in flat.items()}, sep="/")
