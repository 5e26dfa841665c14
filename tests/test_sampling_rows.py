"""Rows of logits, asked in few passes: the same answers as sorting them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnidiff_jax.sampling import SamplerConfig
from omnidiff_jax.sampling.candidates import Span
from omnidiff_jax.sampling.filters import REMNANT, Filters
from omnidiff_jax.sampling.rows import (
    LOWEST,
    Likeliest,
    divergence,
    first_best,
    likeliest,
    negative_entropy,
    top_k,
    weigh,
)
from omnidiff_jax.sampling.scoring import RowTables, decide, rest_sizes, score_rows
from omnidiff_jax.sampling.step import Compiled

# With a divisor that suits groups, and a prime, which is padded.
SIZES = (4096, 5003)


@st.composite
def rows(draw: st.DrawFn) -> np.ndarray:
    """Rows of few different values, so that there are ties in a group and across groups; some have removed tokens."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([2, 50, 10**6]))
    x = rng.integers(-levels, levels, (3, draw(st.sampled_from(SIZES)))).astype(np.float32)
    x[1, rng.random(x.shape[1]) < 0.9] = LOWEST
    return x


@settings(max_examples=25)
@given(rows(), st.sampled_from([1, 2, 50, 700]))
def test_the_best_are_those_of_a_stable_sort(x: np.ndarray, k: int) -> None:
    values, columns = (np.asarray(y) for y in jax.jit(top_k, static_argnums=1)(x, k))
    expected = np.argsort(-x, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(columns, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(x, expected, axis=1))
    np.testing.assert_array_equal(first_best(jnp.asarray(x)), x.argmax(axis=1))


def test_padding_is_never_chosen() -> None:
    empty = jnp.full((1, 5003), LOWEST)
    assert int(first_best(empty)[0]) == 0
    assert int(first_best(jnp.full((1, 5003), jnp.nan))[0]) < 5003
    assert int(top_k(empty, 60)[1].max()) == 59


@settings(max_examples=20)
@given(rows(), st.sampled_from([1e-4, 0.1, 5.0]))
def test_entropy_and_weight_are_those_of_float64(x: np.ndarray, scale: float) -> None:
    x = np.where(x == LOWEST, LOWEST, x * np.float32(scale / 10))
    shifted = x.astype(np.float64) - x.max(axis=1, keepdims=True)
    weights = np.exp(shifted)
    p = weights / weights.sum(axis=1, keepdims=True)
    expected = np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0).sum(axis=1)
    np.testing.assert_allclose(negative_entropy(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(weigh(jnp.asarray(x))[1], weights.sum(axis=1), rtol=1e-5)


def test_entropy_of_the_farthest_logits() -> None:
    """What is removed weighs nothing, however large the rest; a row of which all is removed is flat."""
    x = np.full((3, 8), LOWEST, np.float32)
    x[0, :2], x[1, 3] = 1e30, 1e30
    np.testing.assert_allclose(negative_entropy(jnp.asarray(x)), [-np.log(2), 0, -np.log(8)], rtol=1e-6)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 3.0, 20.0]))
def test_divergence_is_that_of_float64_where_all_tokens_are_kept(seed: int, scale: float) -> None:
    logits = np.random.default_rng(seed).normal(size=(2, 3, 8)).astype(np.float32) * scale
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True).astype(np.float64))
    p, q = shares / shares.sum(axis=-1, keepdims=True)
    expected = (p * (np.log(p + 1e-12) - np.log(q + 1e-12))).sum(axis=-1)
    now, before = (likeliest(jnp.asarray(x), 10) for x in logits)
    assert now.columns.shape == (3, 10) and int(now.columns[0, 9]) == -1
    np.testing.assert_allclose(divergence(now, before), expected, rtol=1e-4, atol=1e-5)


