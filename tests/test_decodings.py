"""Ways to decode, compared on one exam: what a word means, what is counted, and when fewer calls pass."""

import dataclasses
import types

import numpy as np
import pytest

from experiments import compare
from omnidiff_jax.answering.queries import Request, Response, adjusted
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.decodings import Sat, gate, sit_ways, way
from omnidiff_jax.evaluation.exam import Case, Exam, ExamSet, Measure
from omnidiff_jax.evaluation.intervals import Ratios
from omnidiff_jax.sampling import Halton, Reveal, Revise, SamplerConfig, ShadowBlock, Threshold, Verify
from omnidiff_jax.tasks.registry import task

TASK = task("captioning")


def sat(hits, calls, higher=True):
    return Sat("way", "share", higher, Ratios.of(np.array(hits, float)), np.array(calls), [])


@pytest.mark.parametrize(
    ("word", "field", "value"),
    [
        ("schedule:8", "steps", 8),
        ("halton:4", "steps", 4),
        ("threshold:0.7", "reveal", Threshold(least=0.7)),
        ("schedule", "steps_per_token", 1.0),
        ("verify:5", "drafting", Verify(drafts=5)),
        ("wino", "reveal", Revise(least=0.6, keep=0.9)),
        ("wino:0.5", "cache", ShadowBlock()),
    ],
)
def test_a_word_means_settings(word, field, value):
    own = dataclasses.replace(TASK.decoding.sampler, steps=3, steps_per_token=0.5)
    sampler = adjusted(dataclasses.replace(TASK.decoding, sampler=own), way(word)).sampler
    assert getattr(sampler, field) == value
    assert isinstance(sampler.confidence, Halton) == word.startswith("halton")


@pytest.mark.parametrize("word", ["treshold:0.5", "threshold:much", "schedule:0.5", "own:3", ""])
def test_words_that_mean_nothing_are_refused(word):
    with pytest.raises(UserError, match="way"):
        way(word)


CASES = tuple(Case(Request(text=str(i)), Response(text=str(i)), {}) for i in range(10))
EXACT = Measure("exact", "string", True, lambda said, asked: (
    np.array([a.text == c.truth.text for a, c in zip(said, asked, strict=True)]), np.ones(len(said))
))  # fmt: skip


def test_every_way_sits_the_same_cases_and_its_calls_are_counted():
    """The model here knows half of the answers, and all of them if it may call itself often."""

    def answers(task, requests, decoding):
        often = decoding.sampler.steps == 8
        texts = [r.text if often or int(r.text) < 5 else "?" for r in requests]
        return [Response(text=text, steps=8 if often else 1 + int(text == "?")) for text in texts]

    class Scripted:
        decoding = staticmethod(lambda task: task.decoding)
        __call__ = staticmethod(answers)

    slow, fast = sit_ways(Exam(TASK, CASES, (EXACT,)), Scripted(), ["schedule:8", "schedule:1"])
    assert slow.summary()["value"] == 1 and slow.summary()["calls"] == 8
    found = fast.summary()
    assert found["value"] == 0.5 and found["calls"] == 1.5 and found["calls_spread"] == [1, 1, 1.5, 2, 2]
    assert found["by_calls"] == [{"calls": 1, "n": 5, "value": 1.0}, {"calls": 2, "n": 5, "value": 0.0}]
    assert gate(slow, fast).worse.value == 0.5 and not gate(slow, fast).passed


@pytest.mark.parametrize(
    ("hits", "calls", "passed"),
    [
        ([1] * 98 + [0] * 2, 4, True),
        ([1] * 97 + [0] * 3, 4, False),  # 0.03 worse
        ([1] * 100, 5, False),  # 3.2 times fewer calls
    ],
)
def test_the_gate(hits, calls, passed):
    found = gate(sat([1] * 100, [16] * 100), sat(hits, [calls] * 100))
    assert found.passed == passed
    assert found.times_fewer == 16 / calls
    errors = gate(sat([0] * 100, [16] * 100, False), sat([1 - h for h in hits], [calls] * 100, False))
    assert errors.worse.value == pytest.approx(found.worse.value) and errors.passed == passed


def test_what_is_hard_for_both_ways_is_no_chance():
    same = types.SimpleNamespace(hits=[1, 0] * 50)
    found = gate(sat(same.hits, [4] * 100), sat(same.hits, [1] * 100))
    assert found.worse.value == 0 and found.worse.interval == (0, 0)


def test_the_gate_of_a_preset_is_one_command(monkeypatch, capsys):
    """Every task of the exam, one position a step and as the preset decodes, in a line each."""
    tasks = {name: task(name) for name in ("captioning", "vqa")}

    def load(what, *, rows, preset, quantize):
        def answers(task, requests, decoding):
            steps = 8 if type(decoding.sampler.reveal) is Reveal else {"exact": 4, "fast": 2}[preset]
            return [Response(text="?" if task.name == "vqa" and steps < 8 else r.text, steps=steps) for r in requests]

        decoding = dataclasses.replace(TASK.decoding, sampler=SamplerConfig(reveal=Threshold()))
        model = type(
            "Scripted",
            (),
            {"decoding": lambda self, task: decoding, "__call__": lambda self, *a, **k: answers(*a, **k)},
        )
        return types.SimpleNamespace(generator=model())

    exams = ExamSet("two tasks", tuple(tasks), lambda name, cases, data: Exam(tasks[name], CASES[:cases], (EXACT,)))
    monkeypatch.setattr(compare, "load", load)
    monkeypatch.setitem(compare.EXAMS, "both", exams)
    compare.COMMAND.call(compare.run, ["--preset=fast", "--exam=both", "--cases=5"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[name, way] for name in tasks for way in ("schedule", "own")]
    assert "4.0 times fewer, worse by +0.000 (+0.000 to +0.000): passes" in lines[1]
    assert "4.0 times fewer, worse by +1.000 (+1.000 to +1.000): does not pass" in lines[3]
    compare.COMMAND.call(compare.run, ["--exam=both", "--task=captioning", "--cases=5"])
    assert "2.0 times fewer" in capsys.readouterr().out
