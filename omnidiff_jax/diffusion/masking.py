"""Corruption: which target tokens become [MASK].

Noise is keyed by (seed, epoch, sample id, index within the sample), so a sample is masked alike wherever it is
packed, on any number of hosts, and after a resume.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from omnidiff_jax import rng
from omnidiff_jax.batch import Batch
from omnidiff_jax.config import DecayRate, Share
from omnidiff_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """How a clean batch is corrupted (arXiv 2603.06577, training).

    Attributes:
        mode: "paper" draws one t per sample; "released" draws a threshold per token, so that half of all targets
            are masked, always (`released_forward_process`).
        tail_pad_gamma: γ, mask probability of tail pads relative to other targets.
        min_noise: smallest t of "paper", which is uniform from there to 1: a clipped noise schedule (arXiv 2503.09573).
        min_noise_of_groups: that of each group of `Batch.group_ids`; () = `min_noise` for all.
        eps: smallest threshold of "released".
    """

    mode: Literal["paper", "released"] = "paper"
    tail_pad_gamma: Share = 0.6
    min_noise: DecayRate = 1e-3
    min_noise_of_groups: tuple[DecayRate, ...] = ()
    eps: DecayRate = 1e-3


@struct.dataclass
class Corrupted:
    """A batch after masking.

    Attributes:
        tokens: int32 [B, L], masked positions hold the mask id.
        masked: bool [B, L], a subset of the batch's targets.
        ratio: float32 [B, S], noise level of each sample: t ("paper"), or the share of its targets that is masked
            ("released"); 0 where there is no sample.
        probability: float32 [B, L], with which each target was masked; 1 elsewhere.
    """

    tokens: jax.Array
    masked: jax.Array
    ratio: jax.Array
    probability: jax.Array


def corrupt(batch: Batch, seed: int | jax.Array, config: MaskingConfig, vocabulary: Vocabulary) -> Corrupted:
    """Masks a clean batch; a function of (seed, and each sample's id, epoch and tokens) only.

    Token indices within a sample are `batch.inputs.positions`.
    """
    inputs = batch.inputs
    segments, count = inputs.segment_ids, batch.sample_ids.shape[1]
    keys = rng.sample_keys(rng.stream(seed, "masking"), batch.sample_ids, batch.epochs)
    owner = jnp.clip(segments - 1, 0, count - 1)
    token_keys = jnp.take_along_axis(keys, owner, axis=1)
    targets = batch.targets & (segments > 0)

    def per_token(name: str) -> jax.Array:
        named = jax.vmap(lambda key: rng.named(key, name))(token_keys.reshape(-1))
        return rng.token_uniforms(named.reshape(token_keys.shape), inputs.positions)

    present = batch.group_ids >= 0
    if config.mode == "paper":
        level_keys = jax.vmap(lambda key: rng.named(key, "level"))(keys.reshape(-1)).reshape(keys.shape)
        floors = jnp.asarray(config.min_noise_of_groups or [config.min_noise], jnp.float32)
        least = floors[jnp.clip(batch.group_ids, 0, len(floors) - 1)]
        ratio = (1 - least) * rng.sample_uniforms(level_keys) + least
        probability = jnp.take_along_axis(ratio, owner, axis=1)
        probability *= jnp.where(batch.tail_pads, config.tail_pad_gamma, 1.0)
        masked = targets & (per_token("decision") < probability)
    else:
        pads = inputs.tokens == vocabulary.pad
        masked = targets & released_forward_process(
            targets, pads, per_token("threshold"), per_token("decision"), config.eps, config.tail_pad_gamma
        )
        probability = jnp.where(pads, config.tail_pad_gamma, 1.0) * (1 + config.eps) / 2
        member = jax.nn.one_hot(segments - 1, count, dtype=jnp.float32)
        ratio = jnp.einsum("bl,bls->bs", masked.astype(jnp.float32), member)
        ratio /= jnp.maximum(jnp.einsum("bl,bls->bs", targets.astype(jnp.float32), member), 1.0)
    return Corrupted(
        tokens=jnp.where(masked, vocabulary.mask, inputs.tokens),
        masked=masked,
        ratio=jnp.where(present, ratio, 0.0),
        probability=jnp.where(targets, probability, 1.0),
    )


def released_forward_process(
    targets: jax.Array, pads: jax.Array, threshold: jax.Array, decision: jax.Array, eps: float, gamma: float
) -> jax.Array:
    """The released masking rule (`dataset_qwen2.py: forward_process`), its randomness given.

    Every token has its own threshold (1 - eps) * threshold + eps and is masked where `decision` does not exceed it, or
    gamma times it for pad tokens.

    Args:
        targets: bool [..., L], labelled positions.
        pads: bool [..., L], positions whose label is the pad id.
        threshold, decision: float32 [..., L], independent uniforms.

    Returns:
        bool [..., L], drawn from the first to the last target; what is no target among them is then left alone.
    """
    level = (1 - eps) * threshold + eps
    drawn = decision <= jnp.where(pads, gamma * level, level)
    begun = jax.lax.cummax(targets.astype(jnp.int8), axis=targets.ndim - 1)
    ends = jax.lax.cummax(targets.astype(jnp.int8), axis=targets.ndim - 1, reverse=True)
    return drawn & (begun & ends).astype(bool)
