"""Sources by name: weights by source or task, what a resume takes and refuses, states of before sources had names."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from data_world import VOCABULARY, corpus, example
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from omni_toys import generator as toy_generator

from data_pipelines.scenes.tasks import make_record
from experiments.configs import nano
from omnidiff_jax.codecs.encode import encode_one
from omnidiff_jax.data.building import origin
from omnidiff_jax.data.config import DataConfig
from omnidiff_jax.data.hosting import HostBatches
from omnidiff_jax.data.mixture import Stage
from omnidiff_jax.data.order import shuffled
from omnidiff_jax.data.packing import PackingConfig
from omnidiff_jax.data.readers import READERS, Reader, SourceConfig, check_source, raw_records
from omnidiff_jax.data.sources import Source, unconditional
from omnidiff_jax.data.storage import MANIFEST, EncodedSet, write_set
from omnidiff_jax.data.streams import Corpus, Stream
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import Message, Record
from omnidiff_jax.runs.config import run_config
from omnidiff_jax.runs.resume import check_resume
from omnidiff_jax.speech_frames import SpeechLayout

PACKING = PackingConfig(length=64, frames=32, samples=8, open_rows=3, speech=SpeechLayout(width=3))
CONFIG = DataConfig(seed=3, batch_size=4, streams=2, max_tail_pads=4, packing=PACKING)
SIZES = st.lists(st.integers(1, 1000), min_size=1, max_size=5)


def same(one, other):
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(left, right)


def marked(given_corpus, **fingerprints):
    """The corpus with fingerprints: those given, else each source's name."""
    sources = {
        name: dataclasses.replace(source, fingerprint=fingerprints.get(name, name))
        for name, source in given_corpus.sources.items()
    }
    return dataclasses.replace(given_corpus, sources=sources)


@given(SIZES, st.floats(0.01, 100))
def test_a_tasks_weight_is_shared_by_its_sources_in_proportion_to_their_sizes(counts, weight):
    sizes = {f"set{i}": count for i, count in enumerate(counts)} | {"other": 7}
    tasks = dict.fromkeys(sizes, "asr") | {"other": "tts"}
    shares = Stage(1, weights={"asr": weight, "other": 2.0}, name="s").shares(tasks, sizes)
    assert list(shares) == list(sizes) and shares["other"] == 2.0
    np.testing.assert_allclose(sum(shares.values()) - 2.0, weight)
    for name, count in list(sizes.items())[:-1]:
        np.testing.assert_allclose(shares[name], weight * count / sum(counts))


@given(SIZES, st.data())
def test_sources_weighed_by_name_have_just_those_weights(counts, data):
    sizes = {f"set{i}": count for i, count in enumerate(counts)}
    weights = {name: data.draw(st.floats(0.01, 100)) for name in sizes}
    assert Stage(1, weights=weights, name="s").shares(dict.fromkeys(sizes, "asr"), sizes) == weights


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"asr": 1.0, "clean": 1.0}, "by its own name and by that of its task"),
        ({"clena": 1.0}, "'clena'.*clean"),
        ({"clean": 0.0}, "positive weight"),
        ({"void": 1.0}, "is empty"),
    ],
)
def test_weights_that_cannot_be_are_refused_by_name(weights, words):
    tasks, sizes = {"clean": "asr", "far": "asr", "void": "tts"}, {"clean": 3, "far": 5, "void": 0}
    with pytest.raises(UserError, match=words):
        Stage(1, weights=weights, name="s").shares(tasks, sizes)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 6), st.permutations(["read", "hear", "draw"]))
def test_a_resume_finds_every_source_by_its_name_whatever_the_order(cut, order):
    first = marked(corpus())
    batches = HostBatches(first, CONFIG)
    for _ in range(cut):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    again = HostBatches(dataclasses.replace(first, sources={name: first.sources[name] for name in order}), CONFIG)
    again.set_state(state)
    restored = json.loads(json.dumps(again.get_state()))
    for stream in map(str, range(CONFIG.streams)):
        assert restored[stream] == state[stream]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 6))
def test_a_state_of_before_sources_had_names_goes_on_with_the_same_batches(cut):
    batches = HostBatches(corpus(), CONFIG)
    for _ in range(cut):
        next(batches)
    state = batches.get_state()
    names = list(state.pop("sources"))
    for stream in state.values():
        for key in ("taken", "draws"):
            stream[key] = [stream[key][name] for name in names]
        for key in ("open", "ready"):
            stream[key] = [[[names.index(name), count] for name, count in row] for row in stream[key]]
    again = HostBatches(corpus(), CONFIG)
    again.set_state(json.loads(json.dumps(state)))
    for _ in range(3):
        same(next(batches), next(again))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 12), st.sampled_from([0.5, 1.0, 4.0]))
