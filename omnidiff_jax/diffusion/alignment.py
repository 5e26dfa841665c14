"""Which hidden state predicts which token: asked here by the loss and by the sampler, and nowhere else."""

import dataclasses

import jax
import jax.numpy as jnp

from omnidiff_jax.config import choose


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Which hidden state predicts a token.

    Attributes:
        offset: the token at i is predicted by the hidden state at i - offset.
        within_segment: False also scores a token whose predictor lies in the sample before it.
    """

    offset: int
    within_segment: bool = True


ALIGNMENTS: dict[str, Alignment] = {
    "shifted": Alignment(offset=1),  # Dream, an autoregressive model's weights kept in use
    "same_position": Alignment(offset=0),  # LLaDA, MaskGIT
    "shifted_released": Alignment(
        offset=1, within_segment=False
    ),  # the released training code's loss, which shifts across packed samples
}


def predictors(alignment: str, segment_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where each token's prediction comes from.

    Args:
        alignment: a name in `ALIGNMENTS`.
        segment_ids: int32 [B, L], 0 = padding.

    Returns:
        int32 [B, L], the index of the hidden state that predicts token i (0 where there is none), and
        bool [B, L], False where there is none: padding, and under `shifted` the first token of a segment.

    Raises:
        UserError: unknown alignment.
    """
    chosen = choose(ALIGNMENTS, alignment, "logit alignment")
    length = segment_ids.shape[1]
    source = jnp.arange(length) - chosen.offset
    first = jnp.maximum(source, 0)
    index = jnp.broadcast_to(first, segment_ids.shape)
    valid = (source >= 0)[None, :] & (segment_ids > 0)
    if chosen.within_segment:
        valid &= segment_ids == jnp.take(segment_ids, first, axis=1)
    return index, valid
