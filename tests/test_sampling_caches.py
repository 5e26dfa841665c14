"""Caches of the sampler on a small transformer: exact where they must be, cheaper where they say so."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from jax.sharding import NamedSharding
from sampling_toys import VOCABULARY, make_toy, toy_denoiser

from omnidiff_jax.config import build, to_dict
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.backbone import BackboneConfig
from omnidiff_jax.models.omni import OmniConfig, OmniModel, init_params
from omnidiff_jax.sampling import (
    Blocks,
    Cache,
    DualCache,
    FeatureCache,
    Guidance,
    Prompt,
    PromptCache,
    ReleasedGuidance,
    SamplerConfig,
    blank,
    build_canvas,
    module_denoiser,
    sample,
    unconditional_canvas,
)
from omnidiff_jax.sharding.mesh import MeshConfig, batch_sharding, make_mesh
from omnidiff_jax.sharding.rules import logical_rules, param_specs

SMALL = BackboneConfig(
    vocab_size=VOCABULARY.size, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, hidden=64, rope_theta=1e3,
    init_stddev=0.3, embed_stddev=1.0, residual_stddev=0.3, dtype="float32", remat="none",
)  # fmt: skip
PARAMS = meta.unbox(jax.jit(init_params, static_argnums=0)(OmniConfig(SMALL, speech_encoder=None), jax.random.key(0)))
# Rows of logits one by one: fewer branches to compile.
BLOCKS = SamplerConfig(blocks=Blocks(4), rows_per_chunk=1)


def small(**changes):
    return module_denoiser(OmniModel(OmniConfig(dataclasses.replace(SMALL, **changes), speech_encoder=None)), PARAMS)


def lay_out(*sizes, multiple=64):
    """Rows of (prompt, answer) tokens."""
    rng = np.random.default_rng(1)
    prompts = [Prompt(rng.integers(0, 6, n).astype(np.int32)) for n, _ in sizes]
    return build_canvas(prompts, [blank(n, VOCABULARY.mask) for _, n in sizes], VOCABULARY, multiple=multiple)


RAGGED = lay_out((20, 12), (7, 5), (13, 9))
SHORT = [Prompt(np.array([1] * n, np.int32)) for n in (3, 9, 1)]


def tokens_of(cache, config=BLOCKS, denoiser=None, canvas=RAGGED, **others):
    return sample(denoiser or small(), canvas, dataclasses.replace(config, cache=cache), **others).tokens


@pytest.fixture(scope="module")
def plain():
    return tokens_of(Cache())


@pytest.mark.parametrize("kind", [PromptCache, DualCache, FeatureCache])
def test_refreshed_at_every_step_it_is_the_default(kind, plain):
    np.testing.assert_array_equal(tokens_of(kind(refresh=1)), plain)


@pytest.mark.parametrize("cache", [PromptCache(refresh=1), DualCache(refresh=1)], ids=lambda x: x.kind)
def test_under_guidance_prompts_may_differ_in_length(cache):
    other = unconditional_canvas(RAGGED, SHORT, VOCABULARY, multiple=64)
    config = dataclasses.replace(BLOCKS, guidance=Guidance(1.5))
    expected = tokens_of(Cache(), config, unconditional=other)
    np.testing.assert_array_equal(tokens_of(cache, config, unconditional=other), expected)
    if cache == PromptCache(refresh=1):
        # Every prompt sees only itself: nothing of it changes, in either canvas.
        prefix = small(attention_mask="prefix")
        exact = tokens_of(Cache(), config, prefix, unconditional=other)
        np.testing.assert_array_equal(tokens_of(PromptCache(refresh=0), config, prefix, unconditional=other), exact)
        assert not np.array_equal(exact, expected)


def passes(denoiser, share=None):
    """Jitted `hidden`, `keep` and `renew` of the ragged canvas, and its context."""
    context = jax.jit(denoiser.prepare)(PARAMS, RAGGED)
    whole = jax.jit(lambda tokens: denoiser.keep(PARAMS, tokens, context, share))
    some = jax.jit(lambda tokens, kept, places: denoiser.renew(PARAMS, tokens, context, kept, places, share))
    return jax.jit(lambda tokens: denoiser.hidden(PARAMS, tokens, context)), whole, some


PLACES = np.array([[19, 20, 25, 30, 64], [6, 8, 64, 64, 64], [12, 13, 14, 15, 21]], np.int32)


def at_places(hidden):
    return np.stack([row[np.minimum(at, 63)] for row, at in zip(np.asarray(hidden), PLACES, strict=True)])


@pytest.mark.parametrize(
    "changes", [{}, {"scan_layers": False, "attention": "rows"}, {"attention": "chunked"}], ids=str
)
def test_what_is_computed_again_is_what_it_would_be(changes):
    hidden, whole, some = passes(small(**changes))
    before = np.array(RAGGED.inputs.tokens)
    after = before.copy()
    after[0, 25], after[1, 8], after[2, 14] = 3, 2, 4  # only where it is computed again
    real = (PLACES < 64)[..., None]
    first, kept = whole(before)
    np.testing.assert_array_equal(first, hidden(before))
    same, _ = some(before, kept, PLACES)
    np.testing.assert_allclose(same * real, at_places(first) * real, rtol=1e-4, atol=1e-5)
    # Other than a pass over everything, as the rest does not know of what was written; the same as its first layer.
    changed, _ = some(after, kept, PLACES)
    assert np.abs((changed - at_places(hidden(after))) * real).max() > 1e-3
    fresh, _ = some(after, whole(after)[1], PLACES)
    np.testing.assert_allclose(fresh * real, at_places(hidden(after)) * real, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
@pytest.mark.parametrize("share", [None, 0.4])
def test_some_positions_on_eight_devices(share):
    """Rows on four of them, heads and kernels in halves: what is kept and what is computed again is the same."""
    canvas = lay_out((20, 12), (7, 5), (13, 9), (3, 20))
    written = np.array(canvas.inputs.tokens)
    written[:, 25] = 3
    places = np.array([[19, 20, 25, 30, 64], [6, 8, 64, 64, 64], [12, 13, 14, 15, 21], [2, 25, 64, 64, 64]], np.int32)
    denoiser, device_mesh = small(), make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))

    def run(params, canvas, written, places):
        context = denoiser.prepare(params, canvas)
        hidden, kept = denoiser.keep(params, canvas.inputs.tokens, context, share)
        return hidden, denoiser.renew(params, written, context, kept, places, share)

    alone = jax.jit(lambda *args: run(*args))(PARAMS, canvas, written, places)
    boxed = jax.eval_shape(lambda: init_params(OmniConfig(SMALL, speech_encoder=None), jax.random.key(0)))
    specs = param_specs(boxed, "fsdp_tensor", device_mesh)
    laid = jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(device_mesh, spec)), PARAMS, specs)
    rows = jax.device_put((canvas, written, places), batch_sharding(device_mesh))
    with jax.set_mesh(device_mesh), logical_rules("fsdp_tensor"):
        spread = jax.jit(lambda *args: run(*args))(laid, *rows)
    keys = spread[1][1].key
    assert len(keys.sharding.device_set) == 8 and not keys.sharding.is_fully_replicated
    real = np.asarray(canvas.inputs.segment_ids > 0)[..., None]
    np.testing.assert_allclose(spread[0] * real, alone[0] * real, rtol=1e-4, atol=1e-5)
    asked = (places < 64)[..., None]
    np.testing.assert_allclose(spread[1][0] * asked, alone[1][0] * asked, rtol=1e-4, atol=1e-5)


def test_features_follow_what_turned():
    hidden, whole, some = passes(small(scan_layers=False), share=0.4)
    before = np.array(RAGGED.inputs.tokens)
    first, kept = whole(before)
    # Nothing turned: everything is added again as it was.
    same, again = some(before, kept, PLACES)
    real = (PLACES < 64)[..., None]
    np.testing.assert_allclose(same * real, at_places(first) * real, rtol=1e-4, atol=1e-5)
    after = before.copy()
    after[0, 25], after[1, 8] = 3, 2
    _, renewed = some(after, kept, PLACES)
    turned = np.abs(np.asarray(renewed.mlp[0]) - np.asarray(again.mlp[0])).max(axis=-1) > 1e-4
    # What was written turned the most; of 4 and 2 places ceil(0.4 * n) are computed. In the last row nothing is new.
    assert turned[0, 25] and turned[1, 8] and turned.sum(axis=1).tolist() == [2, 1, 0]


def test_all_features_are_the_prompt_cache():
    cached = tokens_of(PromptCache(refresh=4))
    np.testing.assert_array_equal(tokens_of(FeatureCache(refresh=4, answer_refresh=0, share=1)), cached)


@pytest.mark.parametrize(
    "cache", [DualCache(), FeatureCache(refresh=5, answer_refresh=2, share=0.3)], ids=lambda x: x.kind
)
def test_an_answer_does_not_depend_on_its_neighbours(cache):
    together = tokens_of(cache)
    for row, sizes in ((1, (7, 5)), (2, (13, 9))):
        alone = lay_out((20, 12), (7, 5), (13, 9))
        keep = [row]
        alone = jax.tree.map(lambda x, keep=keep: x[keep], dataclasses.replace(alone, allowed=None))
        got = tokens_of(dataclasses.replace(cache, columns=32), canvas=alone)
        np.testing.assert_array_equal(got[0, : sum(sizes)], together[row, : sum(sizes)])
    assert not (np.asarray(together) == VOCABULARY.mask).any()


def test_the_prompt_cache_is_exact_where_prompts_see_only_themselves(plain):
    prefix = small(attention_mask="prefix")
    expected = tokens_of(Cache(), denoiser=prefix)
    np.testing.assert_array_equal(tokens_of(PromptCache(refresh=0), denoiser=prefix), expected)
    assert not np.array_equal(expected, plain)
    hidden, whole, some = passes(prefix)
    before, after = np.array(RAGGED.inputs.tokens), np.array(expected)
    places = np.array([[*range(n - 1, n + 12)] for n in (20, 7, 13)], np.int32)
    places = np.where(places < np.array([[32], [12], [22]]), places, 64)
    found, _ = some(after, whole(before)[1], places)
    for row, at in enumerate(places):
        at = at[at < 64]
        np.testing.assert_allclose(found[row, : len(at)], hidden(after)[row, at], rtol=1e-5, atol=1e-5)


def test_a_step_costs_what_is_computed():
    """Operations of a compiled step, 32 of 256 positions; attention and projections shrink alike."""
    canvas = lay_out((200, 24), multiple=256)
    big = OmniConfig(dataclasses.replace(SMALL, width=64, heads=8, hidden=256, scan_layers=False), speech_encoder=None)
    denoiser = module_denoiser(OmniModel(big), None)
    params = jax.eval_shape(lambda: meta.unbox(init_params(big, jax.random.key(0))))
    context = jax.eval_shape(denoiser.prepare, params, canvas)
    tokens, places = canvas.inputs.tokens, jnp.zeros((1, 32), jnp.int32)

    def cost(function, *arguments):
        return jax.jit(function).lower(params, *arguments).compile().cost_analysis()["flops"]

    whole = cost(denoiser.hidden, tokens, context)
    costs = []
    for share in (None, 0.25):
        _, kept = jax.eval_shape(lambda p, c, share=share: denoiser.keep(p, tokens, c, share), params, context)

        def some(p, c, kept, share=share):
            return denoiser.renew(p, tokens, c, kept, places, share)

        costs.append(cost(some, context, kept) / whole)
    assert costs[0] < 0.16 and costs[1] < 0.08


def test_what_cannot_be_served_is_refused():
    for cls, values, message in (
        (PromptCache, {"refresh": -1}, "refresh = -1"),
        (FeatureCache, {"share": 0.0}, "share = 0.0 must be a number above 0"),
        (FeatureCache, {"share": float("nan")}, "share"),
        (FeatureCache, {"share": 1.5}, "share"),
        (FeatureCache, {"answer_refresh": -2}, "answer_refresh"),
    ):
        with pytest.raises(UserError, match=message):
            cls(**values)
    with pytest.raises(UserError, match=r"config.cache.kind = 'promt'; did you mean 'prompt'"):
        build(SamplerConfig, {"cache": {"kind": "promt"}})
    assert build(SamplerConfig, to_dict(SamplerConfig(cache=FeatureCache(share=0.5)))).cache == FeatureCache(share=0.5)
    with pytest.raises(UserError, match="'dual' needs blocks"):
        tokens_of(DualCache(), SamplerConfig())
    with pytest.raises(UserError, match=r"cache.columns = 4 is less than the 13"):
        tokens_of(PromptCache(columns=4))
    with pytest.raises(UserError, match="needs a denoiser with `keep`"):
        tokens_of(PromptCache(), denoiser=toy_denoiser(make_toy(0)))
    other = unconditional_canvas(RAGGED, SHORT, VOCABULARY, multiple=64)
    released = dataclasses.replace(BLOCKS, guidance=ReleasedGuidance(1.0))
    with pytest.raises(UserError, match="guidance asks what stands before"):
        tokens_of(PromptCache(), released, unconditional=other)
    bare = unconditional_canvas(RAGGED, [SHORT[0]] * 3, VOCABULARY, multiple=64)
    with pytest.raises(UserError, match="guidance asks what stands behind them"):
        tokens_of(PromptCache(), released, unconditional=bare)
    shorter = unconditional_canvas(RAGGED, [SHORT[0]] * 3, VOCABULARY, multiple=64, pad_with_zero_vectors=True)
    with pytest.raises(UserError, match="guidance asks unconditional rows"):
        tokens_of(DualCache(), released, unconditional=shorter)


def test_released_guidance_looks_behind_the_shorter_prompt():
    other = unconditional_canvas(RAGGED, [SHORT[0]] * 3, VOCABULARY, multiple=64, pad_with_zero_vectors=True)
    released = SamplerConfig(guidance=ReleasedGuidance(1.0), rows_per_chunk=1)
    prefix = small(attention_mask="prefix")
    expected = tokens_of(Cache(), released, prefix, unconditional=other)
    np.testing.assert_array_equal(tokens_of(PromptCache(refresh=0), released, prefix, unconditional=other), expected)
