"""Steps taken ahead: the same answers in fewer calls, every call counted."""

import dataclasses

import jax
import numpy as np
import pytest
from sampling_toys import VOCABULARY, make_toy, toy_denoiser
from test_sampling_reveal import LENGTHS, canvas_of

from omnidiff_jax.config import build
from omnidiff_jax.errors import UserError
from omnidiff_jax.sampling import (
    Blocks,
    Cache,
    Filters,
    Guidance,
    PaperPosition,
    Prompt,
    RandomOrder,
    Repetition,
    Revise,
    SamplerConfig,
    Stopping,
    TopkMargin,
    Verify,
    blank,
    build_canvas,
    sample,
    unconditional_canvas,
)

SEEDS = range(8)
LOSSLESS = {
    "noise": SamplerConfig(
        filters=Filters(0.8, top_p=0.9),
        confidence=TopkMargin(0.3, "linear"),
        repetition=Repetition(1.5),
        position=PaperPosition(free=2),
    ),
    "guidance": SamplerConfig(confidence=RandomOrder(), guidance=Guidance(1.0)),
    "revise": SamplerConfig(reveal=Revise(least=0.5, keep=0.9, times=2), blocks=Blocks(7), stopping=Stopping(2)),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_drafts_change_nothing_but_the_calls(name):
    """Tokens, history and numbers of steps are those of one step a call."""
    config, canvas = LOSSLESS[name], canvas_of()
    other = unconditional_canvas(canvas, [Prompt(np.ones(6, np.int32))] * len(LENGTHS), VOCABULARY, multiple=16)
    plain, ahead = (dataclasses.replace(config, drafting=drafting) for drafting in (config.drafting, Verify(drafts=2)))
    saved = 0
    for seed in SEEDS:
        denoiser = toy_denoiser(make_toy(seed, 6.0))
        expected, found = (sample(denoiser, canvas, each, seed, other) for each in (plain, ahead))
        for field in ("tokens", "commit_step", "committed"):
            np.testing.assert_array_equal(getattr(found, field), getattr(expected, field), field)
        np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-5)
        fewer = np.asarray(expected.steps) - np.asarray(found.steps)
        assert (fewer >= 0).all()
        saved += fewer.sum()
    assert saved > 0


def test_calls_are_counted():
    """A model that sees no tokens confirms every draft: the first call has none, each later one takes all its steps."""
    toy, drafts, calls = make_toy(0), 3, 4
    blind = toy_denoiser(
        toy._replace(**{name: 0 * getattr(toy, name) for name in ("token", "left", "right", "everywhere")})
    )
    made = []

    def hidden(params, tokens, context):
        jax.debug.callback(lambda rows: made.append(len(rows)), tokens[:, 0])
        return blind.hidden(params, tokens, context)

    canvas = build_canvas([Prompt(np.array([1], np.int32))], [blank(10, VOCABULARY.mask)], VOCABULARY, multiple=16)
    result = sample(dataclasses.replace(blind, hidden=hidden), canvas, SamplerConfig(drafting=Verify(drafts=drafts)))
    jax.effects_barrier()
    assert made == [1 + drafts] * calls
    assert result.steps.tolist() == [calls]
    assert result.committed[0, :10].tolist() == [1] * 10


def test_settings():
    assert build(SamplerConfig, {"drafting": {"kind": "verify", "drafts": 4}}).drafting == Verify(drafts=4)
    with pytest.raises(UserError, match="drafts = 0 must be a number from 1 to 64"):
        Verify(drafts=0)

    @dataclasses.dataclass(frozen=True)
    class Keeps(Cache):
        pass

    with pytest.raises(UserError, match=r"^drafting.kind = 'verify' looks at .* leave one of the two out$"):
        SamplerConfig(drafting=Verify(), cache=Keeps())
