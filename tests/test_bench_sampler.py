"""`bench sampler`: its forms of the released algorithm give the sampler's tokens, its JSON is the contract's."""

import dataclasses
import json
import os
import sys
import textwrap
from contextlib import ExitStack

import numpy as np
import pytest

from omnidiff_jax.benchmarks.fillers import Loop, Plain, Torch, Work, random_params, why_no_torch
from omnidiff_jax.benchmarks.sampler import VARIANTS, Variant, bench_sampler, choose_variants
from omnidiff_jax.benchmarks.settings import SETTINGS
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.backbone import BackboneConfig
from omnidiff_jax.sampling import Stopping
from omnidiff_jax.vocabulary import COMPACT_SPECIALS, Vocabulary

VOCABULARY = Vocabulary(text_size=200, specials=COMPACT_SPECIALS, speech_codes=40, image_codes=64)
BACKBONE = BackboneConfig(
    vocab_size=VOCABULARY.size, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, hidden=48, dtype="float32"
)
TORCH_PYTHON = os.environ.get("TORCH_PYTHON", sys.executable)


@pytest.fixture(scope="module")
def params():
    return random_params(BACKBONE)


def work(params, setting, steps=9):
    return Work(SETTINGS[setting], steps, BACKBONE, params, VOCABULARY, TORCH_PYTHON)


def same_work(fillers, seeds=(0, 1)):
    """The fillers' calls agree in tokens and in what each step chose; returns the first answer."""
    for seed in seeds:
        first, *others = [filler.fill(seed, {}) for filler in fillers]
        for other in others:
            np.testing.assert_array_equal(other.tokens[0], first.tokens[0])
            np.testing.assert_array_equal(other.need.operations, first.need.operations)
            assert other.steps == first.steps == len(first.need.operations)
    return first.tokens[0]


@pytest.mark.parametrize("setting", SETTINGS)
def test_plain_jax_fills_as_the_sampler_does(params, setting):
    job = work(params, setting)
    answer = same_work([Loop(job, 1), Plain(job, 1)])
    assert len(answer) == job.setting.answer and len(set(answer.tolist())) > 10


@pytest.fixture
def open_torch():
    """`Torch`, ended with the test; skipped where no interpreter has torch."""
    why = why_no_torch(TORCH_PYTHON)
    if why is not None:
        pytest.skip(f"{TORCH_PYTHON}: {why}; TORCH_PYTHON names another interpreter")
    with ExitStack() as stack:

        def opened(job):
            torch = Torch(job, 1)
            stack.callback(torch.close)
            return torch

        yield opened


@pytest.mark.parametrize("setting", SETTINGS)
def test_torch_fills_as_the_sampler_does(params, setting, open_torch):
    job = work(params, setting)
    torch = open_torch(job)
    same_work([Loop(job, 1), torch])
    assert torch.peak_bytes() > 1e7


def test_torch_reads_bfloat16(open_torch):
    backbone = dataclasses.replace(BACKBONE, dtype="bfloat16")
    job = dataclasses.replace(work(random_params(backbone), "text", steps=1), backbone=backbone)
    ours, theirs = Loop(job, 1).fill(0, {}).tokens, open_torch(job).fill(0, {}).tokens
    assert (ours == theirs).mean() > 0.5  # all in one step, so that rounding does not grow


def test_torch_takes_some_of_the_steps_of_another(params, open_torch):
    job = dataclasses.replace(work(params, "s2i"), released_steps=4)
    exact, torch = Loop(job, 1).fill(0, {}), open_torch(job)
    torch.warm()
    some = torch.fill(0, {"exact": exact})
    np.testing.assert_array_equal(some.tokens, exact.tokens)
    assert (some.taken, some.steps) == (4, 9) and some.need is exact.need
    # What it would not have chosen is told: the last token to be revealed is another.
    last = int(exact.when[0].argmax())
    tokens = exact.tokens.copy()
    tokens[0, last] = (tokens[0, last] + 1) % 200
    job = dataclasses.replace(job, released_steps=9)
    found = open_torch(job).fill(0, {"exact": dataclasses.replace(exact, tokens=tokens)}).tokens
    assert found[0, last] == -1 and (found[0] == exact.tokens[0]).sum() == 259


def test_settings_matter(params):
    """Each penalty and filter of t2i changes the answer, so that equal tokens say something."""
    job = work(params, "t2i")
    whole = Plain(job, 1).fill(0, {}).tokens
    for change in ({"repetition": 1.0}, {"position": 1.0}, {"top_k": 3}, {"top_p": 0.3}):
        other = dataclasses.replace(job, setting=dataclasses.replace(job.setting, **change))
        assert not np.array_equal(Plain(other, 1).fill(0, {}).tokens, whole), change


