"""Maps speech-encoder frames to the backbone's width (released `resampler_projector.py`)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from omnidiff_jax.config import Count, NonNegative, Positive
from omnidiff_jax.sharding import axes


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Sizes of the map from heard speech to the backbone's embeddings.

    Attributes:
        inputs: width of the speech encoder's vectors.
        outputs: D of the backbone.
        norm_epsilon: of the LayerNorm.
        init_stddev: of the initial kernels.
        dtype: of the matmuls; parameters and the norm are float32.
    """

    inputs: Count = 512
    outputs: Count = 3584
    norm_epsilon: Positive = 1e-5
    init_stddev: NonNegative = 0.02
    dtype: str = "bfloat16"


class Adapter(nn.Module):
    """LayerNorm, linear, exact GELU, linear; no biases on the linear maps."""

    config: AdapterConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., inputs] -> [..., outputs] in the compute dtype."""
        c = self.config

        def kernel(name: str, rows: int, names: tuple[str, str]) -> jax.Array:
            init = nn.with_logical_partitioning(nn.initializers.normal(c.init_stddev), names)
            return self.param(name, init, (rows, c.outputs)).astype(c.dtype)

        x = nn.LayerNorm(
            epsilon=c.norm_epsilon,
            dtype=jnp.float32,
            scale_init=nn.with_logical_partitioning(nn.initializers.ones, (axes.NORM,)),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros, (axes.NORM,)),
            use_fast_variance=False,
            name="norm",
        )(x)
        x = x.astype(c.dtype) @ kernel("inward", c.inputs, (axes.EMBED, axes.MLP))
        return nn.gelu(x, approximate=False) @ kernel("outward", c.outputs, (axes.MLP, axes.EMBED))
