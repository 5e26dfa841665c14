"""Fewer calls than steps: each rule against its plain twin, and what must hold whatever the rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_sampler import doubted, reference_sample, revealed, row_of
from sampling_toys import VOCABULARY, make_toy, toy_denoiser, toy_logits

from experiments.named_model import _decoding_words
from omnidiff_jax.answering.queries import adjusted
from omnidiff_jax.config import build
from omnidiff_jax.errors import UserError
from omnidiff_jax.sampling import (
    Blocks,
    Confidence,
    EntropyBound,
    Filters,
    Guidance,
    Halton,
    Klass,
    MaskgitPlus,
    Prompt,
    PromptCache,
    RandomOrder,
    Repetition,
    Reveal,
    Revise,
    SamplerConfig,
    Stable,
    Stopping,
    Threshold,
    TopkMargin,
    blank,
    build_canvas,
    film,
    known,
    sample,
    unconditional_canvas,
)
from omnidiff_jax.sampling.confidence import halton_ranks
from omnidiff_jax.sampling.guidance import stack_canvases
from omnidiff_jax.sampling.loop import trace_sampler
from omnidiff_jax.sampling.reveal import Look
from omnidiff_jax.tasks.registry import Decoding

MASK = VOCABULARY.mask
LENGTHS = (9, 12, 5)
STEPS = 8


def canvas_of():
    """Three ragged prompts and answers; the first has a known token at either end."""
    prompts = [Prompt(np.arange(n, dtype=np.int32)) for n in (1, 4, 2)]
    answers = [known([1]) + blank(LENGTHS[0], MASK) + known([2]), *(blank(n, MASK) for n in LENGTHS[1:])]
    return build_canvas(prompts, answers, VOCABULARY, example_ids=[11, 4000000000, 7], multiple=16)


RULES = {
    "threshold": SamplerConfig(steps=STEPS, reveal=Threshold(least=0.7)),
    "threshold_most": SamplerConfig(reveal=Threshold(least=0.5, most=2), confidence=MaskgitPlus(), blocks=Blocks(5)),
    "threshold_noise": SamplerConfig(
        steps=STEPS,
        reveal=Threshold(least=0.5),
        confidence=TopkMargin(0.3, "linear"),
        filters=Filters(0.8),
        blocks=Blocks(4),
    ),
    "entropy_bound": SamplerConfig(reveal=EntropyBound(gamma=0.5)),
    "entropy_bound_noise": SamplerConfig(
        steps=STEPS, reveal=EntropyBound(gamma=2.0, most=3), confidence=Confidence(0.5), stopping=Stopping(2)
    ),
    "stable": SamplerConfig(reveal=Stable(least=0.3, change=0.3, during=1)),
    "stable_blocks": SamplerConfig(
        reveal=Stable(least=0.2, change=0.5, during=2), blocks=Blocks(6), confidence=MaskgitPlus()
    ),
    "klass": SamplerConfig(
        reveal=Klass(least=0.2, drift=0.1, during=2, among=64), confidence=MaskgitPlus(), filters=Filters(top_k=3)
    ),
    "klass_blocks": SamplerConfig(
        reveal=Klass(least=0.1, drift=0.3, during=1, most=2, among=64), blocks=Blocks(6), filters=Filters(0.7)
    ),
    "revise": SamplerConfig(reveal=Revise(least=0.5, keep=0.9, times=2), blocks=Blocks(7), stopping=Stopping(2)),
}


@pytest.mark.parametrize("name", RULES)
def test_equals_plain_twin(name):
    """Tokens, steps and history of the loop are the twin's; every position is filled in T steps at most; each answer
    is the one that it gets alone."""
    config, canvas, fewer, again = RULES[name], canvas_of(), 0, 0
    for seed in range(3):
        toy = make_toy(seed, 6.0)
        result = sample(toy_denoiser(toy), canvas, config, seed)
        history = film(canvas, result)
        for b, length in enumerate(LENGTHS):
            example = row_of(canvas, b, VOCABULARY.size)
            trace = reference_sample(lambda tokens, toy=toy: toy_logits(toy, tokens), example, config, seed, MASK, 1)
            n = len(trace.tokens)
            np.testing.assert_array_equal(result.tokens[b, :n], trace.tokens)
            np.testing.assert_array_equal(result.commit_step[b, :n], trace.commit_step)
            np.testing.assert_allclose(result.confidence[b, :n], trace.confidence, atol=1e-4)
            assert [k for k in result.committed[b].tolist() if k] == trace.committed
            np.testing.assert_array_equal(history[-1, b], result.tokens[b])
            calls, most = int(result.steps[b]), min(config.steps or length, length)
            assert calls == len(trace.committed) <= max(most, 4)
            assert not (np.asarray(result.tokens[b]) == MASK).any()
            fewer += most - calls
            again += int(result.committed[b].sum()) - length
    alone = sample(toy_denoiser(toy), jax.tree.map(lambda x: x[1:2], canvas), config, seed)
    np.testing.assert_array_equal(alone.tokens[0], result.tokens[1])
    assert alone.steps[0] == result.steps[1]
    assert fewer > 0
    assert again > 0 if name == "revise" else again == 0 or config.stopping.end_id is not None


def test_the_ends_of_the_ranges():
    """Above everything is the schedule, below everything one step; without a budget of entropy one at a time."""
    canvas, denoiser = canvas_of(), toy_denoiser(make_toy(0))
    plain, once = sample(denoiser, canvas, SamplerConfig()), sample(denoiser, canvas, SamplerConfig(steps=1))

    def revealed_by(reveal):
        return sample(denoiser, canvas, SamplerConfig(reveal=reveal))

    for reveal in (Threshold(least=1.0), EntropyBound(gamma=0.0), Revise(least=1.0, keep=0.0)):
        jax.tree.map(np.testing.assert_array_equal, revealed_by(reveal), plain)
    for reveal in (Threshold(least=0.0), EntropyBound(gamma=1e6), Revise(least=0.0)):
        result = revealed_by(reveal)
        np.testing.assert_array_equal(result.tokens, once.tokens)
        assert result.steps.tolist() == [1, 1, 1] and result.committed[:, 0].tolist() == list(LENGTHS)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.sampled_from([0, 1, 3]), st.sampled_from([0.0, 0.3, 0.8]))
def test_rules_on_tiny_numbers(seed, quota, most, bound):
    """Ties, positions that are not eligible and answers that are done, against the twin's loops."""
    rng = np.random.default_rng(seed)
    eligible = rng.random((2, 6)) < 0.7
    written = ~eligible & (rng.random((2, 6)) < 0.7)
    quotas = np.minimum(np.maximum(quota, 1), eligible.sum(axis=1, keepdims=True))
    looks, history = [], [[], []]
    for _ in range(3):
        tokens, sure = rng.integers(0, 2, (2, 6)), np.float32(rng.integers(0, 5, (2, 6)) / 4)
        looks.append((tokens, sure))
        for b in range(2):
            history[b].append({p: (tokens[b, p], sure[b, p], sure[b, p]) for p in np.flatnonzero(eligible[b])})
    for reveal in (
        Reveal(),
        Threshold(least=bound, most=most),
        EntropyBound(gamma=bound, most=most),
        Stable(least=bound, most=most, change=bound, during=1),
        Revise(least=bound, most=most, keep=bound),
    ):
        config = SamplerConfig(
            reveal=reveal, confidence=Confidence() if reveal.kind == "entropy_bound" else TopkMargin()
        )
        sign = -1 if reveal.kind == "entropy_bound" else 1
        standing = np.zeros((2, 6), np.int32)
        state = reveal.init(jnp.asarray(eligible))
        for tokens, sure in looks:
            arrays = eligible, written, standing, tokens, sign * sure, sure, sign * sure, quotas
            decision = reveal.decide(Look(*map(jnp.asarray, arrays)), state)
            state = decision.state
        for b in range(2):
            rows = [{p: (t, sign * c, sign * o) for p, (t, c, o) in step.items()} for step in history[b]]
            expected = revealed(config, rows[-1], quotas[b, 0], rows) if rows[-1] else []
            assert sorted(expected) == np.flatnonzero(decision.reveal[b]).tolist(), reveal
            looked = {p: (tokens[b, p], sure[b, p], 0.0) for p in np.flatnonzero(written[b])}
            masked = sorted(doubted(config, looked, standing[b])) if reveal.kind == "revise" else []
            assert masked == np.flatnonzero(decision.mask[b]).tolist(), reveal