def test_variants_are_rows_of_a_table(params):
    """A row of one's own: another sampler, compared with an earlier one."""
    end = int(Loop(work(params, "text"), 1).fill(1, {}).tokens[0, 0])
    ended = Variant(
        "ended",
        lambda job, rows: Loop(job, rows, lambda sampler: dataclasses.replace(sampler, stopping=Stopping(end_id=end))),
        equals=("released-style", "exact"),
    )
    chosen = [VARIANTS["exact"], VARIANTS["batch8"], ended]
    exact, batch8, short = bench_sampler(chosen, work(params, "text"), calls=2, ceiling=1e9, bandwidth=1e9)
    assert exact.tokens_equal_to == {} and batch8.tokens_equal_to == {"exact": True}
    assert short.tokens_equal_to == {"exact": False}
    assert batch8.rows == 8 and batch8.seconds_per_sample * 8 == pytest.approx(sum(batch8.calls) / 2)
    assert exact.compilations_after_warmup == batch8.compilations_after_warmup == 0
    assert short.steps <= exact.steps == 9 and short.floor_seconds <= exact.floor_seconds
    for speed in (exact, batch8, short):
        assert speed.steps_taken == speed.steps
        assert speed.times_floor == pytest.approx(speed.seconds_per_sample / speed.floor_seconds)


@pytest.mark.slow
def test_a_picture_of_nothing_but_its_codes(params):
    names = ("allowed", "restricted", "fast", "int8")
    chosen, job = [VARIANTS[name] for name in names], work(params, "t2i")
    allowed, restricted, fast, int8 = bench_sampler(chosen, job, calls=1, ceiling=1e9, bandwidth=1e12)
    assert restricted.tokens_equal_to == {"allowed": True} and fast.tokens_equal_to == {}
    head = 2 * 32 * (VOCABULARY.size - 64) / 1e9
    masks = 260 - np.arange(9) * 260 // 9
    assert allowed.floor_seconds - restricted.floor_seconds == pytest.approx(head * masks.sum(), rel=0.02)
    assert fast.steps <= 9 and int8.peak_bytes < allowed.peak_bytes
    tokens = VARIANTS["restricted"].open(job, 1).fill(1, {}).tokens
    assert ((tokens >= VOCABULARY.image.start) & (tokens < VOCABULARY.image.stop)).all()


@pytest.mark.parametrize("setting", [pytest.param("text", marks=pytest.mark.slow), "s2i"])
def test_a_stream_is_answered_as_each_request_alone(params, setting):
    job = dataclasses.replace(work(params, setting, steps=4), requests=24)
    (engine,) = bench_sampler([VARIANTS["engine"]], job, calls=1, ceiling=1e12, bandwidth=1e12)
    assert engine.tokens_equal_to == {"alone": True} and engine.compilations_after_warmup == 0
    stream = engine.stream
    assert stream["requests"] == 24 and stream["equal_alone"] == 1 and engine.steps == stream["steps"] >= 4
    assert 0 < stream["occupancy"] <= 1 and 0 < stream["padding"] < 1
    assert 0 < stream["latency_p50"] <= stream["latency_p99"] and stream["wait_p50"] <= stream["latency_p50"]
    assert engine.seconds_per_sample * 24 == pytest.approx(engine.calls[0])
    assert 0 < engine.floor_seconds < engine.seconds_per_sample


def test_what_follows_another_variant_needs_it(params):
    class Late:
        follows = "exact"

        def close(self):
            pass

    with pytest.raises(UserError, match="follows variant exact"):
        bench_sampler([Variant("late", lambda *_: Late())], work(params, "text"), calls=1, ceiling=1e9, bandwidth=1e9)


def test_what_cannot_run_is_left_out_or_refused(tmp_path):
    nothing = str(tmp_path / "python")
    chosen, (why,) = choose_variants([], nothing)
    assert [variant.name for variant in chosen] == [name for name in VARIANTS if name != "released"]
    assert nothing in why and "--torch_python" in why and "\n" not in why
    chosen, why = choose_variants(["batch8", "exact"], nothing)
    assert [variant.name for variant in chosen] == ["exact", "batch8"] and why == []
    with pytest.raises(UserError, match="--torch_python"):
        choose_variants(["released"], nothing)
    with pytest.raises(UserError, match="did you mean 'exact'"):
        choose_variants(["exakt"], nothing)


CONFIG = """
    from experiments.configs import bench_mid

    def get_config():
        config = bench_mid.get_config()
        config.model.update({"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "hidden": 16})
        return config
"""


def test_bench_sampler_says_what_the_contract_names(omnidiff, tmp_path):
    file = tmp_path / "small.py"
    file.write_text(textwrap.dedent(CONFIG))
    names = ("exact", "rolled")
    words = [
        f"--variants={','.join(names)}",
        "--setting=text",
        "--sampler_steps=3",
        "--calls=2",
        "--json",
        "--config.dtype=float32",
    ]
    done = omnidiff("bench", "sampler", f"--config={file}", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["setting"] == "text"
    found = {variant["name"]: variant for variant in result["variants"]}
    assert tuple(found) == names
    for variant in found.values():
        assert variant["steps"] == 3 and variant["compilations_after_warmup"] == 0 and len(variant["calls"]) == 2
        assert 0 < variant["floor_seconds"] < variant["seconds_per_sample"]
        assert variant["seconds_per_step"] * 3 == pytest.approx(variant["seconds_per_sample"] * variant["rows"])
        assert variant["peak_bytes"] > 2 * 176264 * 16 * 4
    assert found["rolled"]["tokens_equal_to"] == {"exact": True}
