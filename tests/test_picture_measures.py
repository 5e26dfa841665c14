"""Measures of pictures by features: retrieval, Fréchet distance against closed forms, the linear probe."""

import types

import numpy as np
import pytest
import scipy.linalg

from omnidiff_jax.answering.queries import Request, Response
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.exam import Case
from omnidiff_jax.evaluation.frechet import frechet, frechet_distance, in_tiles
from omnidiff_jax.evaluation.pictures import Gallery, Probe

SIZE = 24


def features(pictures):
    """What is drawn, straightened: pictures are vectors here."""
    return np.array([picture.ravel() for picture in pictures], np.float32).reshape(
        len(pictures), pictures[0].size if len(pictures) else SIZE
    )


JUDGE = types.SimpleNamespace(name="toy", features=features)
RNG = np.random.default_rng(0)
TRUTHS = {f"thing {number}": RNG.integers(0, 256, (2, 4, 3)).astype(np.uint8) for number in range(150)}


def cases(**meta):
    return [Case(Request(), Response(), dict(zip(meta, row, strict=True))) for row in zip(*meta.values(), strict=True)]


def value(counts):
    top, bottom = counts
    return float(top.sum() / bottom.sum())


@pytest.fixture(scope="module")
def gallery():
    return Gallery.of(JUDGE, TRUTHS)


def test_the_named_concept_is_found_again(gallery):
    top5, top1, rank = gallery.measures()
    assert (top5.metric, top5.judge) == ("named concept in the top 5 of 100 by features", "toy")
    asked = cases(thing=TRUTHS)
    responses = [Response(image=picture) for picture in TRUTHS.values()]
    assert [value(measure.score(responses, asked)) for measure in (top5, top1, rank)] == [1.0, 1.0, 1.0]
    nothing = [Response()] * len(asked)
    assert [value(measure.score(nothing, asked)) for measure in (top5, top1, rank)] == [0.0, 0.0, 100.0]
    mixed = [*responses[:75], *nothing[75:]]
    assert value(top1.score(mixed, asked)) == 0.5 and not rank.higher_is_better


def test_shuffled_answers_are_near_chance(gallery):
    pictures = list(TRUTHS.values())
    ranks = np.concatenate([gallery.ranks(pictures[n:] + pictures[:n], list(TRUTHS)) for n in range(1, 41)])
    # 6,000 ranks between 1 and 100: a share of 0.05 has a deviation of 0.003.
    assert abs((ranks <= 5).mean() - 0.05) < 0.015 and abs(ranks.mean() - 50.5) < 3


def test_candidates_are_the_same_for_all_and_never_the_concept(gallery):
    again = Gallery.of(JUDGE, dict(reversed(TRUTHS.items())))
    for concept in list(TRUTHS)[:20]:
        others = gallery.others(concept)
        assert len(set(others.tolist())) == 99 and gallery.concepts.index(concept) not in others
        np.testing.assert_array_equal(others, again.others(concept))
    assert (gallery.others("thing 1") != gallery.others("thing 2")).any()
    with pytest.raises(UserError, match="gallery of 2 concepts: retrieval among 3"):
        Gallery.of(JUDGE, dict(list(TRUTHS.items())[:2]), 3)


def test_a_tie_is_lost():
    same = dict.fromkeys("abc", np.ones((1, 1, 3), np.uint8))
    assert Gallery.of(JUDGE, same, 3).ranks([same["a"]], ["a"]) == [3]


# ---- Fréchet distance --------------------------------------------------------------------------------------


def drawn(mean, covariance, count, rng):
    """float64 [count, F] whose own mean and covariance are exactly these."""
    noise = rng.standard_normal((count, len(mean)))
    noise -= noise.mean(0)
    white = noise @ np.linalg.inv(np.linalg.cholesky(np.cov(noise.T))).T
    return white @ scipy.linalg.sqrtm(covariance).real + mean


def covariance(rng, size):
    mixed = rng.standard_normal((size, size))
    return mixed @ mixed.T / size + 0.1 * np.eye(size)


