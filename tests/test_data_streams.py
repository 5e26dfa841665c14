"""Mixture, streams and loader: exact proportions, exact restore, the same batches on any number of hosts."""

import dataclasses
import json
import multiprocessing
import re

import jax
import numpy as np
import pytest
from data_world import VOCABULARY, corpus, example
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from omnidiff_jax.config import build
from omnidiff_jax.data.config import DataConfig, RejectsConfig
from omnidiff_jax.data.hosting import HostBatches, PartDataset
from omnidiff_jax.data.loader import Loader, owned_streams
from omnidiff_jax.data.mixture import Interleave, Stage, stage_at
from omnidiff_jax.data.order import Windows, shuffled
from omnidiff_jax.data.packing import PackingConfig
from omnidiff_jax.data.sources import Source
from omnidiff_jax.data.streams import Corpus, Stream
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import RejectedRecord
from omnidiff_jax.speech_frames import SpeechLayout

PACKING = PackingConfig(length=64, frames=32, samples=8, open_rows=3, speech=SpeechLayout(width=3))
CONFIG = DataConfig(seed=3, batch_size=8, streams=4, max_tail_pads=4, packing=PACKING)


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def take(batches, count):
    return [next(batches) for _ in range(count)]


@given(
    weights=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=9),
    stream=st.integers(0, 64),
    start=st.integers(0, 200),
    length=st.integers(1, 200),
)
def test_every_window_has_the_proportions(weights, stream, start, length):
    interleave = Interleave(weights, stream)
    chosen = [interleave.choose() for _ in range(start + length)][start:]
    counts = np.bincount(chosen, minlength=len(weights))
    assert np.abs(counts - length * np.array(weights) / sum(weights)).max() <= 4


def test_sources_without_weight_are_never_chosen():
    interleave = Interleave([0.0, 1.0, 0.0])
    assert {interleave.choose() for _ in range(50)} == {1}


@given(size=st.integers(1, 300), seed=st.integers(0, 5))
def test_every_epoch_is_another_permutation(size, seed):
    walk = [shuffled(p, size, seed, "source") for p in range(3 * size)]
    epochs = [[index for index, epoch in walk if epoch == e] for e in range(3)]
    assert all(sorted(order) == list(range(size)) for order in epochs)
    if size > 20:
        assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != sorted(epochs[0])


