"""EfficientNet-Lite (arXiv 1905.11946, without squeeze-and-excitation and with ReLU6) in Flax: features and classes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from omnidiff_jax.config import Count
from omnidiff_jax.errors import UserError

_EPSILON = 1e-3


@dataclasses.dataclass(frozen=True)
class Stage:
    """Blocks of one width.

    Attributes:
        blocks: how many; those after the first have stride 1 and add what they were given.
        kernel, stride: of the depthwise convolution of the first.
        expansion: how much wider a block is within.
        width: channels that leave it.
    """

    blocks: Count
    kernel: Count
    stride: Count
    expansion: Count
    width: Count


_LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig:
    """Sizes; the defaults are Lite0's.

    Attributes:
        stem: channels of the first convolution.
        stages: blocks.
        features: channels before the classes.
        classes: how many.
    """

    stem: Count = 32
    stages: tuple[Stage, ...] = _LITE0
    features: Count = 1280
    classes: Count = 1000


LITE0 = EfficientNetConfig()


class EfficientNet(nn.Module):
    """Pictures to features and classes, float32. Norms are folded into the convolutions before them."""

    config: EfficientNetConfig

    @nn.compact
    def __call__(self, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """float32 [B, H, W, 3], as `scaled` gives them -> features [B, F] and logits of the classes [B, C]."""
        config = self.config
        x = nn.relu6(nn.Conv(config.stem, (3, 3), 2, name="stem")(pixels))
        block = 0
        for stage in config.stages:
            for number in range(stage.blocks):
                x = _block(x, stage, number == 0, f"blocks.{block}")
                block += 1
            self.sow("intermediates", "stages", x)
        features = nn.relu6(nn.Conv(config.features, (1, 1), name="head")(x)).mean((1, 2))
        return features, nn.Dense(config.classes, name="classes")(features)


def _block(x: jax.Array, stage: Stage, first: bool, name: str) -> jax.Array:
    """An inverted bottleneck, [B, H, W, C] -> [B, H / stride, W / stride, width]."""
    given, wide = x, x.shape[-1] * stage.expansion
    if stage.expansion > 1:
        x = nn.relu6(nn.Conv(wide, (1, 1), name=f"{name}.expand")(x))
    sides = (stage.kernel, stage.kernel)
    stride = stage.stride if first else 1
    x = nn.relu6(nn.Conv(wide, sides, stride, feature_group_count=wide, name=f"{name}.depthwise")(x))
    x = nn.Conv(stage.width, (1, 1), name=f"{name}.project")(x)
    return x if first else x + given


def scaled(pictures: jax.Array) -> jax.Array:
    """float32 of 0 to 255, as the network takes them."""
    return (pictures - 127.0) / 128.0


def perceptual_distance(config: EfficientNetConfig, params: Any, one: jax.Array, other: jax.Array) -> jax.Array:
    """How unlike pictures look to the network: after every stage the squared distance of features of length 1 at each
    place, in the mean of places, pictures and stages (LPIPS, arXiv 1801.03924, without learned weights).

    Args:
        config: sizes.
        params: of `efficientnet_params`; constants for the gradient.
        one, other: float32 [B, H, W, 3], -1 to 1.

    Returns:
        float32 scalar, 0 for the same pictures, at most 4; its gradient flows into both.
    """
    pixels = scaled(127.5 * jnp.concatenate([one, other]) + 127.5)
    fixed = {"params": jax.lax.stop_gradient(params)}
    _, kept = EfficientNet(config).apply(fixed, pixels, mutable=["intermediates"])
    distances = []
    for maps in kept["intermediates"]["stages"]:
        units = maps * jax.lax.rsqrt(jnp.sum(jnp.square(maps), -1, keepdims=True) + 1e-8)
        ours, theirs = jnp.split(units, 2)
        distances.append(jnp.mean(jnp.sum(jnp.square(ours - theirs), -1)))
    return jnp.mean(jnp.stack(distances))


def efficientnet_params(tensors: Mapping[str, np.ndarray], config: EfficientNetConfig, where: str) -> dict[str, Any]:
    """Our parameters of the tensors of `efficientnet-lite-pytorch`, float32.

    Args:
        tensors: its state dict.
        config: sizes.
        where: they come from, for messages.

    Raises:
        UserError: a tensor is missing, left over, or of another shape than the config says.
    """
    pixels = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    wanted = jax.eval_shape(EfficientNet(config).init, jax.random.key(0), pixels)["params"]
    left = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    params = {}
    for name, leaves in wanted.items():
        parts = _parts(name)
        for part in parts:
            if part not in left:
                raise UserError(f"{where}: tensor {part!r} is missing; copy the weights again")
        made = _made(*(np.asarray(left.pop(part), np.float64) for part in parts), where=f"{where}: {parts[0]}")
        for kind, leaf in leaves.items():
            if made[kind].shape != leaf.shape:
                raise UserError(
                    f"{where}: {parts[0]} must make {kind} {leaf.shape}, it makes {made[kind].shape}; "
                    "the weights are of another model"
                )
        params[name] = made
    if left:
        raise UserError(f"{where}: tensor {min(left)!r} is none of the model's; the weights are of another model")
    return params


def _parts(name: str) -> tuple[str, ...]:
    """Released tensors of one of our layers: kernel, then the norm's scale, shift, mean and variance, or the shift."""
    if name == "classes":
        return "_fc.weight", "_fc.bias"
    block, _, kind = name.rpartition(".")
    conv, norm = {
        "stem": ("_conv_stem", "_bn0"),
        "head": ("_conv_head", "_bn1"),
        "expand": ("_expand_conv", "_bn0"),
        "depthwise": ("_depthwise_conv", "_bn1"),
        "project": ("_project_conv", "_bn2"),
    }[kind]
    place = f"_{block}." if block else ""
    norms = (f"{place}{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))
    return f"{place}{conv}.weight", *norms


def _made(kernel: np.ndarray, *rest: np.ndarray, where: str) -> dict[str, np.ndarray]:
    if len(rest) == 1:
        return {"kernel": kernel.T.astype(np.float32), "bias": rest[0].astype(np.float32)}
    scale, shift, mean, variance = rest
    if kernel.ndim != 4 or any(part.shape != kernel.shape[:1] for part in rest):
        raise UserError(f"{where} and its norm do not fit together; the weights are of another model")
    factor = scale / np.sqrt(variance + _EPSILON)
    # Kernels of torch are [out, in, H, W].
    turned = np.transpose(kernel * factor[:, None, None, None], (2, 3, 1, 0))
    return {"kernel": turned.astype(np.float32), "bias": (shift - mean * factor).astype(np.float32)}