def test_divergence_of_a_few_tokens_tells_what_moved() -> None:
    """Between a flat row of 1,000 tokens, two sure of one token each, and one that is nearly one of those."""
    rows = np.zeros((4, 1000), np.float32)
    rows[1, 7], rows[2, 900], rows[3, 900], rows[3, 8] = 12, 12, 11.9, 3
    few = likeliest(jnp.asarray(rows), 4)
    p = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True, dtype=np.float64)
    for i, j in np.ndindex(4, 4):
        found = float(divergence(*(jax.tree.map(lambda x, k=k: x[k], few) for k in (i, j))))
        exact = (p[i] * np.log(p[i] / p[j])).sum()
        if i == 0:
            assert found <= exact + 1e-4  # nothing is sure there
        else:
            assert found == pytest.approx(exact, rel=0.1, abs=1e-4), (i, j)
    assert isinstance(few, Likeliest)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_nucleus_in_the_remnant_is_the_nucleus(temperature: float) -> None:
    """Peaked rows are decided on the remnant, flat ones on all tokens: both as without the remnant, in any company."""
    rng = np.random.default_rng(0)
    peaked, flat = (rng.normal(size=(4, 8 * REMNANT)).astype(np.float32) * scale for scale in (6.0, 0.1))
    config = SamplerConfig(filters=Filters(temperature, top_p=0.9))
    values, ids, enough = config.filters.remnant(jnp.asarray(np.concatenate([peaked, flat])))  # type: ignore[misc]
    assert enough.tolist() == [True] * 4 + [False] * 4
    kept, _ = config.filters.keep(jnp.asarray(peaked))
    for row in range(4):
        remnant = {int(i) for i, v in zip(ids[row], values[row], strict=True) if v > LOWEST}
        assert remnant == set(np.flatnonzero(np.asarray(kept[row]) > LOWEST).tolist())

    def decided(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        keys = jax.random.split(jax.random.key(1), 8)[: len(x)] if temperature else None
        token, confidence = decide(jnp.asarray(x), None, jnp.ones(len(x)), keys, config)
        return np.asarray(token), np.asarray(confidence)

    alone, mixed = decided(peaked), decided(np.concatenate([peaked, flat]))
    np.testing.assert_array_equal(alone[0], mixed[0][:4])
    np.testing.assert_array_equal(alone[1], mixed[1][:4])
    if not temperature:
        np.testing.assert_array_equal(mixed[0], np.concatenate([peaked, flat]).argmax(axis=1))


def test_a_rule_of_ones_own_has_no_remnant() -> None:
    class Odd(Filters):
        def keep(self, logits: jax.Array) -> tuple[jax.Array, jax.Array | None]:
            return jnp.where(jnp.arange(logits.shape[-1]) % 2 == 1, logits, LOWEST), None

    assert Odd(top_p=0.9).remnant(jnp.zeros((1, 8 * REMNANT))) is None
    assert Filters(top_p=0.9, top_k=50).remnant(jnp.zeros((1, 8 * REMNANT))) is None


@given(st.integers(1, 4096), st.sampled_from([(8192, 6, 8), (176264, 12, 16)]))
def test_some_size_of_rest_suits_every_rest(chunk: int, vocabulary: tuple[int, int, int]) -> None:
    columns, most, part = vocabulary
    sizes = rest_sizes(chunk, columns)
    assert sizes[-1] == chunk and len(sizes) <= most
    for rest in {1, chunk // 3 + 1, chunk}:
        size = min(size for size in sizes if size >= rest)
        assert size <= max(2 * rest, chunk // part, 1)


def test_a_row_is_scored_alike_however_many_are_scored_beside_it():
    """To the last bit: a product of matrices of another size would be rounded otherwise."""
    rng, shape = np.random.default_rng(0), (8, 64)
    hidden, weights = (jnp.asarray(rng.standard_normal(size), jnp.float32) for size in ((*shape, 256), (256, 600)))
    code = Compiled(SamplerConfig(), 256, 512, Span(0, 600, True)).steady(32)
    assert (code.chunk, code.capacity, code.rest) == (32, 512, (32,))
    tables = RowTables(jnp.zeros(shape, jnp.int32), None, None, jnp.ones(shape, jnp.float32), None)
    sources = [jnp.arange(hidden[..., 0].size).reshape(shape)]

    @jax.jit
    def scored(eligible):
        given = (
            lambda x: x @ weights,
            hidden,
            sources,
            eligible,
            tables,
            599,
            code.config,
            code.chunk,
            code.capacity,
            code.span,
        )
        return score_rows(*given, code.rest)[:2]

    few = np.arange(64)[None, :] < 16 * (np.arange(8) == 3)[:, None]
    alone = scored(few)
    for many in (few | (np.arange(64) < 16), np.ones(shape, bool)):
        for one, other in zip(alone, scored(many), strict=True):
            np.testing.assert_array_equal(one[3, :16], other[3, :16])
