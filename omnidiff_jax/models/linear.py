"""Linear maps over several axes whose kernels keep their logical axis names.

`nn.DenseGeneral` initialises a flat kernel and reshapes it inside its box, which sharding rules in force refuse.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from omnidiff_jax.models.quantized import contract
from omnidiff_jax.sharding import axes


class Linear(nn.Module):
    """Contracts the last `contract` axes of the input with a kernel of shape inputs + outputs.

    Attributes:
        outputs: sizes of the new axes.
        names: logical names of the kernel's axes; the bias has those of the outputs.
        contract: number of contracted axes.
        use_bias: add a bias of shape `outputs`.
        dtype: of the computation; parameters are float32.
        kernel_init: called with the kernel's shape as a matrix.
    """

    outputs: tuple[int, ...]
    names: tuple[str | None, ...]
    contract: int = 1
    use_bias: bool = True
    dtype: str = "float32"
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[-self.contract :]
        flat = (math.prod(inputs), math.prod(self.outputs))

        def init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return self.kernel_init(key, flat, jnp.float32).reshape(shape)

        kernel = self.param("kernel", nn.with_logical_partitioning(init, self.names), (*inputs, *self.outputs))
        leading = x.shape[: x.ndim - self.contract]
        if not axes.is_split(axes.LENGTH):
            # As matrices: the kernel's gradient then needs no transposed copy of x (a third of a SwiGLU's time on
            # a CPU). Merging batch with a split length would gather it.
            x = x.reshape(-1, *inputs)
        y = contract(x.astype(self.dtype), kernel, self.contract, self.names)
        y = y.reshape(*leading, *self.outputs)
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.names[self.contract :])
            bias = self.param("bias", zeros, self.outputs).astype(self.dtype)
            y += jnp.expand_dims(bias, tuple(range(y.ndim - bias.ndim)))
        return y
