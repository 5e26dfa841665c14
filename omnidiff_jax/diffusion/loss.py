"""Cross-entropy at masked positions, without whole-vocabulary logits of a batch.

Rows that predict masked tokens are gathered to the front, then pass through the head a chunk at a time; the loop
ends with the last masked row, so unmasked positions cost nothing. The same pass computes the gradients, which saves
recomputing each chunk's logits in the backward pass.
"""

import dataclasses
import functools
import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from flax import struct

from omnidiff_jax.batch import Batch
from omnidiff_jax.config import Count, Range, free
from omnidiff_jax.diffusion.alignment import predictors
from omnidiff_jax.diffusion.masking import Corrupted
from omnidiff_jax.sharding import axes
from omnidiff_jax.sharding.axes import constrain


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """How the masked positions of a batch become one loss.

    Attributes:
        alignment: a name in `alignment.ALIGNMENTS`.
        weighting: "none" = mean over masked positions (paper); "inverse_t" = each divided by the probability with
            which it was masked, over the number of targets: the variational bound; "sample" = each divided by the
            length of its sample's answer (without tail pads), over the number of samples, so that a word weighs as much
            as a picture.
        capacity: share of positions that may be scored; at 1 nothing can overflow. Memory and compile-time
            sizes grow with it, time does not. Rows over it are dropped and counted in `Loss.dropped`.
        chunk: rows whose logits exist at once (in each group).
        groups: rows of the batch are gathered within this many groups; the number of batch shards, so that no
            row leaves its device.
        noise_buckets: equal intervals of the noise level in which loss is reported.
    """

    alignment: str = "shifted"
    weighting: Literal["none", "inverse_t", "sample"] = "none"
    capacity: Annotated[float, Range(above=0, at_most=1)] = 1.0
    chunk: Count = free(1024)
    groups: Count = free(1)
    noise_buckets: Count = 4


@struct.dataclass
class Loss:
    """Sums, so that micro-batches and hosts can be added up; scalars are float32.

    Attributes:
        loss: the objective, differentiable: `total / normalizer`.
        total: weighted sum of losses, differentiable.
        normalizer: number of masked positions ("none"), of targets ("inverse_t") or of answered samples ("sample").
        masked: number of scored positions.
        targets: number of targets that have a predictor.
        nll: unweighted sum of -log p over masked positions.
        weighted_nll: sum of -log p / (probability of having been masked).
        correct: number of masked positions whose token is the most probable one.
        group_nll, group_masked, group_correct: [groups], the same sums per (source, task) pair.
        noise_nll, noise_masked: [noise_buckets], per interval of the noise level.
        dropped: masked positions beyond the capacity, not scored.
    """

    loss: jax.Array
    total: jax.Array
    normalizer: jax.Array
    masked: jax.Array
    targets: jax.Array
    nll: jax.Array
    weighted_nll: jax.Array
    correct: jax.Array
    group_nll: jax.Array
    group_masked: jax.Array
    group_correct: jax.Array
    noise_nll: jax.Array
    noise_masked: jax.Array
    dropped: jax.Array


