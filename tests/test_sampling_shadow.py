"""Tokens judged by masks beside the row that do not see them, against one dense pass over row and masks in numpy."""

import dataclasses

import jax
import numpy as np
import pytest
from reference_sampler import reference_sample, row_of
from sampling_toys import VOCABULARY, make_toy, toy_denoiser
from test_sampling_caches import PARAMS, RAGGED, SHORT, SMALL, small, tokens_of

from omnidiff_jax.errors import UserError
from omnidiff_jax.sampling import (
    Blocks,
    Guidance,
    MaskgitPlus,
    ReleasedGuidance,
    Revise,
    SamplerConfig,
    ShadowBlock,
    Threshold,
    Verify,
    film,
    sample,
    unconditional_canvas,
)

MASK = VOCABULARY.mask
DOUBTS = SamplerConfig(
    reveal=Revise(least=0.5, keep=0.3, times=2), confidence=MaskgitPlus(), blocks=Blocks(7), rows_per_chunk=1,
    cache=ShadowBlock(),
)  # fmt: skip
WEIGHTS = jax.tree.map(lambda x: np.asarray(x, np.float64), PARAMS["backbone"])


def normed(x, scale):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + SMALL.norm_epsilon) * scale


def dense(tokens, positions, visible):
    """Logits float64 [n, V] of a row whose position i sees j where `visible` bool [n, n]."""
    half = SMALL.head_dim // 2
    angles = positions[:, None, None] / SMALL.rope_theta ** (np.arange(half) / half)

    def turned(x):
        first, second = x[..., :half], x[..., half:]
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    x, layers = WEIGHTS["embedding"][tokens], WEIGHTS["layers"]
    for n in range(SMALL.layers):
        layer = jax.tree.map(lambda a, n=n: a[n], layers)
        y, attention, mlp = normed(x, layer["attention_norm"]["scale"]), layer["attention"], layer["mlp"]
        q, k, v = (np.einsum("nd,dhw->nhw", y, attention[w]["kernel"]) + attention[w]["bias"] for w in
                   ("query", "key", "value"))  # fmt: skip
        k, v = (np.repeat(a, SMALL.heads // SMALL.kv_heads, axis=1) for a in (turned(k), v))
        scores = np.einsum("qhw,khw->hqk", turned(q), k) / np.sqrt(SMALL.head_dim)
        weights = np.exp(np.where(visible, scores, -np.inf) - scores.max(axis=-1, keepdims=True))
        y = np.einsum("hqk,khw->qhw", weights / weights.sum(axis=-1, keepdims=True), v)
        x = x + np.einsum("qhw,hwd->qd", y, attention["out"]["kernel"])
        y = normed(x, layer["mlp_norm"]["scale"])
        gate = y @ mlp["gate"]["kernel"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ mlp["up"]["kernel"])) @ mlp["down"]["kernel"]
    return normed(x, WEIGHTS["norm"]["scale"]) @ WEIGHTS["head"]


def plain(tokens):
    return dense(tokens, np.arange(len(tokens)), np.ones((len(tokens),) * 2, bool))


def shadow(tokens, places):
    """Logits of masks at `places` beside a row that do not see the tokens after them: row and masks in one pass."""
    length, count = len(tokens), len(tokens) + len(places)
    visible = np.ones((count, count), bool)
    visible[:length, length:] = False
    for at, place in enumerate(places):
        visible[length + at, :length] = np.arange(length) != place + 1
    row = np.append(tokens, [MASK] * len(places))
    return dense(row, np.append(np.arange(length), places), visible)[length:]


def judge(tokens, first, last):
    """Logits at every position of a row, those of its running block by the masks beside it."""
    places, rows = np.arange(first - 1, last), plain(tokens)
    rows[places] = shadow(tokens, places)
    return rows


def test_equals_plain_twin():
    """Tokens, steps and history, under guidance, of each row alone."""
    config = dataclasses.replace(DOUBTS, guidance=Guidance(0.5))
    other, again, others = unconditional_canvas(RAGGED, SHORT, VOCABULARY, multiple=64), 0, 0
    result = sample(small(), RAGGED, config, unconditional=other)
    np.testing.assert_array_equal(film(RAGGED, result)[-1], result.tokens)
    for b in range(3):
        example, base = (row_of(canvas, b, VOCABULARY.size) for canvas in (RAGGED, other))
        trace = reference_sample(plain, example, config, 0, MASK, 1, (plain, base), judge)
        seen = reference_sample(plain, example, config, 0, MASK, 1, (plain, base))
        n = len(trace.tokens)
        np.testing.assert_array_equal(result.tokens[b, :n], trace.tokens)
        np.testing.assert_array_equal(result.commit_step[b, :n], trace.commit_step)
        np.testing.assert_allclose(result.confidence[b, :n], trace.confidence, atol=1e-4)
        assert [k for k in result.committed[b].tolist() if k] == trace.committed
        again += sum(trace.committed) - example.length
        others += (trace.confidence != seen.confidence).sum()
    assert again > 0 and others > 0  # judged otherwise than by what is seen


def test_masks_beside_a_row_see_all_but_one():
    """Whatever the backend of the row itself."""
    denoiser, tokens = small(scan_layers=False, attention="rows"), np.array(RAGGED.inputs.tokens)
    tokens[0, 21:30], tokens[1, 7:9], tokens[2, 15] = 3, 2, 4
    places = np.array([[22, 25, 31, 64], [7, 8, 10, 11], [13, 64, 15, 14]], np.int32)

    def run(tokens):
        context = denoiser.prepare(PARAMS, RAGGED)
        _, kept = denoiser.keep(PARAMS, tokens, context, None)
        return denoiser.shadow(PARAMS, np.full((3, 1), MASK), context, kept, places, places + 1)

    found = np.asarray(jax.jit(run)(tokens)) @ PARAMS["backbone"]["head"]
    for b, n in enumerate((32, 12, 22)):
        real = places[b] < 64
        expected = shadow(tokens[b, :n], places[b][real])
        np.testing.assert_allclose(found[b][real], expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_served_is_refused():
    for changes, message in (
        (
            {"reveal": Threshold()},
            "tokens that reveal.kind = 'threshold' does not look at again; set reveal.kind = 'rev",
        ),
        ({"drafting": Verify()}, "cache.kind = 'shadow'"),
    ):
        with pytest.raises(UserError, match=message) as refusal:
            dataclasses.replace(DOUBTS, **changes)
        assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="columns = -1"):
        ShadowBlock(columns=-1)
    with pytest.raises(UserError, match="cache.columns = 4 is less than the 8 that blocks need; set 0"):
        tokens_of(ShadowBlock(columns=4), DOUBTS)
    with pytest.raises(UserError, match="needs a denoiser with `keep` and `shadow`"):
        tokens_of(DOUBTS.cache, DOUBTS, denoiser=toy_denoiser(make_toy(0)))
    other = unconditional_canvas(RAGGED, SHORT, VOCABULARY, multiple=64)
    with pytest.raises(UserError, match=r"guidance asks unconditional rows.*set guidance.form = 'aligned'"):
        sample(small(), RAGGED, dataclasses.replace(DOUBTS, guidance=ReleasedGuidance(1.0)), unconditional=other)
