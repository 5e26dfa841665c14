"""Repetition and position penalties. Both change logits after the filters; neither knows about chunks."""

import jax
import jax.numpy as jnp

from omnidiff_jax.sampling.config import Position, Repetition


def seen_tokens(
    repetition: Repetition, tokens: jax.Array, generate: jax.Array, in_answer: jax.Array, mask_id: int, step: jax.Array,
    vocab_size: int,
) -> jax.Array:  # fmt: skip
    """bool [B, V]: tokens whose repetition is penalised at this step.

    Args:
        repetition: its scope is read.
        tokens: int32 [B, L], before this step.
        generate: bool [B, L], positions the sampler writes.
        in_answer: bool [B, L], the answer region.
        mask_id: the mask token, never counted.
        step: int32 [], number of the step; the released scope is empty at step 0.
        vocab_size: V.
    """
    if repetition.scope == "released":
        counted = in_answer & (tokens != 0) & (step > 0)
    else:
        counted = generate
    column = jnp.where(counted & (tokens != mask_id), tokens, vocab_size)  # out of range, hence dropped
    rows = jnp.arange(tokens.shape[0])[:, None]
    return jnp.zeros((tokens.shape[0], vocab_size), bool).at[rows, column].set(True, mode="drop")


def position_factor(
    position: Position, offsets: jax.Array, answer_length: jax.Array, masked: jax.Array, progress: jax.Array
) -> jax.Array:
    """float32 [B, L]: what the position penalty multiplies or divides by (see `config.Position`).

    Args:
        position: which form.
        offsets: int32 [B, L], index within the answer.
        answer_length: int32 [B].
        masked: bool [B, L], positions still masked, of all blocks.
        progress: float32 [B], share of the steps already taken.
    """
    if position.form == "paper":
        tail = jnp.maximum(answer_length - position.free, 1)[:, None]
        depth = jnp.clip((offsets - position.free + 1) / tail, 0.0, 1.0)
        return jnp.where(progress[:, None] < position.early, 1.0 - (1.0 - position.gamma) * depth, 1.0)
    if position.form == "released":
        row = jnp.cumsum(masked, axis=1) - 1
        count = masked.sum(axis=1, keepdims=True)
        depth = jnp.maximum(row - position.free, 0) / jnp.maximum(count - position.free, 1)
        return 1.0 + depth * (position.maximum - 1.0)
    return jnp.ones(offsets.shape, jnp.float32)


def repel(logits: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Makes logits less likely: positive ones / factor, negative ones * factor (factor >= 1)."""
    return jnp.where(logits < 0, logits * factor, logits / factor)