def masked_cross_entropy(
    hidden: jax.Array, head: jax.Array, batch: Batch, corrupted: Corrupted, config: LossConfig, num_groups: int
) -> Loss:
    """The training objective of one packed batch.

    Args:
        hidden: [B, L, D] from the model on the corrupted tokens.
        head: [D, V] float32, the head's kernel; used in the dtype of `hidden`.
        batch: the clean batch.
        corrupted: what the model saw.
        num_groups: length of the per-task sums.

    Returns:
        A `Loss`; differentiable in `hidden` and `head` through `loss` and `total`.
    """
    batch_size, length, width = hidden.shape
    if batch_size % config.groups:
        raise ValueError(f"batch of {batch_size} rows does not divide into {config.groups} groups")
    index, valid = predictors(config.alignment, batch.inputs.segment_ids)
    scored = corrupted.masked & valid
    targets = (batch.targets & valid).sum().astype(jnp.float32)

    group_size = batch_size // config.groups * length
    chunk = min(config.chunk, group_size)
    capacity = math.ceil(math.ceil(config.capacity * group_size) / chunk) * chunk

    def grouped(x: jax.Array) -> jax.Array:
        return x.reshape(config.groups, group_size, *x.shape[2:])

    # Masked positions first, in order; `rows` [G, C] are flat positions within the group.
    rank = jnp.argsort(~grouped(scored), axis=1, stable=True)
    rows = jnp.pad(rank, ((0, 0), (0, max(0, capacity - group_size))))[:, :capacity]
    found = grouped(scored).sum(1)
    kept = jnp.minimum(found, capacity)
    live = jnp.arange(capacity)[None, :] < kept[:, None]

    def at_rows(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(grouped(x), rows, axis=1)

    row_start = jnp.arange(batch_size)[:, None] % (batch_size // config.groups) * length
    sources = at_rows(index + row_start)
    predicting = jnp.take_along_axis(grouped(hidden), sources[..., None], axis=1)
    labels = at_rows(batch.inputs.tokens)
    ones = live.astype(jnp.float32)
    owner = jnp.clip(batch.inputs.segment_ids - 1, 0)
    inverse = jnp.where(live, 1.0 / at_rows(corrupted.probability), 0.0)
    if config.weighting == "inverse_t":
        weights, normalizer = inverse, targets
    elif config.weighting == "sample":
        lengths = answer_lengths(batch, owner)
        weights = ones / jnp.maximum(at_rows(jnp.take_along_axis(lengths, owner, axis=1)), 1.0)
        normalizer = (lengths > 0).sum().astype(jnp.float32)
    else:
        weights, normalizer = ones, ones.sum()
    normalizer = jnp.maximum(normalizer, 1.0)

    chunks = (kept.max() + chunk - 1) // chunk
    total, nll, correct = _head_loss(predicting, head, labels, weights, chunks, chunk)

    tasks = at_rows(jnp.take_along_axis(batch.group_ids, owner, axis=1))
    levels = at_rows(jnp.take_along_axis(corrupted.ratio, owner, axis=1))
    buckets = jnp.clip((levels * config.noise_buckets).astype(jnp.int32), 0, config.noise_buckets - 1)

    def sums(values: jax.Array, ids: jax.Array, size: int) -> jax.Array:
        return jnp.einsum("gc,gcn->n", values, jax.nn.one_hot(ids, size, dtype=jnp.float32))

    nll, correct = jax.lax.stop_gradient(nll) * ones, correct * ones
    masked = ones.sum()
    return Loss(
        loss=total / normalizer,
        total=total,
        normalizer=normalizer,
        masked=masked,
        targets=targets,
        nll=nll.sum(),
        weighted_nll=(nll * inverse).sum(),
        correct=correct.sum(),
        group_nll=sums(nll, tasks, num_groups),
        group_masked=sums(ones, tasks, num_groups),
        group_correct=sums(correct, tasks, num_groups),
        noise_nll=sums(nll, buckets, config.noise_buckets),
        noise_masked=sums(ones, buckets, config.noise_buckets),
        dropped=(found - kept).sum().astype(jnp.float32),
    )


def answer_lengths(batch: Batch, owner: jax.Array) -> jax.Array:
    """float32 [B, S]: targets of each sample that are not tail pads; `owner` int32 [B, L] is each position's sample."""
    answer = (batch.targets & ~batch.tail_pads).astype(jnp.float32)
    samples = batch.sample_ids.shape[1]
    return jnp.einsum("bl,bls->bs", answer, jax.nn.one_hot(owner, samples, dtype=jnp.float32))


def _score_chunk(hidden, kernel, labels, i, chunk):
    """Chunk i of the rows: its inputs [G, c, D] and labels, float32 logits [G, c, V], -log p and hit of each label."""
    h = jax.lax.dynamic_slice_in_dim(hidden, i * chunk, chunk, axis=1)
    y = jax.lax.dynamic_slice_in_dim(labels, i * chunk, chunk, axis=1)
    logits = jnp.einsum("gcd,dv->gcv", h, kernel, preferred_element_type=jnp.float32)
    logits = constrain(logits, axes.BATCH, None, axes.ACT_VOCAB)
    top = logits.max(-1)
    lse = top + jnp.log(jnp.exp(logits - top[..., None]).sum(-1))
    label_logit = jnp.take_along_axis(logits, y[..., None], axis=-1)[..., 0]
    return h, y, logits, lse, lse - label_logit, label_logit >= top


def _whole_kernel(head, dtype):
    """The head in the compute dtype, gathered once rather than in every round."""
    return axes.gather(head.astype(dtype), axes.EMBED, axes.VOCAB)


def _store(buffer, value, i, chunk):
    return jax.lax.dynamic_update_slice_in_dim(buffer, value.astype(buffer.dtype), i * chunk, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _head_loss(hidden, head, labels, weights, chunks, chunk):
    """Scores the first `chunks` chunks of rows.

    Args:
        hidden: [G, C, D]. head: [D, V]. labels: int32 [G, C]. weights: float32 [G, C], 0 = unused row.
        chunks: int32 scalar. chunk: rows per chunk, a divisor of C.

    Returns:
        weighted sum of -log p; -log p [G, C]; 1.0 where the label is the most probable token [G, C].
    """
    kernel = _whole_kernel(head, hidden.dtype)
    zeros = jnp.zeros(labels.shape, jnp.float32)

    def body(i, state):
        nll, correct = state
        *_, loss, hit = _score_chunk(hidden, kernel, labels, i, chunk)
        return _store(nll, loss, i, chunk), _store(correct, hit, i, chunk)

    nll, correct = jax.lax.fori_loop(0, chunks, body, (zeros, zeros))
    return (weights * nll).sum(), nll, correct


def _head_loss_fwd(hidden, head, labels, weights, chunks, chunk):
    kernel = _whole_kernel(head, hidden.dtype)
    zeros = jnp.zeros(labels.shape, jnp.float32)

    def body(i, state):
        nll, correct, d_hidden, d_head = state
        h, y, logits, lse, loss, hit = _score_chunk(hidden, kernel, labels, i, chunk)
        w = jax.lax.dynamic_slice_in_dim(weights, i * chunk, chunk, axis=1)[..., None]
        is_label = jnp.arange(logits.shape[-1])[None, None, :] == y[..., None]
        d_logits = (w * (jnp.exp(logits - lse[..., None]) - is_label)).astype(h.dtype)
        d_h = jnp.einsum("gcv,dv->gcd", d_logits, kernel)
        d_head += jnp.einsum("gcd,gcv->gdv", h, d_logits, preferred_element_type=jnp.float32)
        return _store(nll, loss, i, chunk), _store(correct, hit, i, chunk), _store(d_hidden, d_h, i, chunk), d_head

    # One sum per group, so that devices add theirs up once and not in every round.
    d_head = constrain(jnp.zeros((labels.shape[0], *head.shape), jnp.float32), axes.BATCH, None, axes.ACT_VOCAB)
    start = (zeros, zeros, jnp.zeros_like(hidden), d_head)
    nll, correct, d_hidden, d_head = jax.lax.fori_loop(0, chunks, body, start)
    d_head = axes.sum_batch(d_head, axes.EMBED, axes.VOCAB).astype(head.dtype)
    return ((weights * nll).sum(), nll, correct), (d_hidden, d_head)


def _head_loss_bwd(chunk, gradients, cotangents):
    d_hidden, d_head = gradients
    scale = cotangents[0]  # -log p and the hits are reports, not objectives
    return d_hidden * scale.astype(d_hidden.dtype), d_head * scale, None, None, None


_head_loss.defvjp(_head_loss_fwd, _head_loss_bwd)
