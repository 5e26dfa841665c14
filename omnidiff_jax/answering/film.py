"""Decoding as a film: what a half-decoded answer looks like, step by step."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from omnidiff_jax.codecs.media import Codecs
from omnidiff_jax.tasks.registry import AnswerKind
from omnidiff_jax.vocabulary import Vocabulary


def frames(steps: np.ndarray, kind: AnswerKind, codecs: Codecs) -> list[Any]:
    """One frame a step: pictures uint8 [H, W, 3] with their masked codes gray, or text with a dot for each mask.

    Args:
        steps: int32 [steps, n], the answer after each step.
        kind: what it is made of; speech is shown as `cells`.
        codecs: of the model.
    """
    if kind in ("image", "hole"):
        return list(pictures(steps, codecs))
    if kind == "text":
        return [partly(step, codecs) for step in steps]
    return [cells(steps[: number + 1], codecs.layout.vocabulary) for number in range(len(steps))]


def pictures(steps: np.ndarray, codecs: Codecs) -> np.ndarray:
    """uint8 [steps, H, W, 3]: what is decoded of a picture, masked codes gray."""
    vocabulary, grid = codecs.layout.vocabulary, codecs.image_grid
    start = int(np.argmax(steps[0] == vocabulary.begin_image)) + 1
    tokens = steps[:, start : start + grid[0] * grid[1]]
    known = vocabulary.image.contains(tokens)
    drawn = codecs.draw(np.where(known, vocabulary.image.decode(tokens), 0))
    cell = drawn.shape[1] // grid[0]
    shown = np.kron(known.reshape(-1, *grid), np.ones((1, cell, cell), bool))[..., None]
    return np.where(shown, drawn, np.uint8(150))


def cells(steps: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Decoding steps as rows of cells, uint8 [4 * steps, 4 * n, 3]: gray is masked, green text, a blue each a speech
    code, white the rest."""
    kinds = [steps == vocabulary.mask, vocabulary.text.contains(steps), vocabulary.speech.contains(steps)]
    shade = (steps % 97)[..., None] / 97.0 * np.array([90, 110, 50]) + np.array([30, 70, 170])
    fills = [np.full_like(shade, 190), np.broadcast_to([42.0, 157.0, 92.0], shade.shape), shade]
    pixels = np.select([kind[..., None] for kind in kinds], fills, 255.0).astype(np.uint8)
    return np.kron(pixels, np.ones((4, 4, 1), np.uint8))


def partly(tokens: np.ndarray, codecs: Codecs) -> str:
    """Text in the middle of decoding: what is known up to the turn's end, a dot for each mask."""
    vocabulary, text = codecs.layout.vocabulary, codecs.layout.text
    shown = []
    for masked, run in itertools.groupby(tokens.tolist(), lambda token: token == vocabulary.mask):
        ids = list(itertools.takewhile(lambda token: token != vocabulary.im_end, run))
        shown.append("·" * len(ids) if masked else text.decode([i for i in ids if vocabulary.text.contains(i)]).strip())
    return " ".join(filter(None, shown))


def thinned(steps: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the steps, evenly spaced, first and last among them."""
    return steps[np.unique(np.linspace(0, len(steps) - 1, count).round().astype(int))]


def strip(steps: np.ndarray, kind: AnswerKind, codecs: Codecs, count: int = 9) -> Sequence[Any]:
    """A film strip for a report: `count` frames; speech is one picture of cells."""
    chosen = thinned(steps, count)
    if kind in ("speech", "text_and_speech"):
        return (cells(chosen, codecs.layout.vocabulary),)
    return tuple(frames(chosen, kind, codecs))
