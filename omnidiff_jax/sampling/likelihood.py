"""How likely a given answer is: the masked-diffusion bound on its log-likelihood, by Monte Carlo."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from omnidiff_jax import rng
from omnidiff_jax.diffusion.alignment import predictors
from omnidiff_jax.sampling.canvas import Canvas
from omnidiff_jax.sampling.denoiser import Denoiser
from omnidiff_jax.sharding.spread import Spread


def likelihood_bound(
    denoiser: Denoiser, canvas: Canvas, tokens: np.ndarray, draws: int, seed: int = 0, spread: Spread | None = None
) -> np.ndarray:
    """Upper bounds on -log p(answer | prompt), in nats, estimated without bias from `draws` noise levels.

    Of n positions l are masked, l uniform in 1 .. n and the positions uniform among its subsets; the bound is the mean
    of n / l * (sum over masked positions of -log p(token | what is not masked)) (arXiv 2502.09992, equation 6: the
    bound of arXiv 2406.07524 in a form of less variance). Levels are stratified: draw d takes l from the d-th of
    `draws` equal parts. Noise is keyed by example id and the index of a position in its answer.

    Args:
        denoiser: the model.
        canvas: prompts and answers; `generate` says which positions are scored, the others are given.
        tokens: int [B, L], the canvas with the answers in it.
        draws: calls of the model.
        seed: of the noise.
        spread: lays the rows of an even batch over the processes of a mesh; each gets all bounds. None = this
            process's devices.

    Returns:
        float32 [B]; 0 for a row in which nothing is scored.

    Raises:
        ValueError: no draws.
    """
    if draws < 1:
        raise ValueError(f"a likelihood from {draws} draws; it takes at least 1")
    widest = int(np.asarray(canvas.generate).sum(1).max(initial=1))
    width = 1 << (max(widest, 1) - 1).bit_length()  # few widths, so that few programs are compiled
    key, whole = rng.stream(seed, "likelihood"), np.asarray(tokens, np.int32)
    if spread is None:
        return np.asarray(_bound(denoiser, canvas, whole, key, draws, width))
    with spread.entered():
        return np.asarray(spread.gathered(_bound(denoiser, *spread.laid((canvas, whole)), key, draws, width)))


@functools.partial(jax.jit, static_argnums=(4, 5))
def _bound(denoiser: Denoiser, canvas: Canvas, tokens: jax.Array, key: jax.Array, draws: int, width: int) -> jax.Array:
    scored = canvas.generate
    batch, length = scored.shape
    count = scored.sum(1)
    index = jnp.cumsum(scored, axis=1) - 1
    # The scored positions of a row stand first; what fills up is scored as well, and weighs nothing.
    places = jnp.argsort(~scored, axis=1, stable=True)[:, :width]
    places = jnp.pad(places, ((0, 0), (0, max(width - length, 0))))
    used = jnp.arange(width)[None, :] < count[:, None]
    source, _ = predictors(denoiser.alignment, canvas.inputs.segment_ids)
    read = jnp.take_along_axis(source, places, axis=1)
    labels = jnp.take_along_axis(tokens, places, axis=1)
    context = denoiser.prepare(denoiser.params, canvas)

    def step(total: jax.Array, draw: jax.Array) -> tuple[jax.Array, None]:
        keys = rng.sample_keys(key, canvas.example_ids, jnp.full((batch,), draw, jnp.int32))
        level = rng.sample_uniforms(jax.vmap(lambda k: rng.named(k, "level"))(keys))
        share = (draw + level) / draws
        masks = jnp.minimum((share * count).astype(jnp.int32) + 1, jnp.maximum(count, 1))
        spread = jnp.broadcast_to(keys[:, None], scored.shape)
        noise = jnp.where(scored, rng.token_uniforms(spread, jnp.maximum(index, 0)), 2.0)
        rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)
        masked = scored & (rank < masks[:, None])
        hidden = denoiser.hidden(denoiser.params, jnp.where(masked, canvas.mask_id, tokens), context)

        def place(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
            states, wanted = inputs
            logits = denoiser.logits(denoiser.params, states).astype(jnp.float32)
            chosen = jnp.take_along_axis(logits, wanted[:, None], axis=1)[:, 0]
            return jax.nn.logsumexp(logits, axis=1) - chosen

        # One place of all rows at a time: rows may lie on several devices, and stay there.
        states = jnp.take_along_axis(hidden, read[..., None], axis=1)
        nll = jax.lax.map(place, (jnp.moveaxis(states, 1, 0), labels.T)).T
        weighed = jnp.where(used & jnp.take_along_axis(masked, places, axis=1), nll, 0.0).sum(1)
        return total + weighed * count / masks, None

    total, _ = jax.lax.scan(step, jnp.zeros((batch,), jnp.float32), jnp.arange(draws))
    return total / draws
