"""Fréchet distance of two sets of features (arXiv 1706.08500), with its own ceiling and floor.

It says how far apart two sets are, not two pictures: shuffling answers among their questions changes nothing, and few
pictures give too large a distance. So it is always taken between as many, and stands beside the distance of true
pictures from other true ones, and from true ones cut into tiles and shuffled.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import scipy.linalg

from omnidiff_jax.errors import UserError

LEAST = 100  # pictures of a set
_TILES = 4

Features = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Frechet:
    """Distances from true pictures, of sets of one size; 0 = alike.

    Attributes:
        value: of the answers.
        ceiling: of other true pictures.
        floor: of those, in tiles, shuffled.
        n: pictures of a set.
    """

    value: float
    ceiling: float
    floor: float
    n: int


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Squared Wasserstein distance of two normal distributions with the sets' means and covariances.

    |m1 - m2|² + tr C1 + tr C2 - 2 tr (C1 C2)^½. With Ci = Aiᵀ Ai the last trace is the sum of the singular values of
    A1 A2ᵀ: no root of a product is taken, which rounding makes complex, and none of its negative eigenvalues cut off.

    Args:
        one, other: floats [N, F] and [M, F], at least `LEAST` rows each.

    Raises:
        UserError: too few rows, or one that is not finite.
    """
    for features in (one, other):
        if len(features) < LEAST:
            raise UserError(f"Fréchet distance of {len(features)} pictures: a set needs {LEAST}, better thousands")
        if not np.isfinite(features).all():
            raise UserError("Fréchet distance: a feature is not finite")
    first, second = (np.asarray(features, np.float64) for features in (one, other))
    apart = first.mean(0) - second.mean(0)
    roots = _root(first), _root(second)
    spread = sum(float((root * root).sum()) for root in roots)
    shared = float(scipy.linalg.svdvals(roots[0] @ roots[1].T).sum())
    return max(float(apart @ apart) + spread - 2 * shared, 0.0)


def _root(features: np.ndarray) -> np.ndarray:
    """float64 A with AᵀA the covariance, of as few rows as may be."""
    centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    return centred if len(centred) <= centred.shape[1] else np.asarray(np.linalg.qr(centred, mode="r"))


def frechet(answers: Sequence[np.ndarray], truths: Sequence[np.ndarray], features: Features) -> Frechet:
    """The distance of answers, each the mean of two: a half of the truths against what belongs to the other half.

    Args:
        answers: pictures uint8 [H, W, 3].
        truths: as many, in the same order.
        features: of pictures, such as `ImagenetJudge.features`.

    Raises:
        UserError: too few of them.
    """
    if len(answers) != len(truths):
        raise ValueError(f"{len(answers)} answers but {len(truths)} truths")
    rng = np.random.default_rng(0)
    sets = [features(pictures) for pictures in (truths, answers, [in_tiles(picture, rng) for picture in truths])]
    ceiling, value, floor = (
        (frechet_distance(sets[0][::2], found[1::2]) + frechet_distance(sets[0][1::2], found[::2])) / 2
        for found in sets
    )
    return Frechet(value, ceiling, floor, len(truths) // 2)


def in_tiles(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture cut into 4 × 4 tiles, shuffled; what does not fill a tile is cut off."""
    height, width = (side // _TILES for side in picture.shape[:2])
    cut = picture[: height * _TILES, : width * _TILES]
    tiles = cut.reshape(_TILES, height, _TILES, width, -1).swapaxes(1, 2).reshape(_TILES**2, height, width, -1)
    mixed = rng.permutation(tiles).reshape(_TILES, _TILES, height, width, -1).swapaxes(1, 2)
    return np.ascontiguousarray(mixed.reshape(cut.shape))
