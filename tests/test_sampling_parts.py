"""Schedules, filters, canvases and configs of the sampler, one at a time."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampling_toys import VOCABULARY

from omnidiff_jax.answering.load import weights_config
from omnidiff_jax.config import build, to_dict
from omnidiff_jax.errors import UserError
from omnidiff_jax.runs.config import run_config
from omnidiff_jax.sampling import (
    ASR_LENGTH,
    TTS_LENGTH,
    AllowedSets,
    Answer,
    Blocks,
    CosineSchedule,
    LengthRule,
    PaperPosition,
    Prefill,
    Prompt,
    ReleasedPosition,
    SamplerConfig,
    Schedule,
    answer_tokens,
    blank,
    build_canvas,
    infill,
    known,
    random_text_prompt,
    unconditional_canvas,
)
from omnidiff_jax.sampling.filters import nucleus
from omnidiff_jax.sampling.guidance import stack_canvases
from omnidiff_jax.sampling.plan import make_plan
from omnidiff_jax.speech_frames import SpeechLayout
from omnidiff_jax.tokenizers.assets import shipped_models

MASK = VOCABULARY.mask


@given(
    st.integers(1, 64), st.integers(1, 64), st.sampled_from([Schedule(), CosineSchedule()]), st.sampled_from([0, 3, 16])
)
def test_plan_reveals_every_mask(masks, steps, schedule, size):
    config = SamplerConfig(steps=steps, schedule=schedule, blocks=Blocks(size))
    generate = np.zeros((2, 80), bool)
    generate[0, 5 : 5 + masks] = True
    plan = make_plan(config, generate, np.array([5, 0]), np.array([masks, 0]))
    left = masks
    for i in range(plan.steps[0]):
        inside = generate[0, plan.start[0, i] : plan.stop[0, i]].sum()
        quota = min(max(int(np.float32(inside) * plan.ratio[0, i]), 1), inside)
        rows = np.flatnonzero(generate[0, plan.start[0, i] : plan.stop[0, i]]) + plan.start[0, i]
        generate[0, rows[:quota]] = False
        left -= quota
    assert left == 0
    assert plan.steps[0] <= max(min(steps, masks), -(-masks // (size or masks)))
    assert plan.steps[1] == 0


def test_schedules_fall_from_one_to_eps():
    for schedule in (Schedule(), CosineSchedule()):
        t = schedule.timesteps(20)
        assert t[0] == 1 and np.isclose(t[-1], 1e-3) and (np.diff(t) < 0).all()
        assert schedule.ratios(20)[-1] == 1
    # 40 tokens in 20 linear steps
    left, counts = 40, []
    for ratio in Schedule().ratios(20):
        counts.append(max(int(np.float32(left) * ratio), 1))
        left -= counts[-1]
    assert counts == [1] + [2] * 18 + [3]


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.5, 0.9, 0.999]), st.sampled_from([0.1, 1.0, 20.0]))
def test_nucleus_equals_sorting(seed, top_p, scale):
    logits = (scale * np.random.default_rng(seed).normal(size=(4, 37))).astype(np.float32)
    kept = np.asarray(nucleus(jnp.asarray(logits), top_p))
    for row, keep in zip(logits.astype(np.float64), kept, strict=True):
        order = np.argsort(-row)
        p = np.exp(row - row.max())
        p /= p.sum()
        above = np.cumsum(p[order]) - p[order]
        expected = above <= top_p
        clear = np.abs(above - top_p) > 1e-5
        np.testing.assert_array_equal(keep[order][clear], expected[clear])


def test_position_factor_forms():
    offsets = jnp.arange(12)[None, :] - 2
    masked = jnp.ones((1, 12), bool)
    paper = PaperPosition(free=4, gamma=0.5, early=0.5)
    early = paper.factor(offsets, jnp.array([10]), masked, jnp.array([0.4]))[0]
    np.testing.assert_allclose(early[:6], 1)
    assert (np.diff(early[5:]) < 0).all() and np.isclose(early[-1], 0.5)
    np.testing.assert_allclose(paper.factor(offsets, jnp.array([10]), masked, jnp.array([0.5]))[0], 1)
    ramp = ReleasedPosition(free=4).factor(offsets, jnp.array([10]), masked, jnp.array([0.9]))[0]
    np.testing.assert_allclose(ramp, [1] * 5 + [1 + i / 8 for i in range(1, 8)])


def test_config_builds_hashes_and_refuses():
    config = build(SamplerConfig, {"steps": 16, "confidence": {"kind": "origin"}, "guidance": {"scale": 2}})
    assert hash(config) == hash(dataclasses.replace(config))
    assert build(SamplerConfig, to_dict(config)) == config
    assert SamplerConfig.released(8).filters.top_k == 50
    for bad in (
        {"step": 3},
        {"steps": 0},
        {"confidence": {"kind": "entropic"}},
        {"filters": {"top_p": 0.0}},
        {"filters": {"temperature": -1.0}},
        {"guidance": {"scale": -1.0}},
        {"blocks": {"size": -1}},
        {"repetition": {"penalty": 0.0}},
        {"position": {"gamma": 2.0}},
    ):
        with pytest.raises(UserError):
            build(SamplerConfig, bad)


def test_length_rules():
    assert TTS_LENGTH.length(10, 50) == 35
    assert ASR_LENGTH.length(93, 142) == 28
    assert LengthRule(0.2, minimum=4, maximum=9).length(3, 80) == 4
    assert LengthRule(0.2, minimum=4, maximum=9).length(300, 80) == 9


def test_rules_of_length_in_configs():
    assert build(LengthRule, {"rate": 0.4, "minimum": 10}) == LengthRule(0.4, 10)  # as runs of before have it
    assert build(LengthRule, {"of": "prompt", "rate": 0.2}) == ASR_LENGTH
    assert to_dict(TTS_LENGTH) == {"rate": 3.5, "minimum": 1, "maximum": None}
    assert to_dict(ASR_LENGTH)["of"] == "prompt"


def test_a_rule_that_a_config_names_is_not_of_the_defaults_kind():
    def asr(**given):
        return run_config({"batch_size": 1, "stages": {"none": {"steps": 1}}, "decoding": {"asr": given}}).decoding[
            "asr"
        ]

    assert asr().adaptive == ASR_LENGTH
    assert asr(adaptive={"rate": 0.4, "minimum": 10}).adaptive == LengthRule(0.4, 10)
    assert asr(adaptive={"maximum": 9}).adaptive == dataclasses.replace(ASR_LENGTH, maximum=9)
    assert asr(adaptive=None, length=7).adaptive is None
    assert weights_config(shipped_models()["nano"]).decoding["asr"].adaptive == LengthRule(0.4, 10)


def test_canvas_layout_and_infilling():
    answer = known([5]) + infill([1, 2, 3], [True, False, True], MASK)
    spoken = Prefill(VOCABULARY.begin_audio, 0.25).apply(blank(8, MASK), before=1, after=2)
    prompts = [Prompt(np.array([4, MASK], np.int32)), Prompt(np.zeros(0, np.int32))]
    canvas = build_canvas(prompts, [answer, spoken], VOCABULARY, multiple=8, rows=3)
    np.testing.assert_array_equal(canvas.inputs.tokens[0], [4, MASK, 5, MASK, 2, MASK] + [VOCABULARY.pad] * 2)
    np.testing.assert_array_equal(canvas.generate[0], [0, 0, 0, 1, 0, 1, 0, 0])  # never the prompt's mask
    np.testing.assert_array_equal(canvas.inputs.segment_ids.sum(axis=1), [6, 8, 0])
    np.testing.assert_array_equal(canvas.inputs.positions[0], [0, 1, 2, 3, 4, 5, 0, 0])
    np.testing.assert_array_equal(canvas.groups[1], [1, 1, 0, 2, 2, 2, 2, 2])
    assert canvas.inputs.tokens[1, 2] == VOCABULARY.begin_audio and not canvas.generate[1, 2]
    assert [len(a) for a in answer_tokens(canvas, canvas.inputs.tokens)] == [4, 8]


def test_canvas_places_speech():
    context = VOCABULARY.context_audio
    tokens = np.array([1] + [context] * 5 + [2] + [context] * 6, np.int32)
    frames = np.arange(3 * 4, dtype=np.float32).reshape(3, 4)
    four = SpeechLayout(width=4)
    heard = Prompt(tokens, frames, frame_counts=(1, 2))
    canvas = build_canvas([heard, Prompt(tokens[:1])], [blank(2, MASK)] * 2, VOCABULARY, speech=four, multiple=16)
    speech = canvas.inputs.speech
    np.testing.assert_array_equal(speech.slots[0, :11], [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12])
    np.testing.assert_array_equal(speech.queries[0, :11], [0, 1, 2, 15, -1, 0, 1, 2, 15, -1, -1])
    np.testing.assert_array_equal(speech.features[0, [4, 9, 10]], frames)
    assert (speech.segment_ids[1] == 0).all()
    both = stack_canvases(canvas, unconditional_canvas(canvas, [Prompt(tokens[:1])] * 2, VOCABULARY))
    assert both.inputs.speech.segment_ids.shape == (4, 16) and both.inputs.tokens.shape == (4, 32)
    with pytest.raises(UserError, match="context-of-audio"):
        build_canvas([Prompt(tokens, frames, (3,))], [blank(2, MASK)], VOCABULARY, speech=four)
    with pytest.raises(UserError, match="4 wide, the speech encoder takes 560"):
        build_canvas([heard], [blank(2, MASK)], VOCABULARY)


def test_canvas_refuses():
    prompt = Prompt(np.arange(5, dtype=np.int32))
    with pytest.raises(UserError, match="the canvas has 8"):
        build_canvas([prompt], [blank(4, MASK)], VOCABULARY, limit=8)
    with pytest.raises(UserError, match="do not fit"):
        build_canvas([prompt] * 2, [blank(4, MASK)] * 2, VOCABULARY, rows=1)
    with pytest.raises(UserError, match="one answer per prompt"):
        build_canvas([prompt], [], VOCABULARY)
    with pytest.raises(UserError, match="as many"):
        infill([1, 2], [True], MASK)
    with pytest.raises(UserError, match="did you mean 'image'"):
        AllowedSets(VOCABULARY, image=[VOCABULARY.image])["imag"]
    with pytest.raises(UserError, match="empty"):
        AllowedSets(VOCABULARY, nothing=[])
    with pytest.raises(UserError, match="shorter than its template"):
        random_text_prompt([1, 2], [3], 2, VOCABULARY.text, seed=0)


def test_random_text_prompt():
    prompt = random_text_prompt([7], [8, 9], 7, VOCABULARY.text, seed=3, example_id=5)
    assert list(prompt.tokens[[0, -2, -1]]) == [7, 8, 9] and len(prompt.tokens) == 7
    assert len(set(prompt.tokens[1:5])) == 4 and VOCABULARY.text.contains(prompt.tokens[1:5]).all()
    again = random_text_prompt([7], [8, 9], 7, VOCABULARY.text, seed=3, example_id=5)
    np.testing.assert_array_equal(prompt.tokens, again.tokens)


def test_answers_concatenate():
    answer = known([1]) + blank(2, MASK, group=1) + known([2])
    assert isinstance(answer, Answer) and len(answer) == 4
    np.testing.assert_array_equal(answer.tokens, [1, MASK, MASK, 2])
    np.testing.assert_array_equal(answer.groups, [0, 1, 1, 0])
