"""An engine of slots: every answer as it is alone, whoever comes and goes beside it."""

import dataclasses

import numpy as np
import pytest
from sampling_toys import VOCABULARY, make_toy, toy_denoiser

from omnidiff_jax.answering.engine import Engine, Work, room, suits
from omnidiff_jax.errors import UserError
from omnidiff_jax.sampling import (
    Blocks,
    Cache,
    Filters,
    Guidance,
    Prompt,
    ReleasedRepetition,
    SamplerConfig,
    Stopping,
    Threshold,
    blank,
    build_canvas,
    sample,
)
from omnidiff_jax.sampling.canvas import AllowedSets
from omnidiff_jax.sampling.guidance import stack_canvases, unconditional_canvas
from omnidiff_jax.sampling.results import film
from omnidiff_jax.training.operations.goodput import Compilations

SETS = AllowedSets(VOCABULARY, image=[VOCABULARY.image], text=[VOCABULARY.text])
LENGTH, SLOTS = 32, 3


def works(sampler: SamplerConfig, count: int = 11, seed: int = 0) -> list[Work]:
    """Requests of other prompts, lengths, kinds, blocks, steps and seeds."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        prompt = Prompt(rng.integers(0, 6, rng.integers(1, 8)).astype(np.int32))
        answer = blank(int(rng.integers(1, 20)), VOCABULARY.mask, SETS[("image", "text")[number % 2]])
        own = dataclasses.replace(sampler, steps=int(rng.integers(1, 20)), blocks=Blocks(int(rng.choice([0, 4]))))
        made.append(Work(prompt, answer, own, seed=number % 3, request_id=1000 + number))
    if sampler.guidance.scale > 0:
        others = [Prompt(rng.integers(0, 6, rng.integers(1, 12)).astype(np.int32)) for _ in made]
        made = [dataclasses.replace(work, unconditional=other) for work, other in zip(made, others, strict=True)]
    return made


def lay_out(new: list[Work], rows: int):
    canvas = conditional(new, rows)
    other = unconditional(new, canvas)
    return canvas if other is None else stack_canvases(canvas, other)


def unconditional(new: list[Work], canvas):
    others = [work.unconditional for work in new if work.unconditional is not None]
    return unconditional_canvas(canvas, others, VOCABULARY, multiple=LENGTH) if others else None


def conditional(new: list[Work], rows: int):
    return build_canvas(
        [work.prompt for work in new],
        [work.answer for work in new],
        VOCABULARY,
        SETS,
        example_ids=[work.request_id for work in new],
        multiple=LENGTH,
        rows=rows,
    )


def engine_for(made: list[Work], denoiser) -> Engine:
    canvases = [lay_out(made[start : start + SLOTS], SLOTS) for start in range(0, len(made), SLOTS)]
    return Engine(denoiser, lay_out, *room(made, canvases), slots=SLOTS)


def alone(denoiser, work: Work):
    canvas = conditional([work], 1)
    return sample(denoiser, canvas, work.sampler, work.seed, unconditional([work], canvas))


def same(row, other) -> None:
    for name in ("tokens", "commit_step", "steps"):
        np.testing.assert_array_equal(getattr(row, name), np.asarray(getattr(other, name))[0], err_msg=name)
    np.testing.assert_allclose(row.confidence, other.confidence[0], atol=1e-5)
    counts = np.trim_zeros(np.asarray(row.committed), "b")
    np.testing.assert_array_equal(counts, np.trim_zeros(np.asarray(other.committed[0]), "b"))


@pytest.mark.parametrize(
    "sampler",
    [
        SamplerConfig(),
        SamplerConfig(filters=Filters(0.9, 0.95), repetition=ReleasedRepetition(1.3)),
        SamplerConfig(reveal=Threshold(least=0.3), stopping=Stopping(2)),
        SamplerConfig(guidance=Guidance(1.5), repetition=ReleasedRepetition(1.3)),
    ],
    ids=["greedy", "drawn", "threshold", "guided"],
)
def test_every_answer_is_the_one_given_alone(sampler: SamplerConfig) -> None:
    denoiser, made = toy_denoiser(make_toy(1)), works(sampler, 5 if sampler.guidance.scale > 0 else 11)
    engine = engine_for(made, denoiser)
    numbers = [engine.submit(work) for work in made]
    assert engine.waiting == len(made)
    ended = list(engine.run())
    done = {answered.number: answered.result for answered in ended}
    assert sorted(done) == numbers and engine.idle and engine.waiting == 0
    for number, work in zip(numbers, made, strict=True):
        same(done[number], alone(denoiser, work))
    counts = engine.counts
    assert counts.joined == counts.done == len(made) and counts.cancelled == 0
    assert counts.slots == counts.steps * SLOTS
    # Of its slots none was at work longer than its answer took.
    assert counts.busy == sum(int(result.steps) for result in done.values())
    assert counts.busy / SLOTS <= counts.steps < counts.busy
    assert counts.longest_queue == len(made)
    assert 0 < counts.loaded_slots < counts.slots and counts.occupancy < counts.loaded_occupancy <= 1
    prompts = [prompt for work in made for prompt in (work.prompt, work.unconditional) if prompt is not None]
    held = sum(len(prompt.tokens) for prompt in prompts)
    held += sum(len(work.answer) for work in made) * len(prompts) // len(made)
    assert counts.padding == pytest.approx(1 - held / (LENGTH * len(prompts)))
    assert counts.waited == pytest.approx(sum(answered.waited for answered in ended))
    assert counts.seconds == pytest.approx(sum(answered.seconds for answered in ended))
    assert all(0 <= answered.waited < answered.seconds for answered in ended)


def test_requests_come_and_go() -> None:
    denoiser, made = toy_denoiser(make_toy(2)), works(SamplerConfig(), 8)
    engine = engine_for(made, denoiser)
    first = [engine.submit(work) for work in made[:5]]
    done = engine.serve()
    left = [number for number in first if number not in {answered.number for answered in done}]
    waiting, at_work = left[-1], left[0]
    assert engine.cancel(waiting) and engine.cancel(at_work)
    assert not engine.cancel(waiting) and not engine.cancel(done[0].number) and engine.counts.cancelled == 2
    later = [engine.submit(work) for work in made[5:]]
    done += list(engine.run())
    found = {answered.number: answered.result for answered in done}
    assert sorted(found) == sorted({*first, *later} - {waiting, at_work})
    for number, result in found.items():
        same(result, alone(denoiser, made[number]))
    assert list(engine.run()) == [] == engine.serve()
    # Whoever takes all requests back is not kept waiting.
    numbers = [engine.submit(work) for work in made]
    engine.serve()
    for number in range(numbers[0], numbers[-1] + 1):
        engine.cancel(number)
    assert engine.idle and engine.serve() == []


def test_a_canvas_is_seen_filling_in_between_steps() -> None:
    denoiser, made = toy_denoiser(make_toy(2)), works(SamplerConfig(), 5)
    engine = engine_for(made, denoiser)
    numbers = [engine.submit(work) for work in made]
    assert engine.look(numbers[0]) is None and engine.at_work == set()
    seen: dict[int, list] = {number: [] for number in numbers}
    results = {}
    while not engine.idle:
        before = engine.counts.steps
        done = engine.serve(limit=1)
        assert engine.counts.steps == before + 1
        results |= {answered.number: answered.result for answered in done}
        for number in engine.at_work:
            tokens, calls = engine.look(number)
            seen[number].append(tokens)
            assert calls == len(seen[number])
    for number, work in zip(numbers, made, strict=True):
        canvas = conditional([work], 1)
        result = sample(denoiser, canvas, work.sampler, work.seed)
        np.testing.assert_array_equal([*seen[number], results[number].tokens], film(canvas, result)[:, 0])


def test_nothing_is_compiled_once_it_is_warm() -> None:
    denoiser, made = toy_denoiser(make_toy(3)), works(SamplerConfig(), 9)
    engine = engine_for(made, denoiser)
    for work in made[:5]:
        engine.submit(work)
    list(engine.run())
    with Compilations() as compilations:
        for work in made:
            engine.submit(work)
        assert len(list(engine.run())) == 9
    assert compilations.count == 0


def test_an_engine_is_for_what_it_knows() -> None:
    class Mine(Cache):
        pass

    assert suits(SamplerConfig()) and suits(SamplerConfig(reveal=Threshold()))
    assert suits(SamplerConfig(guidance=Guidance(1.0))) and not suits(SamplerConfig(cache=Mine()))
    guided = works(SamplerConfig(guidance=Guidance(1.0)), 3)
    engine = engine_for(guided, toy_denoiser(make_toy(4)))
    with pytest.raises(UserError, match=r"Work\.unconditional"):
        engine.submit(dataclasses.replace(guided[0], unconditional=None))
