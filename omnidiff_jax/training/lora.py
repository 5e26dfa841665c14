"""LoRA (arXiv 2106.09685): frozen matrices plus a trained product of two thin ones, W + (alpha / rank) A B.

The thin matrices are a subtree of the parameters, `lora`, named like what they add to; the sum is made before the model
runs, so no module knows of it. Only they have gradients and optimizer moments.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from omnidiff_jax.config import Natural, Positive
from omnidiff_jax.errors import UserError

SUBTREE = "lora"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which matrices get a thin product, and of what size.

    Attributes:
        rank: inner width of the product; 0 = no LoRA.
        alpha: the product is scaled by alpha / rank.
        targets: patterns over "/"-joined parameter paths, of scanned matrices of the backbone.
    """

    rank: Natural = 0
    alpha: Positive = 16.0
    targets: tuple[str, ...] = ("backbone/layers/attention/*/kernel",)


def _sides(path: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(layers, inputs, outputs) of a scanned kernel; the projection out of the heads sums over two axes."""
    inputs = 2 if path.endswith("/out/kernel") else 1
    return shape[0], prod(shape[1 : 1 + inputs]), prod(shape[1 + inputs :])


def targets(params: Any, config: LoraConfig) -> dict[str, Any]:
    """The matrices that get a product: path -> leaf (concrete or abstract).

    Raises:
        UserError: a pattern matches nothing, or something that is no scanned matrix.
    """
    flat = {k: v for k, v in flatten_dict(params, sep="/").items() if not k.startswith(f"{SUBTREE}/")}
    found = {}
    for pattern in config.targets:
        names = [name for name in flat if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            raise UserError(f"config.lora.targets: {pattern!r} matches no parameter, such as {min(flat)!r}")
        for name in names:
            if not name.startswith("backbone/layers/") or not name.endswith("/kernel"):
                raise UserError(f"config.lora.targets: {pattern!r} matches {name!r}, which is no matrix of a layer")
            found[name] = flat[name]
    return found


def init_lora(params: Any, config: LoraConfig, key: jax.Array) -> dict[str, Any]:
    """The thin matrices, A random and B zero, so that training starts from the model as it is.

    Args:
        params: the model's parameters (concrete or abstract).
        config: which of them.
        key: for A.
    """
    flat = {}
    for number, (path, leaf) in enumerate(sorted(targets(params, config).items())):
        layers, inputs, outputs = _sides(path, leaf.shape)
        scale = inputs**-0.5
        flat[f"{path}/a"] = scale * jax.random.normal(jax.random.fold_in(key, number), (layers, inputs, config.rank))
        flat[f"{path}/b"] = jnp.zeros((layers, config.rank, outputs))
    return unflatten_dict(flat, sep="/")


def merged(params: Mapping[str, Any], config: LoraConfig) -> dict[str, Any]:
    """The parameters with every product added and the subtree gone; unchanged without LoRA."""
    if SUBTREE not in params:
        return dict(params)
    flat = flatten_dict({k: v for k, v in params.items() if k != SUBTREE}, sep="/")
    thin = flatten_dict(params[SUBTREE], sep="/")
    for path in targets({k: v for k, v in params.items() if k != SUBTREE}, config):
        product = jnp.einsum("nir,nro->nio", thin[f"{path}/a"], thin[f"{path}/b"]) * (config.alpha / config.rank)
        flat[path] = flat[path] + product.reshape(flat[path].shape).astype(flat[path].dtype)
    return unflatten_dict(flat, sep="/")