# ---- the order of pictures ------------------------------------------------------------------------------------


@given(st.integers(1, 24), st.integers(1, 24))
def test_halton_visits_every_cell_once(rows, columns):
    assert sorted(halton_ranks(rows, columns)) == list(range(rows * columns))


def test_halton_by_hand_and_spread_out():
    """(1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9), (5/8, 7/9), ... on a grid of 4 x 4."""
    first = np.argsort(halton_ranks(4, 4))[:5]
    assert [divmod(int(cell), 4) for cell in first] == [(2, 1), (1, 2), (3, 0), (0, 1), (2, 3)]
    sixteenth = np.argsort(halton_ranks(16, 16))[:16]
    quarters = (sixteenth // 16 // 4) * 4 + sixteenth % 16 // 4
    assert len(set(quarters.tolist())) >= 12


def test_halton_orders_a_picture():
    canvas = build_canvas(
        [Prompt(np.array([1], np.int32))] * 2,
        [known([VOCABULARY.begin_image]) + blank(9, MASK) + known([VOCABULARY.end_image])] * 2,
        VOCABULARY,
        multiple=16,
        rows=3,
    )
    denoiser = toy_denoiser(make_toy(0))
    longer = unconditional_canvas(canvas, [Prompt(np.ones(20, np.int32))] * 2, VOCABULARY, multiple=16)
    config = SamplerConfig(confidence=Halton(), guidance=Guidance(1.0))
    result = sample(denoiser, canvas, config, unconditional=longer)
    trace_sampler(denoiser, stack_canvases(canvas, longer), config, rows=3, answer=9)
    for b in range(2):
        np.testing.assert_array_equal(result.commit_step[b, 2:11], halton_ranks(3, 3))
    with pytest.raises(UserError, match=r"^confidence.kind = 'halton' .* 9 positions .* columns = 2; set"):
        sample(denoiser, canvas, SamplerConfig(confidence=Halton(columns=2)))
    with pytest.raises(UserError, match="12 positions to generate are no square; set confidence.columns"):
        sample(denoiser, canvas_of(), SamplerConfig(confidence=Halton()))


# ---- settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reveal": Threshold(), "confidence": RandomOrder()}, "reveal.kind = 'threshold' .*'origin' has an order"),
        ({"reveal": Klass(), "confidence": RandomOrder()}, "reveal.kind = 'klass' .*'origin' has an order"),
        ({"reveal": Stable(), "confidence": Halton()}, "reveal.kind = 'stable' .*'halton' has an order"),
        ({"reveal": EntropyBound(), "confidence": MaskgitPlus()}, "set confidence.kind = 'entropy'"),
        ({"reveal": Revise(), "repetition": Repetition(1.2)}, "set repetition.penalty = 1"),
    ],
)
def test_what_makes_no_sense_together_is_refused(changes, message):
    with pytest.raises(UserError, match=message) as refusal:
        SamplerConfig(**changes)
    assert "\n" not in str(refusal.value)


