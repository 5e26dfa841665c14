"""Restricted decoding: the same answers, from the logits of the ids that can stand there alone."""

import dataclasses

import numpy as np
import pytest
from sampling_toys import VOCABULARY, make_toy, toy_denoiser

from omnidiff_jax.sampling import (
    Candidates,
    Confidence,
    Filters,
    Guidance,
    Prompt,
    Repetition,
    RestrictedCandidates,
    SamplerConfig,
    blank,
    build_canvas,
    sample,
    unconditional_canvas,
)
from omnidiff_jax.sampling.candidates import Span
from omnidiff_jax.sampling.canvas import AllowedSets

SETS = AllowedSets(
    VOCABULARY, image=[VOCABULARY.image], speech=[VOCABULARY.speech, VOCABULARY.pad], either=[VOCABULARY.image, 0]
)


def canvases(kind: str):
    rng = np.random.default_rng(5)
    prompts, others = (
        [Prompt(rng.integers(0, 6, n).astype(np.int32)) for n in lengths] for lengths in ((3, 5), (2, 2))
    )
    answers = [blank(n, VOCABULARY.mask, SETS[kind]) for n in (9, 6)]
    canvas = build_canvas(prompts, answers, VOCABULARY, SETS, multiple=8)
    return canvas, unconditional_canvas(canvas, others, VOCABULARY, multiple=8)


def watched(denoiser):
    """The denoiser, and the widths of the logits that were asked of it."""
    widths = []

    def logits(params, rows, start=0, stop=None):
        found = denoiser.logits(params, rows, start, stop)
        widths.append(found.shape[-1])
        return found

    return denoiser.replace(logits=logits), widths


@pytest.mark.parametrize("kind", ["image", "speech", "either", "any"])
@pytest.mark.parametrize("confidence", ["entropy", "maskgit_plus", "topk_margin"])
def test_restricted_answers_are_the_same(kind, confidence):
    config = SamplerConfig(
        confidence=Confidence.named(confidence)(),
        filters=Filters(0.0, 0.9, 3),
        repetition=Repetition(1.3),
        guidance=Guidance(1.0),
    )
    canvas, other = canvases(kind)
    denoiser, widths = watched(toy_denoiser(make_toy(2)))
    plain = sample(denoiser, canvas, config, unconditional=other)
    assert max(widths) == VOCABULARY.size
    widths.clear()
    restricted = dataclasses.replace(config, candidates=RestrictedCandidates())
    other_way = sample(denoiser, canvas, restricted, unconditional=other)
    np.testing.assert_array_equal(plain.tokens, other_way.tokens)
    np.testing.assert_array_equal(plain.commit_step, other_way.commit_step)
    np.testing.assert_allclose(plain.confidence, other_way.confidence, atol=1e-5)
    if kind == "image":
        # The first width is the vocabulary's, asked without computing anything.
        assert set(widths[1:]) == {len(VOCABULARY.image)}


def test_the_span_is_the_hull_of_the_sets_in_play():
    image, pad = VOCABULARY.image, VOCABULARY.pad
    rule, table = RestrictedCandidates(), SETS.table
    assert rule.span(table, np.full(4, SETS["image"])) == Span(image.start, image.stop, True)
    speech = rule.span(table, np.array([SETS["speech"]]))
    low, high = min(pad, VOCABULARY.speech.start), max(pad + 1, VOCABULARY.speech.stop)
    assert speech == Span(low, high, high - low == len(VOCABULARY.speech) + 1)
    assert rule.span(table, np.array([SETS["either"]])) == Span(0, image.stop, False)
    assert rule.span(table, np.array([SETS["image"], SETS["any"]])) == Span(0, VOCABULARY.size, False)
    assert rule.span(None, np.zeros(3, int)) is None and rule.span(table, np.zeros(0, int)) is None
    assert Candidates().span(table, np.full(4, SETS["image"])) is None
