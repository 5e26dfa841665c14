"""The jitted loop against its plain twin, and what must hold whatever the settings."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from reference_sampler import reference_sample, row_of
from sampling_toys import VOCABULARY, make_toy, toy_denoiser, toy_logits

from omnidiff_jax.config import build
from omnidiff_jax.errors import UserError
from omnidiff_jax.rng import stream, streams
from omnidiff_jax.sampling import (
    AllowedSets,
    Blocks,
    Candidates,
    Confidence,
    CosineSchedule,
    Filters,
    Guidance,
    Position,
    Prefill,
    Prompt,
    RandomOrder,
    ReleasedCandidates,
    Repetition,
    SamplerConfig,
    Schedule,
    Stopping,
    blank,
    build_canvas,
    film,
    infill,
    known,
    sample,
    unconditional_canvas,
)
from omnidiff_jax.sampling.loop import _run

MASK = VOCABULARY.mask
ALLOWED = AllowedSets(VOCABULARY, image=[VOCABULARY.image], text=[VOCABULARY.text, VOCABULARY.im_end])
ROWS = 3


def built(group, **drawn):
    """Strategies of a group, from its keys in a config."""
    return st.builds(lambda **settings: build(group, settings), **drawn)


configs = st.builds(
    SamplerConfig,
    steps=st.sampled_from([None, 1, 4, 9]),
    steps_per_token=st.sampled_from([1.0, 0.5]),
    schedule=built(Schedule, kind=st.sampled_from(["linear", "cosine"])),
    confidence=built(
        Confidence,
        kind=st.sampled_from(["entropy", "maskgit_plus", "topk_margin", "origin"]),
        temperature=st.sampled_from([0.0, 0.3]),
        anneal=st.sampled_from(["constant", "linear"]),
    ),
    filters=st.builds(
        Filters,
        temperature=st.sampled_from([0.0, 0.8]),
        top_p=st.sampled_from([1.0, 0.9, 0.5]),
        top_k=st.sampled_from([0, 3, 50]),
    ),
    repetition=built(Repetition, penalty=st.sampled_from([1.0, 1.5]), scope=st.sampled_from(["generated", "released"])),
    position=built(Position, form=st.sampled_from(["off", "paper", "released"]), free=st.sampled_from([0, 4])),
    guidance=built(Guidance, scale=st.sampled_from([0.0, 1.5]), form=st.sampled_from(["aligned", "released"])),
    blocks=built(Blocks, size=st.sampled_from([0, 5]), form=st.sampled_from(["even", "released"])),
    candidates=st.sampled_from([Candidates(), ReleasedCandidates()]),
    rows_per_chunk=st.sampled_from([7, 256]),
    stopping=st.builds(Stopping, end_id=st.sampled_from([None, 2, 4])),
)


def answers_of(rng: np.random.Generator) -> list:
    """A blank image between known tokens, a pre-filled text, an infilled row."""
    image = known([VOCABULARY.begin_image]) + blank(9, MASK, ALLOWED["image"]) + known([VOCABULARY.end_image])
    spoken = Prefill(VOCABULARY.begin_audio).apply(blank(14, MASK), before=ALLOWED["text"])
    hole = infill(rng.integers(0, 6, 8), rng.random(8) < 0.5, MASK)
    return [image, spoken, hole]


def canvases(seed: int) -> tuple:
    rng = np.random.default_rng(seed)
    prompts = [Prompt(rng.integers(0, 6, n).astype(np.int32)) for n in (1, 6, 3)]
    shorter = [Prompt(rng.integers(0, 6, n).astype(np.int32)) for n in (1, 2, 3)]
    ids = [11, 4000000000, 7]
    canvas = build_canvas(prompts, answers_of(rng), VOCABULARY, ALLOWED, example_ids=ids, multiple=8)
    return canvas, unconditional_canvas(canvas, shorter, VOCABULARY, multiple=8)


def one_row(canvas, b: int):
    """Row `b` alone, as a canvas."""
    return jax.tree.map(lambda x: x[b : b + 1], canvas.replace(allowed=None)).replace(allowed=canvas.allowed)


DRAW = (Phase.explicit, Phase.generate)  # every drawn setting compiles: shrinking would take minutes


@settings(max_examples=10, phases=DRAW)
@given(configs, st.integers(0, 2**16), st.sampled_from(["shifted", "same_position"]))
def test_equals_plain_twin(config, seed, alignment):
    toy = make_toy(seed)
    canvas, other = canvases(seed)
    result = sample(toy_denoiser(toy, alignment), canvas, config, seed, unconditional=other)
    history = film(canvas, result)
    for b in range(ROWS):
        example, base = row_of(canvas, b, VOCABULARY.size), row_of(other, b, VOCABULARY.size)
        pair = (lambda tokens: toy_logits(toy, tokens), base) if config.guidance.scale else None
        if pair and config.guidance.form == "released" and len(base.tokens) < len(example.tokens):
            continue  # the absolute row lies in the padding; the golden fixture covers this form
        trace = reference_sample(
            lambda tokens: toy_logits(toy, tokens), example, config, seed, MASK, int(alignment == "shifted"), pair
        )
        n = len(trace.tokens)
        np.testing.assert_array_equal(result.tokens[b, :n], trace.tokens)
        np.testing.assert_array_equal(result.commit_step[b, :n], trace.commit_step)
        np.testing.assert_allclose(result.confidence[b, :n], trace.confidence, atol=1e-4)
        committed = np.asarray(result.committed[b])
        np.testing.assert_array_equal(committed[committed > 0], [k for k in trace.committed if k])
        if len(history):
            np.testing.assert_array_equal(history[-1, b], result.tokens[b])


@settings(max_examples=4, phases=DRAW)
@given(configs, st.integers(0, 2**16))
def test_invariants(config, seed):
    config = dataclasses.replace(
        config,
        candidates=Candidates(),
        blocks=Blocks(config.blocks.size),
        guidance=Guidance(config.guidance.scale),
        stopping=Stopping(),
    )
    canvas, other = canvases(seed)
    denoiser = toy_denoiser(make_toy(seed))
    result = sample(denoiser, canvas, config, seed, unconditional=other)
    before, after, generate = np.asarray(canvas.inputs.tokens), np.asarray(result.tokens), np.asarray(canvas.generate)
    assert not (after == MASK).any()
    np.testing.assert_array_equal(after[~generate], before[~generate])
    allowed = np.asarray(canvas.allowed)[np.asarray(canvas.groups)]
    assert np.take_along_axis(allowed, after[..., None], axis=2).all()
    np.testing.assert_array_equal(result.committed.sum(axis=1), generate.sum(axis=1))
    np.testing.assert_array_equal(np.asarray(result.commit_step) >= 0, generate)
    if config.steps:
        assert (np.asarray(result.steps) <= max(config.steps, 4)).all()
    for b in range(ROWS):
        alone = sample(denoiser, one_row(canvas, b), config, seed, unconditional=one_row(other, b))
        np.testing.assert_array_equal(alone.tokens[0], result.tokens[b])
        assert alone.steps[0] == result.steps[b]


def test_every_row_may_have_a_seed_of_its_own():
    """Noise is keyed by (seed, id): rows of several seeds are answered as among their own."""
    seeds = (0, 7, 2**31, 2**32 - 1)
    keys = streams(seeds, "sampling")
    for key, seed in zip(keys, seeds, strict=True):
        np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(stream(seed, "sampling")))
    canvas, _ = canvases(3)
    config = SamplerConfig(steps=4, filters=Filters(temperature=5.0), confidence=RandomOrder())
    denoiser = toy_denoiser(make_toy(3))
    rows = seeds[1 : 1 + ROWS]
    mixed = sample(denoiser, canvas, config, rows)
    for b, seed in enumerate(rows):
        np.testing.assert_array_equal(mixed.tokens[b], sample(denoiser, canvas, config, seed).tokens[b])


def test_one_confidence_commits_from_the_left():
    """Equal confidences are ranked by position, and exactly as many as planned are revealed."""
    toy = make_toy(0)
    flat = toy._replace(head=np.zeros_like(toy.head))
    canvas = build_canvas([Prompt(np.array([1], np.int32))], [blank(8, MASK)], VOCABULARY, multiple=16)
    result = sample(toy_denoiser(flat), canvas, SamplerConfig(steps=4))
    assert list(result.commit_step[0, 1:9]) == [0, 1, 1, 2, 2, 3, 3, 3]
    assert list(result.committed[0]) == [1, 2, 2, 3]


def test_stopping_settings_and_shared_code():
    """The end token ends an answer early; other step counts, schedules, blocks and weights compile nothing new."""
    toy = make_toy(1)
    ends = toy._replace(head=np.zeros_like(toy.head))
    ends.head[:, VOCABULARY.im_end] = 0.0
    table = AllowedSets(VOCABULARY, end=[VOCABULARY.im_end], rest=[VOCABULARY.text])
    answer = blank(2, MASK, table["rest"]) + blank(1, MASK, table["end"]) + blank(9, MASK, table["rest"])
    canvas = build_canvas([Prompt(np.array([1], np.int32))], [answer], VOCABULARY, table, multiple=16)
    config = SamplerConfig(stopping=Stopping(VOCABULARY.im_end))
    result = sample(toy_denoiser(ends), canvas, config)
    tokens = np.asarray(result.tokens[0, 1:13])
    last = int(result.steps[0])
    assert last < 12 and (tokens[3:] == VOCABULARY.im_end).all() and not (tokens == MASK).any()
    size = _run._cache_size()
    other = dataclasses.replace(config, steps=5, schedule=CosineSchedule(), blocks=Blocks(4))
    sample(toy_denoiser(toy), canvas, other, seed=9)
    sample(toy_denoiser(toy), canvas, dataclasses.replace(config, steps=7))
    assert _run._cache_size() <= size + 2  # the two numbers of plan columns, rounded to powers of two


def test_refusals():
    toy = toy_denoiser(make_toy(0))
    canvas, _ = canvases(0)
    with pytest.raises(UserError, match="unconditional"):
        sample(toy, canvas, SamplerConfig(guidance=Guidance(1.0)))
    with pytest.raises(UserError, match="vocabulary has"):
        sample(toy, dataclasses.replace(canvas, allowed=np.ones((3, 9), bool)), SamplerConfig())