def test_a_source_is_added_to_a_run_without_breaking_the_order_of_the_others(cut, weight):
    """It begins with its first sample and has its share from the first draws on; no sample of another is lost."""
    both = marked(corpus())
    weights = {"read": 2.0, "hear": 1.0}
    old = Corpus({name: both.sources[name] for name in weights}, (Stage(10, weights=weights, name="all"),), VOCABULARY)
    new = dataclasses.replace(both, stages=(Stage(10, weights=weights | {"draw": weight}, name="all"),))
    first, then = Stream(old, CONFIG, 1), Stream(new, CONFIG, 1)
    seen = [sample for _ in range(cut) for sample in next(first)]
    state = json.loads(json.dumps(first.get_state()))
    then.set_state(state)
    assert then.get_state()["draws"] == state["draws"] | {"draw": 0}
    seen += [sample for _ in range(12) for sample in next(then)]
    after = then.get_state()
    for name, draws in after["draws"].items():
        pending = [count for rows in (after["open"], after["ready"]) for row in rows for it, count in row if it == name]
        drawn = [
            shuffled(count * CONFIG.streams + 1, len(both.sources[name]), CONFIG.seed, name)
            for count in range(draws)
            if count not in pending
        ]
        expected = [(both.sources[name][index].sample_id, epoch) for index, epoch in drawn]
        emitted = [(sample.example.sample_id, sample.epoch) for sample in seen if sample.example.task == name]
        assert sorted(emitted) == sorted(expected)
    fresh = {name: after["draws"][name] - state["draws"].get(name, 0) for name in after["draws"]}
    shares = dict(zip(new.sources, new.shares[0], strict=True))
    for name, count in fresh.items():
        assert abs(count - sum(fresh.values()) * shares[name] / sum(shares.values())) <= 4


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 12), st.sampled_from([0.5, 4.0]))
def test_weights_change_and_a_source_goes_without_breaking_the_order_of_the_others(cut, weight):
    """What waited of the source that goes is left out; the others' pending samples stay, and shares hold at once."""
    both = marked(corpus())
    weights = {"read": 2.0, "hear": 1.0, "draw": 1.0}
    old = dataclasses.replace(both, stages=(Stage(10, weights=weights, name="all"),))
    kept = {"read": 1.0, "draw": weight}
    new = Corpus({name: both.sources[name] for name in kept}, (Stage(10, weights=kept, name="all"),), VOCABULARY)
    first = HostBatches(old, CONFIG)
    for _ in range(cut):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    with pytest.raises(UserError, match="trained on source 'hear'"):
        HostBatches(new, CONFIG).set_state(state)
    then = HostBatches(new, dataclasses.replace(CONFIG, remix=True))
    then.set_state(state)
    for stream in map(str, range(CONFIG.streams)):
        before, after = state[stream], json.loads(json.dumps(then.get_state()[stream]))
        assert after["draws"] == {name: before["draws"][name] for name in kept}
        for key in ("open", "ready"):
            rows = [[draw for draw in row if draw[0] in kept] for row in before[key]]
            assert after[key] == [row for row in rows if row]
    for _ in range(12):
        next(then)
    draws = [
        {name: after["draws"][name] - state[stream]["draws"][name] for name in kept}
        for stream, after in then.get_state().items()
        if stream != "sources"
    ]
    for fresh in draws:
        assert abs(fresh["draw"] - sum(fresh.values()) * weight / (1 + weight)) <= 2


def test_a_resume_takes_another_mixture_only_where_the_config_says_so():
    config = nano.get_config()
    old = run_config(config)
    config.stages.stage1_visual_language.weights.vqa = 7.0
    with pytest.raises(UserError, match="weights"):
        check_resume(old, run_config(config), "checkpoint 3")
    config.data.remix = True
    check_resume(old, run_config(config), "checkpoint 3")
    for stage in config.stages.values():
        if "tts" in stage.weights:
            del stage.weights["tts"]
    check_resume(old, run_config(config), "checkpoint 3")
    config.data.sources.vqa.split = "test"
    with pytest.raises(UserError, match="vqa"):
        check_resume(old, run_config(config), "checkpoint 3")


def test_a_source_of_a_later_stage_leaves_the_present_one_as_it_is():
    both = marked(corpus())
    present = Stage(10, weights={"read": 2.0, "hear": 1.0}, name="first")
    old = Corpus({name: both.sources[name] for name in present.weights}, (present,), VOCABULARY)
    new = dataclasses.replace(both, stages=(present, Stage(5, weights={"draw": 1.0}, name="second")))
    first, then = HostBatches(old, CONFIG), HostBatches(new, CONFIG)
    for _ in range(3):
        next(first)
    then.set_state(json.loads(json.dumps(first.get_state())))
    for _ in range(3):
        same(next(first).sample_ids, next(then).sample_ids)


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (marked(corpus(), hear="replaced"), "'hear' is not what .* of other content"),
        (marked(corpus(sizes=(40, 31, 20))), "'hear' is not what .*30 samples then, 31 now"),
        (marked(corpus(sizes=(40, 30, 19))), "'draw' is not what .*20 samples then, 19 now"),
    ],
)
def test_other_samples_under_the_same_name_are_refused(now, words):
    with pytest.raises(UserError, match=words) as refused:
        HostBatches(now, CONFIG).set_state(HostBatches(marked(corpus()), CONFIG).get_state())
    assert "\n" not in str(refused.value)


