"""Image codes as sums of their factors: the projection, what trains through it, and what a run leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnidiff_jax.errors import UserError
from omnidiff_jax.training.factors import (
    check_factors,
    initial_scale,
    scaled,
    started_from_bits,
    summed,
    with_factors,
)
from omnidiff_jax.vocabulary import Vocabulary

FACTORS = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)
VOCABULARY = Vocabulary.compact(7, 4, 32)


def sums(factors, rng, width=3):
    """A table whose rows are sums of a row for each factor."""
    table = np.zeros((*(2**bits for bits in factors), width))
    for axis, bits in enumerate(factors):
        shape = [1] * len(factors) + [width]
        shape[axis] = 2**bits
        table = table + rng.standard_normal(shape)
    return table.reshape(-1, width)


@given(FACTORS, st.integers(0, 99))
def test_sums_stay_and_everything_becomes_one(factors, seed):
    rng = np.random.default_rng(seed)
    table = sums(factors, rng)
    np.testing.assert_allclose(summed(table, factors), table, atol=1e-12)
    noise = rng.standard_normal(table.shape)
    once = summed(noise, factors)
    np.testing.assert_allclose(summed(once, factors), once, atol=1e-12)
    # Orthogonal: what is taken away has nothing of any sum.
    np.testing.assert_allclose(((noise - once) * table).sum(), 0, atol=1e-9)


def test_a_code_never_trained_is_made_of_those_that_were():
    """Gradients of all codes but one reach that one, through the codes that share its factors."""
    factors, rng = (3, 2), np.random.default_rng(0)
    wanted = jnp.asarray(sums(factors, rng))
    seen = jnp.arange(32) != 13

    def loss(table):
        return jnp.where(seen[:, None], (summed(table, factors) - wanted) ** 2, 0).sum()

    table = jnp.zeros_like(wanted)
    for _ in range(400):
        table -= 0.3 * jax.grad(loss)(table)
    np.testing.assert_allclose(summed(table, factors)[13], wanted[13], atol=1e-3)


def test_only_image_rows_change_and_fresh_ones_deviate_alike():
    rng = np.random.default_rng(0)
    size, factors = VOCABULARY.size, (3, 2)
    backbone = {
        "embedding": jnp.asarray(rng.standard_normal((size, 400)), jnp.float32),
        "head": jnp.asarray(rng.standard_normal((400, size)), jnp.float32),
        "other": jnp.ones(2),
    }
    used = with_factors(scaled({"backbone": backbone}, factors, VOCABULARY), factors, VOCABULARY)["backbone"]
    start = VOCABULARY.image.start
    np.testing.assert_array_equal(used["embedding"][:start], backbone["embedding"][:start])
    np.testing.assert_array_equal(used["head"][:, :start], backbone["head"][:, :start])
    for codes in (used["embedding"][start:], used["head"][:, start:].T):
        assert float(jnp.std(codes)) == pytest.approx(1.0, abs=0.1)
        np.testing.assert_allclose(summed(codes, factors), codes, atol=1e-5)
    assert initial_scale(factors) == pytest.approx((32 / (1 + 7 + 3)) ** 0.5)
    assert with_factors({"backbone": backbone}, (), VOCABULARY)["backbone"] is backbone


def test_factors_that_are_not_the_codes_are_refused():
    check_factors((), VOCABULARY)
    check_factors((3, 2), VOCABULARY)
    with pytest.raises(UserError, match="make 2.4 codes, the image tokenizer has 32"):
        check_factors((3, 1), VOCABULARY)


def test_codes_of_like_bits_begin_alike():
    """In proportion to the bits they share, at the spread that random rows have; other ids stay as they were."""
    rng = np.random.default_rng(0)
    backbone = {
        "embedding": jnp.asarray(rng.standard_normal((VOCABULARY.size, 900)), jnp.float32),
        "head": jnp.asarray(0.06 * rng.standard_normal((900, VOCABULARY.size)), jnp.float32),
    }
    key = jax.random.key(1)
    assert started_from_bits({"backbone": backbone}, 0.0, VOCABULARY, key)["backbone"] is backbone
    found = started_from_bits({"backbone": backbone}, 0.8, VOCABULARY, key)["backbone"]
    first = VOCABULARY.image.start
    np.testing.assert_array_equal(found["embedding"][:first], backbone["embedding"][:first])
    np.testing.assert_array_equal(found["head"][:, :first], backbone["head"][:, :first])
    for rows, spread in ((found["embedding"][first:], 1.0), (found["head"][:, first:].T, 0.06)):
        np.testing.assert_allclose(np.std(rows, axis=1), spread, rtol=0.25)
        likeness = np.corrcoef(rows)
        for one, other, alike in ((0, 0b00001, 0.8 * 3 / 5), (0b10101, 0b10110, 0.8 / 5), (0b11111, 0, -0.8)):
            assert abs(likeness[one, other] - alike) < 0.2
