"""Strategies are classes handed in: of one's own, from a config's words, and with numbers that make sense."""

import dataclasses
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_toys import VOCABULARY, make_toy, toy_denoiser

from omnidiff_jax.config import Choice, build, to_dict
from omnidiff_jax.errors import UserError
from omnidiff_jax.sampling import (
    AllowedSets,
    Blocks,
    Cache,
    Candidates,
    Confidence,
    Drafting,
    Filters,
    Guidance,
    LengthRule,
    Position,
    Prefill,
    Prompt,
    Repetition,
    Reveal,
    SamplerConfig,
    Schedule,
    Stopping,
    TopkMargin,
    blank,
    build_canvas,
    finish_reasons,
    sample,
    unconditional_canvas,
)
from omnidiff_jax.sampling.loop import _run
from omnidiff_jax.sampling.plan import make_plan
from omnidiff_jax.tasks.registry import Decoding

MASK = VOCABULARY.mask
GROUPS = (
    Schedule,
    Reveal,
    Confidence,
    Filters,
    Repetition,
    Position,
    Guidance,
    Blocks,
    Stopping,
    Candidates,
    Cache,
    Drafting,
)
KINDS = [kind for group in GROUPS for kind in group.kinds()]


@dataclasses.dataclass(frozen=True)
class RightToLeft(Confidence):
    """Sure by position alone."""

    def order(self, confidence, uniforms, progress):
        return jnp.broadcast_to(jnp.arange(confidence.shape[1], dtype=jnp.float32), confidence.shape)


@dataclasses.dataclass(frozen=True)
class AllOfASudden(Stopping):
    """Once every candidate is surer than `least`, all of them are written."""

    least: float = 0.0

    def settle(self, tokens, generate, mask_id, candidates, confidence):
        masked = generate & (tokens == mask_id)
        sure = (~masked | (confidence >= self.least)).all(axis=1, keepdims=True)
        return jnp.where(masked & sure, candidates, tokens)


@dataclasses.dataclass(frozen=True)
class OnlySmall(Filters):
    """No id from `limit` up."""

    limit: int = 3

    def keep(self, logits):
        return super().keep(jnp.where(jnp.arange(logits.shape[-1]) < self.limit, logits, -1e30))