def test_a_missing_source_is_named():
    def named(name):
        samples = Source([example(i) for i in range(5)], "read", "print")
        return Corpus({name: samples}, (Stage(1, weights={name: 1.0}, name="s"),), VOCABULARY)

    with pytest.raises(UserError, match="source 'old' .5 samples., which this run does not have; put it back"):
        HostBatches(named("new"), CONFIG).set_state(HostBatches(named("old"), CONFIG).get_state())


def test_sets_are_told_apart_by_content_with_and_without_a_digest_in_the_manifest(tmp_path):
    def prints(name, first):
        folder = tmp_path / name
        write_set(folder, [example(first + i) for i in range(5)], "tokens")
        new = EncodedSet(folder, "tokens").fingerprint
        content = json.loads((folder / MANIFEST).read_text())
        del content["content"]
        (folder / MANIFEST).write_text(json.dumps(content))
        return new, EncodedSet(folder, "tokens").fingerprint

    one, again, other = prints("one", 1), prints("again", 1), prints("other", 50)
    assert one == again and one[0] != other[0] and one[1] != other[1]


def test_the_example_of_the_docs_builds_in_canonical_order():
    text = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
    config = nano.get_config()
    exec(text.split("```python\n")[1].split("```")[0], {"config": config, "ConfigDict": ConfigDict})
    run = run_config(config)
    assert list(run.sources) == ["t2i", "librispeech", "meetings"]
    assert run.groups == (("t2i", "t2i"), ("librispeech", "asr"), ("meetings", "asr"))
    shares = run.plan[1].shares(
        {n: s.task for n, s in run.sources.items()}, {"t2i": 5, "librispeech": 30, "meetings": 10}
    )
    assert shares == {"t2i": 1.0, "librispeech": 0.75, "meetings": 0.25}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (SourceConfig("jsnl", path="x"), "config.data.sources.mine.reader.*jsonl"),
        (SourceConfig("jsonl"), "config.data.sources.mine.path is missing"),
        (SourceConfig("encoded", path="x", unconditional=0.1), "config.data.sources.mine.unconditional = 0.1.*encoded"),
    ],
)
def test_a_source_that_cannot_be_opened_is_refused_by_its_field(given, words):
    with pytest.raises(UserError, match=words) as refused:
        check_source("mine", given, READERS)
    assert "\n" not in str(refused.value)


def test_a_share_of_a_sources_samples_answers_nothing(tmp_path):
    turns = (Message("system", "be brief"), Message("user", "<|image|>what?"), Message("assistant", "red"))
    turns += (Message("user", "<|audio|>draw it"), Message("assistant", "here <|image|>"))
    records = [Record(i, "t2i", turns, (f"given{i}", f"drawn{i}"), (f"said{i}",)) for i in range(400)]
    reader = Reader("toy", (), lambda config: records, lambda config, found: "toy 1")
    config = SourceConfig("toy", "t2i", unconditional=0.25)
    found, identity = raw_records(config, reader)
    changed = [i for i in range(400) if found[i] is not records[i]]
    assert 60 < len(changed) < 140 and changed == [i for i in range(400) if found[i] is not records[i]]
    for i in changed[:5]:
        assert found[i].messages == (turns[0], Message("user", ""), turns[-1])
        assert found[i].images == (f"drawn{i}",) and found[i].audios == ()
        assert (found[i].sample_id, found[i].task) == (i, "t2i")
    # Other content: a resume may not take one for the other, nor a set that was built.
    plain = dataclasses.replace(config, unconditional=0.0)
    assert identity != raw_records(plain, reader)[1] == "toy 1" and raw_records(plain, reader)[0] is records
    assert origin(config, reader, records) == origin(plain, reader, records) | {"unconditional": 0.25}


def test_what_answers_nothing_is_what_guidance_asks():
    """The prompt of a sample without a condition is the one that the sampler's unconditional canvas holds."""
    generator = toy_generator()
    record = make_record("t2i", 5, "train")
    encoded = encode_one(unconditional(record), generator.codecs)
    prompt = generator.codecs.layout.prompt([Message("user", "")])
    np.testing.assert_array_equal(encoded.tokens[: len(prompt)], prompt)
    assert encoded.targets[len(prompt)] and not encoded.targets[: len(prompt)].any()
