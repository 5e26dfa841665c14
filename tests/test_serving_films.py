"""What a server shows of an answer as it fills in is the film of the same request, whoever else is answered then."""

from __future__ import annotations

import numpy as np
import pytest
from omni_toys import generator, quick, request

pytest.importorskip("starlette")

from omnidiff_jax.answering.model import Model
from omnidiff_jax.serving.limits import Limits
from omnidiff_jax.serving.scheduler import Scheduler
from omnidiff_jax.tasks.registry import TASKS

# As the page's settings have them, and one that draws.
REVEALS = [
    {"sampler.reveal.kind": "schedule"},
    {"sampler.reveal.kind": "schedule", "temperature": 0.7},
    {"sampler.reveal.kind": "threshold", "sampler.reveal.least": 0.3},
    {"sampler.reveal.kind": "stable", "sampler.reveal.least": 0.3},
    {"sampler.reveal.kind": "klass", "sampler.reveal.least": 0.3},
    {"sampler.reveal.kind": "entropy_bound", "sampler.reveal.gamma": 2.0},
]


@pytest.fixture(scope="module")
def toy():
    return Model(generator(), {name: quick(task.decoding) for name, task in TASKS.items()}, "toy")


@pytest.fixture
def scheduler(toy):
    made = Scheduler(toy.generator, Limits(queue=1000, lanes=100))
    yield made
    assert made.close(60)


def queries(model, tasks, settings):
    """Each task asked with several seeds, in other words and with other media."""
    made = []
    for name in tasks:
        for seed in range(4):
            asked = request(TASKS[name], seed)
            media = {key: getattr(asked, key) for key in TASKS[name].inputs}
            made.append(model.query({"task": name, "seed": seed, "settings": settings, **media}))
    return made


@pytest.mark.parametrize(
    ("tasks", "settings"),
    [(("t2i", "inpainting"), REVEALS[1]), (("vqa",), REVEALS[0])]
    + [pytest.param(tuple(TASKS), settings, marks=pytest.mark.slow) for settings in REVEALS],
)
def test_what_is_shown_is_the_film(toy, scheduler, tasks, settings):
    asked = queries(toy, tasks, settings)
    films = [toy.generator.film([query])[0] for query in asked]
    assert max(len(film.strip) for film in films) > 1

    def watched(query):
        seen = []
        return scheduler.submit(query, lambda partial: seen.append((partial.step, partial.tokens))), seen

    alone = watched(asked[0])
    alone[0].future.result()
    crowd = [watched(query) for query in asked]  # more than there are slots
    for film, (ticket, seen) in zip([films[0], *films], [alone, *crowd], strict=True):
        response = ticket.future.result().response
        assert [step for step, _ in seen] == list(range(1, len(film.strip) + 1))
        np.testing.assert_array_equal([tokens for _, tokens in seen], film.strip)
        for name in ("text", "image", "speech", "finish", "steps"):
            np.testing.assert_array_equal(getattr(response, name), getattr(film, name))
        if film.audio is not None:
            np.testing.assert_array_equal(response.audio.samples, film.audio.samples)


def test_once_it_is_warm_nothing_is_compiled(toy, scheduler):
    """And what is counted for Prometheus says so, as it does of all that was answered."""
    one, *others = queries(toy, ("t2i",), REVEALS[1])
    scheduler.warm(one)

    def told() -> dict[str, float]:
        lines = scheduler.metrics.text().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    warm = told()
    assert warm["omnidiff_lane_seconds_count"] == warm["omnidiff_lanes"] > 0
    for ticket in [scheduler.submit(query) for query in others]:
        ticket.future.result()
    found = told()
    assert found["omnidiff_lane_seconds_count"] == warm["omnidiff_lane_seconds_count"]
    for name in ("queue_seconds_count", 'answer_seconds_count{kind="image"}', 'answer_steps_count{kind="image"}'):
        assert found[f"omnidiff_{name}"] == warm[f"omnidiff_{name}"] + len(others)
    assert 0 < found["omnidiff_engine_busy_slots_total"] <= found["omnidiff_engine_slots_total"]
    assert {f'omnidiff_requests{{stage="{stage}"}}' for stage in ("waiting", "running")} <= found.keys()
    assert "omnidiff_audio_real_time_factor_count" in found