def test_distance_of_normal_distributions():
    rng = np.random.default_rng(1)
    means, spreads = rng.standard_normal((2, SIZE)), rng.uniform(0.1, 2, (2, SIZE))
    sets = [drawn(means[n], np.diag(spreads[n] ** 2), 300 + n, rng) for n in range(2)]
    closed = ((means[0] - means[1]) ** 2).sum() + ((spreads[0] - spreads[1]) ** 2).sum()
    np.testing.assert_allclose(frechet_distance(*sets), closed, rtol=1e-9)
    # Covariances that do not commute, by the root of their product.
    roots = [covariance(rng, SIZE) for _ in range(2)]
    sets = [drawn(mean, root, 400, rng) for mean, root in zip(means, roots, strict=True)]
    closed = ((means[0] - means[1]) ** 2).sum()
    closed += np.trace(roots[0] + roots[1] - 2 * scipy.linalg.sqrtm(roots[0] @ roots[1]).real)
    np.testing.assert_allclose(frechet_distance(*sets), closed, rtol=1e-9)
    assert frechet_distance(sets[0], sets[0] + 3) == pytest.approx(9 * SIZE, rel=1e-9)
    assert frechet_distance(sets[0], sets[0][::-1]) < 1e-9


def test_fewer_pictures_than_features():
    rng = np.random.default_rng(2)
    one, other = rng.standard_normal((2, 120, 200))
    first, second = np.cov(one.T), np.cov(other.T)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    shared = np.sqrt(np.clip(np.linalg.eigvalsh(root @ second @ root), 0, None)).sum()
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(first + second) - 2 * shared
    np.testing.assert_allclose(frechet_distance(one, other), expected, rtol=1e-6)


def test_few_or_broken_features_are_refused():
    with pytest.raises(UserError, match="of 99 pictures: a set needs 100"):
        frechet_distance(np.zeros((100, 3)), np.zeros((99, 3)))
    with pytest.raises(UserError, match="not finite"):
        frechet_distance(np.full((100, 3), np.nan), np.zeros((100, 3)))


def test_distance_has_a_ceiling_and_a_floor():
    rng = np.random.default_rng(3)
    up = np.linspace(0, 200, 16).reshape(4, 4, 1)
    truths = [np.clip(up + rng.normal(0, 20, (4, 4, 3)), 0, 255).astype(np.uint8) for _ in range(240)]
    noise = [rng.integers(0, 256, (4, 4, 3)).astype(np.uint8) for _ in truths]
    found = frechet(truths, truths, features)
    assert found.value == found.ceiling < found.floor and found.n == 120
    worse = frechet(noise, truths, features)
    assert worse.ceiling == found.ceiling and worse.floor == found.floor < worse.value
    with pytest.raises(ValueError, match="239 answers but 240 truths"):
        frechet(noise[1:], truths, features)


def test_tiles_are_all_there():
    picture = np.arange(64 * 64 * 3).reshape(64, 64, 3) % 251
    mixed = in_tiles(picture.astype(np.uint8), np.random.default_rng(0))
    assert (mixed != picture).any() and mixed.shape == picture.shape
    cut = [
        sorted(
            part[y : y + 16, x : x + 16].astype(np.uint8).tobytes() for y in range(0, 64, 16) for x in range(0, 64, 16)
        )
        for part in (picture, mixed)
    ]
    assert cut[0] == cut[1]


# ---- probe -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [20, 400])  # fewer pictures than features, and more
def test_probe_reads_classes(count):
    rng = np.random.default_rng(4)
    middles = {"animal": (180, 90, 90), "food": (90, 180, 90), "travel": (90, 90, 180)}
    labels = [("animal", "food", "travel")[number % 3] for number in range(count)]
    pictures = [np.clip(rng.normal(middles[label], 30, (2, 4, 3)), 0, 255).astype(np.uint8) for label in labels]
    probe = Probe.of(JUDGE, pictures, labels)
    assert probe.classes == ("animal", "food", "travel") and np.mean(np.array(probe.read(pictures)) == labels) > 0.9
    # The same weights either way round.
    x = (features(pictures) - probe.shift) / probe.scale
    y = np.equal.outer(labels, list(probe.classes)) - probe.bias
    np.testing.assert_allclose(x.T @ (y - x @ probe.weights), 0.1 * count * probe.weights, rtol=1e-6, atol=1e-7)
    asked = cases(category=labels)
    measure = probe.measure()
    assert value(measure.score([Response(image=picture) for picture in pictures], asked)) > 0.9
    assert value(measure.score([Response()] * count, asked)) == 0.0
    assert value(measure.score([Response(image=p) for p in pictures[1:] + pictures[:1]], asked)) < 0.3
    with pytest.raises(UserError, match="a probe of 1 classes"):
        Probe.of(JUDGE, pictures[:1], labels[:1])
