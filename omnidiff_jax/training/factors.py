"""Image codes as the sum of their factors: an embedding for each factor's bits, and a logit for each, added up.

Look-up-free codes are bits; where groups of them mean different things (a form, a colour), a code that was never seen
is made of parts that were. The parameters stay plain tables: what the model uses is their projection onto sums of
factors, which leaves a sum as it is. So released weights, exports and samplers know nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from omnidiff_jax.errors import UserError
from omnidiff_jax.models.lfq import codes_to_bits
from omnidiff_jax.vocabulary import Vocabulary


def factors_used(factors: Sequence[int], lora_rank: int) -> tuple[int, ...]:
    """The factors of a run; none under LoRA, whose frozen tables stay bit for bit as they are."""
    return () if lora_rank else tuple(factors)


def check_factors(factors: Sequence[int], vocabulary: Vocabulary) -> None:
    """Raises UserError where the bits of the factors do not make up the image codes."""
    if factors and 2 ** sum(factors) != len(vocabulary.image):
        raise UserError(
            f"config.image_factors = {tuple(factors)} make 2^{sum(factors)} codes, the image tokenizer has "
            f"{len(vocabulary.image)}; give the bits of its factors, or ()"
        )


def summed(table: Any, factors: Sequence[int]) -> Any:
    """The projection of a table onto sums of factors: every mean over all other factors, less what is counted twice.

    Args:
        table: [2**K, D], numpy or jax; a code's most significant bits are the first factor's.
        factors: bits of each, K in all; one or none leaves the table as it is.
    """
    if len(factors) < 2:
        return table
    grid = table.reshape(*(2**bits for bits in factors), table.shape[-1])
    axes = range(len(factors))
    means = [grid.mean(axis=tuple(a for a in axes if a != factor), keepdims=True) for factor in axes]
    whole = sum(means) - (len(factors) - 1) * grid.mean(axis=tuple(axes), keepdims=True)
    return whole.reshape(table.shape)


def initial_scale(factors: Sequence[int]) -> float:
    """What random rows are multiplied by, so that their projection deviates as much as they did."""
    if len(factors) < 2:
        return 1.0
    # Degrees of freedom of a sum, among those of a table.
    return (2 ** sum(factors) / (1 + sum(2**bits - 1 for bits in factors))) ** 0.5


def code_rows_changed(name: str, table: Any, vocabulary: Vocabulary, change: Any) -> Any:
    """The "embedding" [V, D] or "head" [D, V] with `change` ([codes, D] -> same) made to its image rows."""
    codes = vocabulary.image
    part = slice(codes.start, codes.stop)
    if name == "embedding":
        return jax.lax.dynamic_update_slice(table, change(table[part]), (codes.start, 0))
    return jax.lax.dynamic_update_slice(table, change(table[:, part].T).T, (0, codes.start))


def over_codes(backbone: dict[str, Any], vocabulary: Vocabulary, change: Any) -> dict[str, Any]:
    """The backbone's parameters with `change` ([codes, D] -> same) made to its image rows, of embedding and head."""
    changed = {name: code_rows_changed(name, backbone[name], vocabulary, change) for name in ("embedding", "head")}
    return backbone | changed


def with_factors(params: dict[str, Any], factors: Sequence[int], vocabulary: Vocabulary) -> dict[str, Any]:
    """The parameters that the model uses: image rows as sums of factors; unchanged without factors."""
    if not factors:
        return params
    return params | {"backbone": over_codes(params["backbone"], vocabulary, lambda rows: summed(rows, factors))}


def scaled(params: dict[str, Any], factors: Sequence[int], vocabulary: Vocabulary) -> dict[str, Any]:
    """Fresh parameters whose image rows deviate as the others' do once they are sums."""
    if not factors:
        return params
    scale = jnp.float32(initial_scale(factors))
    return params | {"backbone": over_codes(params["backbone"], vocabulary, lambda rows: rows * scale)}


def started_from_bits(params: dict[str, Any], share: float, vocabulary: Vocabulary, key: jax.Array) -> dict[str, Any]:
    """Fresh parameters in which image codes of like bits have like rows, of embedding and head.

    Where a code is one thing, each row must be trained by itself; look-up-free codes of patches that look alike differ
    in few bits, so that what is learned of one holds, to begin with, for those beside it.

    Args:
        params: random ones.
        share: of a row's variance that its bits make up, 0 .. 1; the rest stays as it was.
        vocabulary: whose image codes are 2**K.
        key: of a direction for each bit.
    """
    if not share:
        return params
    bits = (len(vocabulary.image) - 1).bit_length()

    def change(rows: jax.Array) -> jax.Array:
        directions = jax.random.normal(key, (bits, rows.shape[-1])) / bits**0.5
        told = codes_to_bits(jnp.arange(len(rows)), bits) @ directions
        return share**0.5 * rows.std() * told + (1.0 - share) ** 0.5 * rows

    return params | {"backbone": over_codes(params["backbone"], vocabulary, change)}
