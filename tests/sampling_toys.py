"""A toy model whose numpy and jax forms agree to rounding, for the sampler's tests."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from omnidiff_jax.sampling import Denoiser
from omnidiff_jax.vocabulary import COMPACT_SPECIALS, Vocabulary

VOCABULARY = Vocabulary(text_size=6, specials=COMPACT_SPECIALS, speech_codes=5, image_codes=7)
WIDTH = 8


class Toy(NamedTuple):
    """Every hidden state depends on its token, both neighbours, its position and the whole segment."""

    token: np.ndarray
    left: np.ndarray
    right: np.ndarray
    everywhere: np.ndarray
    position: np.ndarray
    head: np.ndarray


def make_toy(seed: int, sharpness: float = 3.0) -> Toy:
    rng = np.random.default_rng(seed)
    tables = [rng.normal(size=(VOCABULARY.size, WIDTH)).astype(np.float32) for _ in range(4)]
    position = rng.normal(size=(256, WIDTH)).astype(np.float32)
    return Toy(*tables, position, (sharpness * rng.normal(size=(WIDTH, VOCABULARY.size))).astype(np.float32))


def toy_logits(toy: Toy, tokens: np.ndarray) -> np.ndarray:
    """The numpy form: tokens int [n], one unpadded row -> [n, V]."""
    empty = np.zeros((1, WIDTH))
    left = np.concatenate([empty, toy.left[tokens[:-1]]])
    right = np.concatenate([toy.right[tokens[1:]], empty])
    mean = toy.everywhere[tokens].mean(axis=0)
    hidden = np.tanh(toy.token[tokens] + left + right + mean + toy.position[: len(tokens)])
    return hidden @ toy.head.astype(np.float64)


def _prepare(params: Any, canvas: Any) -> tuple[jax.Array, jax.Array]:
    return canvas.inputs.segment_ids, canvas.inputs.positions


def _hidden(params: Any, tokens: jax.Array, context: tuple[jax.Array, jax.Array]) -> jax.Array:
    segment_ids, positions = context
    real = (segment_ids > 0)[..., None]
    toy = Toy(*(jnp.asarray(x) for x in params))
    left = jnp.pad(jnp.where(real, toy.left[tokens], 0)[:, :-1], [(0, 0), (1, 0), (0, 0)])
    right = jnp.pad(jnp.where(real, toy.right[tokens], 0)[:, 1:], [(0, 0), (0, 1), (0, 0)])
    whole = jnp.where(real, toy.everywhere[tokens], 0).sum(axis=1, keepdims=True)
    mean = whole / jnp.maximum(real.sum(axis=1, keepdims=True), 1)
    return jnp.tanh(toy.token[tokens] + left + right + mean + toy.position[positions])


def _logits(params: Any, rows: jax.Array, start: int = 0, stop: int | None = None) -> jax.Array:
    return rows @ jnp.asarray(params[-1])[:, start:stop]


def toy_denoiser(toy: Toy, alignment: str = "shifted") -> Denoiser:
    """The jax form."""
    return Denoiser(tuple(toy), _prepare, _hidden, _logits, alignment)