@given(
    groups=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    rows=st.integers(1, 60),
    streams=st.integers(1, 5),
)
def test_a_walk_in_windows_sees_every_sample_once_an_epoch_and_stays_near(groups, rows, streams):
    """Whole groups follow each other, in another order each epoch; a window touches no more of them than it must."""
    ends = np.cumsum(groups).tolist()
    windows, size = Windows(ends, rows), ends[-1]
    rows = max(1, min(rows, size // (4 * streams)))
    rounds = -(-3 * size // (rows * streams))
    walks = [[windows.walk(j, v, streams, 0, "s") for j in range(rounds * rows)] for v in range(streams)]
    seen = sorted((epoch, index) for walk in walks for index, epoch in walk if epoch < 3)
    assert seen == [(epoch, index) for epoch in range(3) for index in range(size)]
    owner = np.repeat(np.arange(len(groups)), groups)
    orders = [Windows(ends, 1).walk(j, 0, 1, 0, "s")[0] for j in range(size)]
    for walk in walks:
        for start in range(0, len(walk), rows):
            epochs = {epoch for _, epoch in walk[start : start + rows]}
            if len(epochs) == 1 and rows > 1:
                held = {owner[index] for index, _ in walk[start : start + rows]}
                assert len(held) <= 2 + (rows - 1) // min(groups)
    assert sorted(orders) == list(range(size))


def test_stage_of_a_step():
    stages = [
        Stage(600, weights={"x": 1.0}, name="a"),
        Stage(300, weights={"x": 1.0}, name="b"),
        Stage(100, weights={"x": 1.0}, name="c"),
    ]
    assert [stage_at(stages, step) for step in (0, 599, 600, 899, 900, 5000)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("owners", [[[0, 1], [2, 3]], [[0], [1], [2], [3]]])
def test_two_or_four_hosts_give_the_batches_of_one(owners):
    one = take(HostBatches(corpus(), CONFIG), 6)
    hosts = [HostBatches(corpus(), CONFIG, owned) for owned in owners]
    for whole in one:
        parts = [next(host) for host in hosts]
        same(whole, jax.tree.map(lambda *rows: np.concatenate(rows), *parts))


@pytest.mark.parametrize("cut", [0, 1, 3, 7])
def test_a_resume_on_two_hosts_continues_the_run_of_one(cut):
    stages = (
        Stage(4, weights={"read": 1.0}, name="first"),
        Stage(4, weights={"hear": 1.0, "draw": 1.0}, name="second"),
    )
    whole = HostBatches(corpus(stages), CONFIG)
    take(whole, cut)
    state = json.loads(json.dumps(whole.get_state()))
    expected = take(whole, 5)
    hosts = [HostBatches(corpus(stages), CONFIG, owned) for owned in ([0, 1], [2, 3])]
    for host in hosts:
        take(host, 2)
        host.set_state(state)
    for batch in expected:
        same(batch, jax.tree.map(lambda *rows: np.concatenate(rows), *[next(host) for host in hosts]))


def test_stream_restores_mid_pack_after_every_row():
    stream = Stream(corpus(), CONFIG, 2)
    states, rows = [], []
    for _ in range(12):
        states.append(json.loads(json.dumps(stream.get_state())))
        rows.append([sample.example.sample_id for sample in next(stream)])
    fresh = Stream(corpus(), CONFIG, 2)
    for number, state in enumerate(states):
        fresh.set_state(state)
        assert [sample.example.sample_id for sample in next(fresh)] == rows[number]
        assert json.loads(json.dumps(fresh.get_state())) == (
            states[number + 1] if number + 1 < len(states) else json.loads(json.dumps(stream.get_state()))
        )


def test_streams_share_each_epoch_without_overlap():
    streams = [Stream(corpus(), CONFIG, number) for number in range(4)]
    for stream in streams:
        take(stream, 40)
    seen = {}
    for stream in streams:
        packed = stream.get_state()
        draws = packed["draws"]["read"]
        for j in range(draws):
            index, epoch = shuffled(j * 4 + stream._number, 40, CONFIG.seed, "read")
            assert (index, epoch) not in seen
            seen[index, epoch] = True
    assert all((index, 0) in seen for index in range(40))


def test_stages_follow_each_other_at_their_step():
    stages = (Stage(5, weights={"read": 1.0}, name="first"), Stage(5, weights={"draw": 1.0}, name="second"))
    batches = take(HostBatches(corpus(stages), CONFIG), 12)
    tasks = [set(batch.group_ids[batch.group_ids >= 0].tolist()) for batch in batches]
    assert all(found == {0} for found in tasks[:5])
    assert all(found == {2} for found in tasks[9:])


def test_proportions_of_samples_hold_in_the_batches():
    batches = take(HostBatches(corpus(), CONFIG), 40)
    ids = np.concatenate([batch.group_ids[batch.group_ids >= 0] for batch in batches])
    shares = np.bincount(ids, minlength=3) / len(ids)
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=0.03)


class Faulty:
    """A source in which every third sample is broken and one is too long."""

    def __len__(self):
        return 30

    def __getitem__(self, index):
        if index % 3 == 0:
            raise RejectedRecord("corrupt image", f"file {index}")
        return example(index, "read", 200 if index == 1 else 10)


def test_unusable_samples_are_skipped_and_counted():
    faulty = Corpus({"read": Source(Faulty(), "read")}, (Stage(9, weights={"read": 1.0}, name="only"),), VOCABULARY)
    batches = HostBatches(faulty, CONFIG)
    take(batches, 12)
    rejected = batches.rejected
    assert rejected["read: corrupt image"] > 10 * rejected["read: longer than a row"] / 2 > 0
    state = batches.get_state()
    resumed = HostBatches(faulty, CONFIG)
    resumed.set_state(state)
    assert resumed.rejected == rejected


def test_a_source_without_a_usable_sample_ends_in_one_line():
    slots = example(1)
    slots.tokens[0] = VOCABULARY.context_audio
    for broken in (example(1, text=500), example(1, heard=(30,)), slots):
        only = Corpus({"read": Source([broken], "read")}, (Stage(9, weights={"read": 1.0}, name="only"),), VOCABULARY)
        with pytest.raises(UserError, match="no sample"):
            next(HostBatches(only, CONFIG))


class Damaged:
    """A source of which all samples but some are broken."""

    def __init__(self, size, good):
        self.size, self.good = size, good

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index >= self.good:
            raise RejectedRecord("corrupt image", f"file {index}")
        return example(index, "read", 10)


def test_too_many_rejects_of_a_source_end_the_run_in_one_line_that_names_the_first():
    good = Source([example(500 + i, "draw", 12) for i in range(9)], "draw")
    stage = (Stage(9, weights={"read": 1.0, "draw": 9.0}, name="both"),)

    def host(usable, **limits):
        sources = {"read": Source(Damaged(40, usable), "read"), "draw": good}
        return HostBatches(
            Corpus(sources, stage, VOCABULARY), dataclasses.replace(CONFIG, rejects=RejectsConfig(**limits))
        )

    with pytest.raises(UserError) as refused:
        take(host(10, share=0.5, most=40), 400)
    told = str(refused.value)
    first = re.search(r"^(\d+) of (\d+) samples of source 'read'.*: \d+ × corrupt image: file \d+; mend them", told)
    assert "\n" not in told and int(first[1]) == 40 // CONFIG.streams + 1 and int(first[2]) < 2 * int(first[1])
    # Within the share, or within the number, it goes on, also from a state in the middle.
    take(host(30, share=0.5, most=40), 60)
    running = host(10, share=0.5, most=10**6)
    take(running, 10)
    resumed = host(10, share=0.5, most=40)
    resumed.set_state(json.loads(json.dumps(running.get_state())))
    assert resumed.first_rejected == running.first_rejected and resumed.rejected == running.rejected
    with pytest.raises(UserError, match="source 'read'.*corrupt image: file"):
        take(resumed, 400)


def test_shares_are_those_of_what_can_be_used():
    """Of one source seven in ten samples are rejected."""
    sources = {
        "read": Source(Damaged(100, 30), "read"),
        "draw": Source([example(500 + i, "draw", 10) for i in range(50)], "draw"),
    }
    only = Corpus(sources, (Stage(9, weights={"read": 1.0, "draw": 1.0}, name="both"),), VOCABULARY)
    config = dataclasses.replace(CONFIG, rejects=RejectsConfig(share=0.8))
    ids = np.concatenate([batch.group_ids[batch.group_ids >= 0] for batch in take(HostBatches(only, config), 60)])
    np.testing.assert_allclose(np.bincount(ids) / len(ids), [0.5, 0.5], atol=0.01)


def small_corpus():
    return corpus(sizes=(12, 9, 5))


def worker_batches_are_those_of_one_thread(workers):
    """Whatever the workers' number, from any state, into any: streams know nothing of who reads them."""
    here = HostBatches(small_corpus(), CONFIG)
    expected, states = [], []
    for _ in range(6):
        expected.append(next(here))
        states.append(json.loads(json.dumps(here.get_state())))
    config = dataclasses.replace(CONFIG, workers=workers)
    with Loader(small_corpus(), config, reopen=small_corpus) as loader:
        for batch, state in zip(expected[:3], states[:3], strict=True):
            same(batch, next(loader))
            assert json.loads(json.dumps(loader.get_state())) == state
        loader.set_state(states[3])
        for batch in expected[4:]:
            same(batch, next(loader))
    again = HostBatches(small_corpus(), CONFIG)
    again.set_state(json.loads(json.dumps(loader.get_state())))
    same(next(here), next(again))


def broken_corpus():
    return Corpus({"read": Source(Damaged(4, 0), "read")}, (Stage(9, weights={"read": 1.0}, name="only"),), VOCABULARY)


def what_a_worker_runs_into_is_said():
    config = dataclasses.replace(CONFIG, workers=1)
    with (
        Loader(broken_corpus(), config, reopen=broken_corpus) as loader,
        pytest.raises(UserError, match="no sample of"),
    ):
        next(loader)


def test_parts_of_workers_are_put_together_as_one_thread_reads_them(monkeypatch):
    """Without processes, which take seconds to start; the test below has them."""
    monkeypatch.setattr(PartDataset, "mp_prefetch", lambda parts, *_: parts)
    worker_batches_are_those_of_one_thread(3)
    what_a_worker_runs_into_is_said()


@pytest.mark.slow
def test_worker_processes_give_the_batches_and_states_of_one_thread():
    worker_batches_are_those_of_one_thread(2)
    what_a_worker_runs_into_is_said()
    before = set(multiprocessing.active_children())
    with Loader(small_corpus(), dataclasses.replace(CONFIG, workers=1), reopen=small_corpus) as loader:
        next(loader)
        (worker,) = set(multiprocessing.active_children()) - before
        worker.kill()
        with pytest.raises(UserError, match="a worker process that reads data ended.*config.data.workers"):
            for _ in range(9):
                next(loader)


def test_wrong_runs_are_refused():
    with pytest.raises(UserError, match="streams = 3 must divide"):
        DataConfig(batch_size=8, streams=3)
    with pytest.raises(UserError, match="did you mean 'read'"):
        corpus((Stage(1, weights={"reed": 1.0}, name="one"),))
    with pytest.raises(UserError, match="positive weight"):
        corpus((Stage(1, weights={"read": 0.0}, name="one"),))
    with pytest.raises(UserError, match=r"stages.one.weights.read = -1.0 must be at least 0"):
        build(Stage, {"steps": 1, "weights": {"read": -1.0}}, "stages.one")
    with pytest.raises(UserError, match="stages.one.steps = 0 must be at least 1"):
        build(Stage, {"steps": 0}, "stages.one")
    with pytest.raises(UserError, match="empty"):
        corpus(sizes=(0, 3, 3))
    with pytest.raises(UserError, match="streams"):
        Loader(corpus(), CONFIG).set_state({"0": {}})


def test_loader_state_is_that_of_the_consumed_batches():
    reference = HostBatches(corpus(), CONFIG)
    expected = take(reference, 9)
    with Loader(corpus(), CONFIG) as loader:
        for batch in expected[:4]:
            same(batch, next(loader))
        state = json.loads(json.dumps(loader.get_state()))
        same(expected[4], next(loader))
        loader.close()
        same(expected[5], next(loader))
        loader.set_state(state)
        for batch in expected[4:]:
            same(batch, next(loader))
        stats = loader.stats()
    assert 0.8 < stats.token_efficiency <= 1 and 0 < stats.frame_efficiency <= 1 and stats.batches == 11
    assert stats.rejected == {}


def test_loader_hands_over_the_threads_error():
    only = Corpus(
        {"read": Source([example(1, text=500)], "read")}, (Stage(9, weights={"read": 1.0}, name="only"),), VOCABULARY
    )
    with Loader(only, CONFIG) as loader, pytest.raises(UserError, match="no sample"):
        next(loader)


def test_loader_places_rows_on_the_mesh():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), devices=jax.devices()[:8])
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    expected = next(HostBatches(corpus(), CONFIG))
    with Loader(corpus(), CONFIG, sharding) as loader:
        batch = next(loader)
    same(expected, batch)
    assert batch.inputs.tokens.sharding.is_equivalent_to(sharding, 2)
    assert batch.inputs.speech.features.addressable_shards[0].data.shape == (2, 32, 3)


def test_hosts_must_own_whole_streams():
    class HalfRows:
        def addressable_devices_indices_map(self, shape):
            return {"here": (slice(0, shape[0] // 2),), "also": (slice(0, shape[0] // 2),)}

    assert owned_streams(HalfRows(), CONFIG) == [0, 1]
    with pytest.raises(UserError, match="whole streams"):
        owned_streams(HalfRows(), DataConfig(batch_size=8, streams=1, packing=PACKING))