def test_requests_and_command_lines_set_it():
    decoding = adjusted(Decoding(), {"sampler.reveal.kind": "threshold", "sampler.reveal.least": 0.8})
    assert decoding.sampler.reveal == Threshold(least=0.8)
    back = adjusted(decoding, {"sampler": {"reveal": {"kind": "schedule"}}})
    assert type(back.sampler.reveal) is Reveal
    assert adjusted(Decoding(), {"sampler.cache.kind": "prompt"}).sampler.cache == PromptCache()
    with pytest.raises(UserError, match=r"unknown key settings.sampler.reveel; did you mean 'reveal'"):
        adjusted(Decoding(), {"sampler.reveel.kind": "threshold"})
    with pytest.raises(UserError, match=r"settings.sampler.reveal.kind = 'treshold'; did you mean 'threshold'"):
        adjusted(Decoding(), {"sampler.reveal.kind": "treshold"})
    with pytest.raises(UserError, match="settings.sampler: reveal.kind = 'entropy_bound' adds up entropies"):
        adjusted(decoding, {"sampler": {"reveal": {"kind": "entropy_bound"}, "confidence": {"kind": "maskgit_plus"}}})
    words = ["kind=stable", "during=3"]
    groups = _decoding_words([f"--config.decoding.t2i.sampler.reveal.{word}" for word in words])
    assert build(SamplerConfig, groups["t2i"]["sampler"]).reveal == Stable(during=3)