@dataclasses.dataclass(frozen=True)
class Half(Schedule):
    def timesteps(self, steps):
        return np.float32(0.5) ** np.arange(steps + 1, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Strict(Guidance):
    def combine(self, conditional, unconditional):
        return jnp.minimum(conditional, unconditional)


@dataclasses.dataclass(frozen=True)
class EveryNth(Cache):
    """Hidden states of every `every`-th step serve the steps after it."""

    every: int = 2

    def init(self, denoiser, canvas):
        context = super().init(denoiser, canvas)
        return context, jnp.zeros_like(denoiser.hidden(denoiser.params, canvas.inputs.tokens, context)), jnp.int32(0)

    def hidden(self, denoiser, tokens, state, call):
        context, kept, runs = state
        fresh = call.number % self.every == 0
        kept = jax.lax.cond(fresh, lambda: denoiser.hidden(denoiser.params, tokens, context), lambda: kept)
        return kept, (context, kept, runs + fresh)


def toys(length=8, seed=0):
    canvas = build_canvas([Prompt(np.array([1, 2], np.int32))], [blank(length, MASK)], VOCABULARY, multiple=16)
    return toy_denoiser(make_toy(seed)), canvas


def test_a_strategy_of_ones_own_is_handed_in():
    denoiser, canvas = toys()
    result = sample(denoiser, canvas, SamplerConfig(confidence=RightToLeft()))
    assert result.commit_step[0, 2:10].tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    result = sample(denoiser, canvas, SamplerConfig(stopping=AllOfASudden(least=-math.inf)))
    assert result.steps[0] == 1 and not (result.tokens[0, 2:10] == MASK).any()
    eager = sample(denoiser, canvas, SamplerConfig(steps=1))
    np.testing.assert_array_equal(result.tokens, eager.tokens)
    result = sample(denoiser, canvas, SamplerConfig(filters=OnlySmall(limit=3)))
    assert (result.tokens[0, 2:10] < 3).all()
    result = sample(denoiser, canvas, SamplerConfig(schedule=Half(), steps=3))
    assert result.committed[0].tolist() == [4, 2, 2, 0]
    other = unconditional_canvas(canvas, [Prompt(np.array([1], np.int32))], VOCABULARY, multiple=16)
    guided = sample(denoiser, canvas, SamplerConfig(guidance=Strict(1.0)), unconditional=other)
    plain = sample(denoiser, canvas, SamplerConfig(guidance=Guidance(1.0)), unconditional=other)
    assert not np.array_equal(guided.confidence, plain.confidence)


def test_a_cache_is_a_strategy():
    denoiser, canvas = toys()
    plain = sample(denoiser, canvas, SamplerConfig())
    always = sample(denoiser, canvas, SamplerConfig(cache=EveryNth(1)))
    jax.tree.map(np.testing.assert_array_equal, plain, always)
    seldom = sample(denoiser, canvas, SamplerConfig(cache=EveryNth(8)))
    once = sample(denoiser, canvas, SamplerConfig(steps=1))  # what the first step knows is all there is
    np.testing.assert_array_equal(seldom.tokens, once.tokens)
    assert seldom.steps[0] == 8 and not np.array_equal(seldom.tokens, plain.tokens)


def test_equal_strategies_share_compiled_code():
    denoiser, canvas = toys(length=8, seed=3)
    sample(denoiser, canvas, SamplerConfig(confidence=TopkMargin(0.25), cache=EveryNth(2)))
    size = _run._cache_size()
    again = SamplerConfig(confidence=TopkMargin(0.25), cache=EveryNth(2), schedule=Half(), steps=8)
    sample(toys(seed=4)[0], canvas, again, seed=5)
    assert _run._cache_size() == size
    sample(denoiser, canvas, dataclasses.replace(again, confidence=Confidence(0.25)))
    assert _run._cache_size() == size + 1  # the same settings of another class are another strategy


# ---- configs ------------------------------------------------------------------------------------------------


def test_every_word_builds_its_kind_and_comes_back():
    words = {
        "schedule": ("kind", ["linear", "cosine"]),
        "reveal": ("kind", ["schedule", "threshold", "entropy_bound", "stable", "klass", "revise"]),
        "confidence": ("kind", ["entropy", "maskgit_plus", "topk_margin", "origin", "halton"]),
        "repetition": ("scope", ["generated", "released"]),
        "position": ("form", ["off", "paper", "released"]),
        "guidance": ("form", ["aligned", "released"]),
        "blocks": ("form", ["even", "released"]),
    }
    keys = to_dict(SamplerConfig()).keys()
    for group, (key, known) in words.items():
        for word in known:
            config = build(SamplerConfig, {group: {key: word}})
            assert getattr(getattr(config, group), key) == word
            assert to_dict(config)[group][key] == word and to_dict(config).keys() == keys
            assert build(SamplerConfig, to_dict(config)) == config
        with pytest.raises(UserError, match=rf"^config\.{group}\.{key} = '{known[0]}s'; did you mean '{known[0]}'"):
            build(SamplerConfig, {group: {key: known[0] + "s"}})
        with pytest.raises(UserError, match=rf"unknown key config\.{group}\.{key}s; did you mean '{key}'"):
            build(SamplerConfig, {group: {key + "s": known[0]}})
    for word in ("real", "restricted", "released"):
        assert to_dict(build(SamplerConfig, {"candidates": word}))["candidates"] == word
    with pytest.raises(UserError, match="config.candidates = 3; known: real, released, restricted"):
        build(SamplerConfig, {"candidates": 3})


def test_the_keys_of_a_config_stay():
    """Scorecards and stored runs hold them."""
    assert to_dict(SamplerConfig()) == {
        "steps": None,
        "steps_per_token": 1.0,
        "schedule": {"kind": "linear", "eps": 1e-3},
        "reveal": {
            "kind": "schedule",
            "least": 0.9,
            "most": 0,
            "gamma": 0.1,
            "change": 0.05,
            "during": 2,
            "drift": 0.01,
            "among": 32,
            "keep": 0.5,
            "times": 1,
        },
        "confidence": {"kind": "entropy", "temperature": 0.0, "anneal": "constant", "columns": 0},
        "filters": {"temperature": 0.0, "top_p": 1.0, "top_k": 0},
        "repetition": {"scope": "generated", "penalty": 1.0},
        "position": {"form": "off", "free": 100, "gamma": 0.5, "maximum": 2.0, "early": 0.5},
        "guidance": {"form": "aligned", "scale": 0.0},
        "blocks": {"form": "even", "size": 0},
        "stopping": {"end_id": None},
        "candidates": "real",
        "drafting": {"kind": "off", "drafts": 3},
        "rows_per_chunk": 256,
    }
    unused = {"form": "off", "gamma": 0.7, "maximum": 3.0}
    assert to_dict(build(SamplerConfig, {"position": unused}))["position"].items() >= unused.items()


def test_a_word_names_one_class():
    @dataclasses.dataclass(frozen=True)
    class Blur(Choice, key="kind", word="mean"):
        size: int = 3

    @dataclasses.dataclass(frozen=True)
    class Median(Blur, word="median"):
        weight: float = 1.0

    made = build(Blur, {"kind": "median", "weight": 2})
    assert made == Median(weight=2.0) and to_dict(made) == {"kind": "median", "size": 3, "weight": 2.0}
    assert build(Blur, {}) == Blur() and to_dict(Blur(5)) == {"kind": "mean", "size": 5}
    with pytest.raises(UserError, match="unknown key config.weight"):
        build(Blur, {"weight": 2})
    with pytest.raises(TypeError, match="Median is called 'median' already"):
        type("Other", (Blur,), {}, word="median")


# ---- numbers ------------------------------------------------------------------------------------------------


def numbers():
    """Every numeric field of every class of settings, with whether it is whole."""
    for cls in (*KINDS, SamplerConfig, LengthRule, Decoding):
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            types = {hints[field.name], *typing.get_args(hints[field.name])}
            if types & {int, float}:
                yield pytest.param(cls, field.name, int in types, id=f"{cls.__name__}.{field.name}")


@pytest.mark.parametrize(("cls", "field", "whole"), list(numbers()))
def test_numbers_that_make_no_sense_are_refused(cls, field, whole):
    required = {"rate": 1.0} if cls is LengthRule else {}
    for value in (math.nan, math.inf, -math.inf, -1e9, 1e30, *([-1, 10**30] if whole else [-1.0])):
        with pytest.raises(UserError) as refusal:
            build(cls, required | {field: value}, "config.x")
        message = str(refusal.value)
        assert message.startswith("config.x") and f"{field} = {value!r} must be" in message
        assert "\n" not in message
        if isinstance(value, int) or not whole:
            with pytest.raises(UserError, match=field):
                cls(**required | {field: value})  # by hand as well


@pytest.mark.parametrize(
    ("cls", "field"),
    [
        (Filters, "temperature"),
        (Filters, "top_p"),
        (Repetition, "penalty"),
        (Position, "gamma"),
        (SamplerConfig, "steps_per_token"),
        (LengthRule, "rate"),
    ],
)
@pytest.mark.parametrize("tiny", [5e-324, 1e-39, 1e-38, -1e-38])
def test_divisors_are_not_denormal(cls, field, tiny):
    with pytest.raises(UserError, match=f"{field} = {tiny!r} "):
        build(cls, {"rate": 1.0, field: tiny} if cls is LengthRule else {field: tiny})


def test_more_steps_than_tokens_are_as_many_as_tokens():
    generate = np.array([[False, True, True, True], [False, True, False, False]])
    plan = make_plan(SamplerConfig(steps=1000), generate, np.array([1, 1]), np.array([3, 3]))
    assert plan.steps.tolist() == [3, 1] and plan.ratio.shape == (2, 4)
    with pytest.raises(UserError, match=r"^steps = 100000000 must be a number from 1 to 16777216 "):
        SamplerConfig(steps=10**8)


def test_top_p_of_nothing_is_refused():
    """No token has a probability below 0; greedy is a temperature of 0."""
    with pytest.raises(UserError, match=r"^top_p = 0.0 must be a number from 1e-06 to 1 \(1 is off\)$"):
        Filters(top_p=0.0)


def test_the_extremes_that_are_taken_make_sense():
    """At the ends of the ranges every answer is complete, in the allowed set, with finite confidences."""
    denoiser, _ = toys()
    sets = AllowedSets(VOCABULARY, image=[VOCABULARY.image])
    prompt = Prompt(np.array([1, 2], np.int32))
    canvas = build_canvas([prompt], [blank(6, MASK, sets["image"])], VOCABULARY, sets, multiple=16)
    other = unconditional_canvas(canvas, [prompt], VOCABULARY, multiple=16)
    for changes in (
        {"filters": Filters(temperature=1e-6)},
        {"filters": Filters(temperature=1e6)},
        {"filters": Filters(top_p=1e-6)},
        {"repetition": Repetition(1e-6)},
        {"repetition": Repetition(1e6)},
        {"position": Position.named("paper")(free=0, gamma=1e-6)},
        {"position": Position.named("released")(free=0, maximum=1e6)},
        {"guidance": Guidance(1e6)},
        {"confidence": Confidence(1e6)},
        {"schedule": Schedule(0.0)},
        {"schedule": Schedule(1.0)},
    ):
        result = sample(denoiser, canvas, SamplerConfig(**changes), unconditional=other)
        assert VOCABULARY.image.contains(np.asarray(result.tokens)[0, 2:8]).all(), changes
        assert np.isfinite(result.confidence).all(), changes


def test_other_settings_of_answers():
    for fraction in (-0.1, 1.0, math.nan):
        with pytest.raises(UserError, match="fraction = "):
            Prefill(0, fraction)
        with pytest.raises(UserError, match="config.prefill = |config: prefill = "):
            build(Decoding, {"prefill": fraction})
    with pytest.raises(UserError, match="maximum = 3 must be a number from 5"):
        LengthRule(1.0, minimum=5, maximum=3)


# ---- why an answer ended --------------------------------------------------------------------------------------


def test_finish_reasons():
    """The end before any mask, a full canvas without an end, masks that are left."""
    end, text = VOCABULARY.im_end, 3
    rows = [
        [text, end, end, end],
        [text] * 4,
        [text, MASK, end, text],
        [end, MASK, text, MASK],
        [text, text, text, end],
    ]
    prompts = [Prompt(np.array([1] * n, np.int32)) for n in (1, 3, 2, 1, 2)]
    canvas = build_canvas(prompts, [blank(4, MASK)] * 5, VOCABULARY, multiple=8, rows=6)
    result = sample(toys()[0], canvas, SamplerConfig(steps=1))
    tokens = np.array(result.tokens)
    for b, row in enumerate(rows):
        tokens[b, canvas.answer_start[b] : canvas.answer_start[b] + 4] = row
    result = result.replace(tokens=tokens)
    assert finish_reasons(canvas, result, end) == ["end", "length", "steps", "end", "end"]
    assert finish_reasons(canvas, result) == ["length", "length", "steps", "steps", "length"]
    assert finish_reasons(canvas, result, text, end) == ["end"] * 5


def test_finish_reasons_of_real_samples():
    denoiser, canvas = toys()
    ends = AllowedSets(VOCABULARY, end=[VOCABULARY.im_end], rest=[VOCABULARY.text])
    answers = [
        blank(2, MASK, ends["rest"]) + blank(1, MASK, ends["end"]) + blank(5, MASK, ends["rest"]),
        blank(8, MASK, ends["rest"]),
    ]
    prompt = Prompt(np.array([1], np.int32))
    canvas = build_canvas([prompt] * 2, answers, VOCABULARY, ends, multiple=16)
    result = sample(denoiser, canvas, SamplerConfig(stopping=Stopping(VOCABULARY.im_end)))
    assert finish_reasons(canvas, result, VOCABULARY.im_end) == ["end", "length"]
    # Blocks that the released rounding leaves without steps stay masked.
    config = SamplerConfig(steps=2, blocks=Blocks.named("released")(3))
    left = build_canvas([prompt], answers[1:], VOCABULARY, ends, multiple=16)
    assert finish_reasons(left, sample(denoiser, left, config), VOCABULARY.im_end) == ["steps"]
