"""Vector quantizer: nearest codebook row, gradients straight through, and losses that keep every row in use."""

import dataclasses

import jax
import jax.numpy as jnp

from omnidiff_jax.config import NonNegative


def nearest_codes(x: jax.Array, codebook: jax.Array) -> jax.Array:
    """Index of the nearest row by squared distance, the lowest on ties: [..., D], [K, D] -> int32 [...]."""
    x, codebook = x.astype(jnp.float32), codebook.astype(jnp.float32)
    products = jnp.einsum("...d,kd->...k", x, codebook, precision=jax.lax.Precision.HIGHEST)
    lengths = jnp.sum(jnp.square(codebook), axis=-1).reshape((1,) * (x.ndim - 1) + (-1,))
    distances = lengths + jnp.sum(jnp.square(x), axis=-1, keepdims=True) - 2.0 * products
    return jnp.argmin(distances, axis=-1).astype(jnp.int32)


def quantize(x: jax.Array, codebook: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Replaces vectors by their codebook rows.

    Args:
        x: [..., D].
        codebook: [K, D].

    Returns:
        The rows [..., D], exactly, through which the gradient passes to `x` as if they were `x` (arXiv 1711.00937
        §3.2; the codebook gets none), and their indices int32 [...].
    """
    codes = nearest_codes(x, codebook)
    rows = jax.lax.stop_gradient(jnp.take(codebook, codes, axis=0)).astype(x.dtype)
    return rows + (x - jax.lax.stop_gradient(x)), codes


def k_means(x: jax.Array, rows: jax.Array, rounds: int = 10) -> jax.Array:
    """Rows moved to the means of the vectors that are nearest to them (Lloyd's algorithm).

    Args:
        x: vectors [N, D].
        rows: where they begin [K, D]; a row that is nearest to nothing stays where it is.
        rounds: how often all move.

    Returns:
        float32 [K, D].
    """
    x = x.astype(jnp.float32)

    def moved(_: int, rows: jax.Array) -> jax.Array:
        codes = nearest_codes(x, rows)
        sums = jnp.zeros_like(rows).at[codes].add(x)
        count = jnp.zeros((len(rows), 1), jnp.float32).at[codes].add(1.0)
        return jnp.where(count > 0, sums / jnp.maximum(count, 1.0), rows)

    return jax.lax.fori_loop(0, rounds, moved, rows.astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class VqLossConfig:
    """Weights of the quantizer's losses.

    Attributes:
        codebook: pulls rows to the vectors that chose them.
        commitment: pulls vectors to their rows.
        restart: pulls rows that nobody in the batch chose to badly quantized vectors.
    """

    codebook: NonNegative = 1.0
    commitment: NonNegative = 0.25
    restart: NonNegative = 1.0


def vq_losses(
    x: jax.Array, codes: jax.Array, valid: jax.Array, codebook: jax.Array, config: VqLossConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted sum of the quantizer's losses, all of them mean squared differences.

    Dead rows are revived without any state beside the codebook: each row that the batch left unused is pulled to the
    nearest of the vectors whose quantization error is above the mean. (The nearest, because a row keeps its goal
    that way; a random one of them would leave it in the middle between two.)

    Args:
        x: vectors before quantization [..., D].
        codes: their indices [...].
        valid: bool [...], False for padding.
        codebook: [K, D].
        config: weights.

    Returns:
        Scalar loss, and metrics `codebook`, `commitment`, `restart`, `used` (share of rows chosen in this batch) and
        `perplexity` (effective number of rows).
    """
    x, codebook = x.astype(jnp.float32).reshape(-1, x.shape[-1]), codebook.astype(jnp.float32)
    codes, weight = codes.reshape(-1), valid.reshape(-1).astype(jnp.float32)
    count = jnp.maximum(weight.sum(), 1.0)
    rows = jnp.take(codebook, codes, axis=0)

    def mean_squared(difference: jax.Array) -> jax.Array:
        return jnp.sum(jnp.mean(jnp.square(difference), axis=-1) * weight) / count

    to_rows = mean_squared(jax.lax.stop_gradient(x) - rows)
    to_codes = mean_squared(x - jax.lax.stop_gradient(rows))
    used = jnp.zeros(len(codebook)).at[codes].add(weight)
    unused = (used == 0).astype(jnp.float32)
    pulled = jnp.mean(jnp.square(_revival_goals(x, rows, weight, codebook) - codebook), axis=-1)
    restart = jnp.sum(pulled * unused) / jnp.maximum(unused.sum(), 1.0)
    share = used / count
    entropy = -jnp.sum(share * jnp.log(jnp.maximum(share, 1e-10)))
    metrics = {
        "codebook": to_rows,
        "commitment": to_codes,
        "restart": restart,
        "used": jnp.mean((used > 0).astype(jnp.float32)),
        "perplexity": jnp.exp(entropy),
    }
    return config.codebook * to_rows + config.commitment * to_codes + config.restart * restart, metrics


def _revival_goals(x: jax.Array, rows: jax.Array, weight: jax.Array, codebook: jax.Array) -> jax.Array:
    """For every codebook row the nearest badly quantized vector, [K, D]."""
    error = jnp.mean(jnp.square(x - rows), axis=-1) * weight
    bad = (error >= error.sum() / jnp.maximum(weight.sum(), 1.0)) & (weight > 0)
    distances = jnp.sum(jnp.square(x), axis=-1)[None] - 2.0 * codebook @ x.T  # up to the rows' own lengths
    nearest = jnp.argmin(jnp.where(bad[None], distances, jnp.inf), axis=1)
    return jax.lax.stop_gradient(jnp.take(x, nearest, axis=0))
