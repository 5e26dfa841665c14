"""The released algorithm in plain JAX: a jitted step over every position and the whole vocabulary, a loop on the host.

Head and filters run at all L positions, top-p and top-k sort the vocabulary, and each step waits for the device.
One canvas at a time, whole answers without blocks, confidence by entropy, temperature 0.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omnidiff_jax.benchmarks.settings import Setting
from omnidiff_jax.sampling import Canvas, Denoiser, Schedule
from omnidiff_jax.sampling.filters import LOWEST

FREE = 100
"""Masked rows before the position penalty begins."""


def fill(
    denoiser: Denoiser, canvas: Canvas, setting: Setting, steps: int, most_steps: int | None = None
) -> tuple[np.ndarray, list[int]]:
    """Fills one canvas.

    Args:
        denoiser: of shifted logits.
        canvas: of one row, or under guidance of two (`stack_canvases`).
        setting: filters, penalties and guidance.
        steps: T.
        most_steps: of them; the rest stays masked.

    Returns:
        int32 [L] tokens, and how many positions each step chose.
    """
    tokens, generate = np.array(canvas.inputs.tokens), np.asarray(canvas.generate)
    columns = np.arange(tokens.shape[1]) - int(canvas.answer_start[0])
    in_answer = (columns >= 0) & (columns < int(canvas.answer_length[0]))
    context = prepare(denoiser, canvas)
    committed: list[int] = []
    for number, share in enumerate(Schedule().ratios(min(steps, setting.answer))[:most_steps]):
        masked = generate[0] & (tokens[0] == canvas.mask_id)
        if not masked.any():
            break
        counted = np.where(in_answer & (number > 0), tokens[0], 0)
        decided = step(denoiser, context, tokens, masked, counted, setting=setting, mask_id=canvas.mask_id)
        token, confidence = jax.device_get(decided)
        quota = max(int(np.float32(masked.sum()) * share), 1)
        best = np.argsort(np.where(masked, -confidence, np.inf), kind="stable")[:quota]
        tokens[0, best] = token[best]
        tokens[1:, generate[-1]] = tokens[:1, generate[0]]
        committed.append(quota)
    return tokens[0], committed


@jax.jit
def prepare(denoiser: Denoiser, canvas: Canvas) -> Any:
    return denoiser.prepare(denoiser.params, canvas)


@functools.partial(jax.jit, static_argnames=("setting", "mask_id"))
def step(
    denoiser: Denoiser,
    context: Any,
    tokens: jax.Array,
    masked: jax.Array,
    counted: jax.Array,
    *,
    setting: Setting,
    mask_id: int,
) -> tuple[jax.Array, jax.Array]:
    """A candidate and its confidence at every position.

    Args:
        denoiser: the model.
        context: of `prepare`.
        tokens: int32 [R, L], the unconditional row last.
        masked: bool [L], positions still masked.
        counted: int32 [L], tokens that the repetition penalty counts, 0 elsewhere.
        setting: filters, penalties and guidance.
        mask_id: never counted.

    Returns:
        int32 [L], float32 [L].
    """
    hidden = denoiser.hidden(denoiser.params, tokens, context)
    both = denoiser.logits(denoiser.params, hidden.reshape(-1, hidden.shape[-1])).reshape(*tokens.shape, -1)
    logits = both[0] if setting.guidance == 0 else both[1] + (1 + setting.guidance) * (both[0] - both[1])
    logits = jnp.concatenate([logits[:1], logits[:-1]])  # hidden state i predicts token i + 1
    logits = kept(logits, setting.top_p, setting.top_k)
    if setting.repetition != 1:
        seen = jnp.zeros(logits.shape[-1], bool).at[counted].set(True).at[jnp.array([0, mask_id])].set(False)
        logits = jnp.where(seen[None, :], repelled(logits, setting.repetition), logits)
    if setting.position != 1:
        row, count = jnp.cumsum(masked) - 1, masked.sum()
        depth = jnp.maximum(row - FREE, 0) / jnp.maximum(count - FREE, 1)
        logits = repelled(logits, (1 + depth * (setting.position - 1))[:, None])
    probabilities = jax.nn.softmax(logits, axis=-1)
    entropy = -(probabilities * jnp.log(probabilities + 1e-10)).sum(axis=-1)
    return probabilities.argmax(axis=-1), -entropy


def kept(logits: jax.Array, top_p: float, top_k: int) -> jax.Array:
    """Logits [L, V] with `LOWEST` where top-p, then top-k remove a token."""
    if top_p == 1 and not top_k:
        return logits
    ordered = jnp.sort(logits, axis=-1, descending=True)
    if top_p < 1:
        weights = jax.nn.softmax(ordered, axis=-1)
        # A token stays when those above it weigh at most top_p.
        ordered = jnp.where(jnp.cumsum(weights, axis=-1) - weights <= top_p, ordered, jnp.inf)
    ordered = ordered[:, :top_k] if top_k else ordered
    return jnp.where(logits >= ordered.min(axis=-1, keepdims=True), logits, LOWEST)


def repelled(logits: jax.Array, factor: jax.Array | float) -> jax.Array:
    return jnp.where(logits < 0, logits * factor, logits / factor)
