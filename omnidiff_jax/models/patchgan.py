"""PatchGAN discriminator (arXiv 1611.07004 §3.2.2) with hinge losses: real or decoded, judged per patch."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from omnidiff_jax.config import Count


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of the patch discriminator.

    Attributes:
        channels: width of the first layer; doubled by each further one up to eightfold.
        layers: stride-2 convolutions; the judged patch grows with them (70 pixels for 3).
        norm_groups: channel groups of the normalisation.
    """

    channels: Count = 64
    layers: Count = 3
    norm_groups: Count = 8

    def __post_init__(self) -> None:
        if self.layers > 1 and 2 * self.channels % self.norm_groups:  # the first layer has no normalisation
            raise ValueError(f"norm_groups {self.norm_groups} does not divide the width {2 * self.channels}")


class Discriminator(nn.Module):
    """Images [B, H, W, 3] in [-1, 1] -> logits float32 [B, h, w], positive for real."""

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        cfg = self.config
        x = nn.leaky_relu(nn.Conv(cfg.channels, (4, 4), 2, name="conv_0")(images), 0.2)
        for layer in range(1, cfg.layers):
            width = cfg.channels * min(2**layer, 8)
            x = nn.Conv(width, (4, 4), 2, use_bias=False, name=f"conv_{layer}")(x)
            x = nn.GroupNorm(cfg.norm_groups, use_fast_variance=False, name=f"norm_{layer}")(x)
            x = nn.leaky_relu(x, 0.2)
        return nn.Conv(1, (4, 4), name="conv_out")(x)[..., 0].astype(jnp.float32)


def discriminator_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Hinge loss of logits on real and on decoded images (arXiv 1705.02894)."""
    return 0.5 * (jnp.mean(nn.relu(1.0 - real)) + jnp.mean(nn.relu(1.0 + fake)))


def generator_loss(fake: jax.Array) -> jax.Array:
    """What the decoder minimises: the negated mean logit of its images."""
    return -jnp.mean(fake)
