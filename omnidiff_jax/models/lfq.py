"""Look-up-free quantizer of MAGVIT-v2 (arXiv 2310.05737 §3.1): a code is the sign pattern of its features."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from omnidiff_jax.config import NonNegative, Positive, Range


def quantize(z: jax.Array) -> jax.Array:
    """Signs of `z` as ±1.0 (0 counts as negative), in `z`'s dtype; gradients pass straight through."""
    signs = jnp.where(z > 0, 1.0, -1.0).astype(z.dtype)
    return z + jax.lax.stop_gradient(signs - z)


def bits_to_codes(z: jax.Array) -> jax.Array:
    """Features [..., K] -> codes int32 [...]; feature 0 is the most significant bit."""
    return jnp.left_shift((z > 0).astype(jnp.int32), _shifts(z.shape[-1], z.ndim)).sum(axis=-1)


def codes_to_bits(codes: jax.Array, bits: int) -> jax.Array:
    """Codes int [...] in 0 .. 2**bits - 1 -> codebook entries ±1.0, float32 [..., bits]."""
    digits = jnp.right_shift(codes[..., None], _shifts(bits, codes.ndim + 1)) & 1
    return 2.0 * digits.astype(jnp.float32) - 1.0


def _shifts(bits: int, ndim: int) -> jax.Array:
    return jnp.arange(bits - 1, -1, -1, dtype=jnp.int32).reshape((1,) * (ndim - 1) + (bits,))


@dataclasses.dataclass(frozen=True)
class LfqLossConfig:
    """Weights of the quantizer's losses.

    Attributes:
        commitment: pulls features to their signs.
        sample_entropy: makes each position sure of its code.
        batch_entropy: spreads the batch over the codebook.
        temperature: softmax temperature over the codebook in both entropies.
        group_bits: the batch entropy counts codes over groups of this many bits (2**group_bits entries each);
            a group as wide as the code is exact, narrower ones are an upper bound that costs less.
    """

    commitment: NonNegative = 0.25
    sample_entropy: NonNegative = 0.1
    batch_entropy: NonNegative = 0.1
    temperature: Positive = 1.0
    group_bits: Annotated[int, Range(1, 24)] = 7


def lfq_losses(
    z: jax.Array, config: LfqLossConfig, spread: jax.Array | float = 1.0
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted sum of the quantizer's losses.

    With distances to ±1 corners, the softmax over all 2**K codes is a product of independent bits,
    p(bit = 1) = sigmoid(4 z / temperature), so a position's entropy is exactly the sum of its bits' entropies. The
    entropy of the batch mean does not factor; it is counted per group of bits.

    Args:
        z: features before quantization, [..., K].
        config: weights.
        spread: factor of the batch entropy's weight, for schedules.

    Returns:
        The loss (float32 scalar) and its unweighted parts: `commitment`, `sample_entropy` and `batch_entropy` (nats
        per code).
    """
    z = z.astype(jnp.float32).reshape(-1, z.shape[-1])
    logits = 4.0 * z / config.temperature
    signs = jnp.where(z > 0, 1.0, -1.0)
    parts = {
        "commitment": jnp.mean(jnp.square(z - signs)),
        "sample_entropy": jnp.mean(jnp.sum(_bit_entropy(logits), axis=-1)),
        "batch_entropy": jnp.stack(
            [
                _group_entropy(logits[:, start : start + config.group_bits])
                for start in range(0, z.shape[-1], config.group_bits)
            ]
        ).sum(),
    }
    loss = (
        config.commitment * parts["commitment"]
        + config.sample_entropy * parts["sample_entropy"]
        - spread * config.batch_entropy * parts["batch_entropy"]
    )
    return loss, parts


def _bit_entropy(logits: jax.Array) -> jax.Array:
    p = jax.nn.sigmoid(logits)
    return -p * jax.nn.log_sigmoid(logits) - (1.0 - p) * jax.nn.log_sigmoid(-logits)


def _group_entropy(logits: jax.Array) -> jax.Array:
    """Entropy of the mean code distribution of independent bits, logits [N, G] -> nats."""
    probabilities = jnp.ones((logits.shape[0], 1), jnp.float32)
    for bit in range(logits.shape[1]):
        p = jax.nn.sigmoid(logits[:, bit])
        pair = jnp.stack([1.0 - p, p], axis=-1)
        probabilities = (probabilities[:, :, None] * pair[:, None, :]).reshape(logits.shape[0], -1)
    mean = jnp.mean(probabilities, axis=0)
    return -jnp.sum(mean * jnp.log(mean + 1e-10))
