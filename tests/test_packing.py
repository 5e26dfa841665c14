"""Packing: nothing lost, nothing twice, nothing across rows; the released code's rows exactly."""

import json

import numpy as np
import pytest
from data_world import TASKS, VOCABULARY, example
from hypothesis import given
from hypothesis import strategies as st

from omnidiff_jax.data.assemble import Sample, assemble, tail_pads
from omnidiff_jax.data.packing import Packer, PackingConfig
from omnidiff_jax.errors import UserError
from omnidiff_jax.parity.packing import pack_released
from omnidiff_jax.speech_frames import SpeechLayout

CONFIG = PackingConfig(length=48, frames=24, samples=5, open_rows=3, speech=SpeechLayout(width=3))
samples = st.lists(
    st.tuples(st.integers(1, 14), st.lists(st.integers(0, 4), max_size=2), st.integers(0, 3)), max_size=40
)


def build(specs):
    """Samples from (text length, utterance lengths, pads)."""
    for number, (text, heard, pads) in enumerate(specs):
        task = "hear" if heard else "read"
        encoded = example(number + 1, task, text, tuple(heard))
        size = sum(heard) + 4 * len(heard)
        yield Sample(encoded, number % 3, pads, len(encoded.tokens) + pads, size, TASKS.index(task))


def pack(specs, config=CONFIG):
    packer = Packer(config)
    rows = [row for sample in build(specs) for row in packer.add(sample, sample.tokens, sample.frames)]
    return rows, packer


@given(specs=samples, strategy=st.sampled_from(["best_fit", "released"]))
def test_rows_hold_every_sample_once_and_within_bounds(specs, strategy):
    config = PackingConfig(48, 24, 5, 3, strategy, speech=SpeechLayout(width=3))
    rows, packer = pack(specs, config)
    everything = rows + [row.items for row in packer.open]
    numbers = sorted(sample.example.sample_id for row in everything for sample in row)
    assert numbers == list(range(1, len(specs) + 1))
    assert len(packer.open) <= config.rows_held
    for row in everything:
        assert sum(sample.tokens for sample in row) <= config.length
        assert sum(sample.frames for sample in row) <= config.frames
        assert 1 <= len(row) <= config.samples


@given(specs=samples)
def test_batches_say_what_the_samples_say(specs):
    rows, packer = pack(specs)
    rows += [row.items for row in packer.open]
    batch = assemble(rows, CONFIG, VOCABULARY)
    inputs, speech = batch.inputs, batch.inputs.speech
    assert inputs.tokens.shape == (len(rows), 48) and speech.features.shape == (len(rows), 24, 3)
    for b, row in enumerate(rows):
        at = utterance = frame = 0
        for s, sample in enumerate(row):
            span = slice(at, at + sample.tokens)
            clean = slice(at, at + len(sample.example.tokens))
            assert (inputs.segment_ids[b, span] == s + 1).all()
            np.testing.assert_array_equal(inputs.positions[b, span], np.arange(sample.tokens))
            np.testing.assert_array_equal(inputs.tokens[b, clean], sample.example.tokens)
            np.testing.assert_array_equal(batch.targets[b, clean], sample.example.targets)
            pads = slice(clean.stop, span.stop)
            assert (inputs.tokens[b, pads] == VOCABULARY.pad).all() and batch.targets[b, pads].all()
            np.testing.assert_array_equal(batch.tail_pads[b, span], np.arange(sample.tokens) >= clean.stop - at)
            assert batch.sample_ids[b, s] == sample.example.sample_id and batch.epochs[b, s] == sample.epoch
            assert TASKS[batch.group_ids[b, s]] == sample.example.task
            slots = at + np.flatnonzero(sample.example.tokens == VOCABULARY.context_audio)
            np.testing.assert_array_equal(speech.slots[b, frame : frame + sample.frames], slots)
            taken = 0
            for count in sample.example.frame_counts:
                utterance += 1
                heard = slice(frame, frame + count + 4)
                assert (speech.segment_ids[b, heard] == utterance).all()
                np.testing.assert_array_equal(speech.positions[b, heard], np.arange(1, count + 5))
                assert speech.queries[b, heard].tolist() == [0, 1, 2, 15] + [-1] * count
                expected = sample.example.frames[taken : taken + count]
                np.testing.assert_array_equal(speech.features[b, frame + 4 : heard.stop], expected)
                taken, frame = taken + count, heard.stop
            at += sample.tokens
        assert not inputs.segment_ids[b, at:].any() and not batch.targets[b, at:].any()
        assert (inputs.tokens[b, at:] == VOCABULARY.pad).all() and (batch.group_ids[b, len(row) :] == -1).all()
        assert not speech.segment_ids[b, frame:].any() and (speech.slots[b, frame:] == -1).all()
        assert (speech.queries[b, frame:] == -1).all()


@given(specs=samples, cut=st.integers(0, 40))
def test_packer_resumes_anywhere(specs, cut):
    whole, _ = pack(specs)
    head, packer = pack(specs[:cut])
    resumed = Packer(CONFIG)
    rows = [[(s, s.tokens, s.frames) for s in row.items] for row in packer.open]
    resumed.resume(rows, [row.waited for row in packer.open])
    rest = [row for s in list(build(specs))[cut:] for row in resumed.add(s, s.tokens, s.frames)]
    ids = [[[sample.example.sample_id for sample in row] for row in rows] for rows in (whole, head + rest)]
    assert ids[0] == ids[1]


def test_released_rows_are_the_recorded_ones(golden):
    fixture = np.load(golden / "packing.npz")
    meta = json.loads(str(fixture["meta"]))
    drawn = [
        (fixture[f"in/sample{i}/input_ids"], fixture[f"in/sample{i}/labels"]) for i in fixture["in/order"].tolist()
    ]
    rows = pack_released(drawn, meta["max_padding_length"], VOCABULARY.released().pad)
    assert len(rows) == meta["n_packs"]
    for number, row in enumerate(rows):
        for name in ("input_ids", "labels", "position_ids", "attention_mask", "cu_seq_lens"):
            np.testing.assert_array_equal(getattr(row, name), fixture[f"out/pack{number}/{name}"], err_msg=name)


def test_released_batches_continue_the_last_sample_through_the_padding():
    config = PackingConfig(32, 0, 5, strategy="released")
    row = list(build([(5, [], 1), (7, [], 2)]))
    batch = assemble([row], config, VOCABULARY)
    (reference,) = pack_released(
        [(np.zeros(6), np.zeros(6)), (np.zeros(9), np.zeros(9)), (np.zeros(30), np.zeros(30))], 32, 0
    )
    np.testing.assert_array_equal(batch.inputs.positions[0], reference.position_ids)
    assert batch.inputs.segment_ids[0].tolist() == [1] * 6 + [2] * 26
    assert batch.inputs.speech is None and not batch.targets[0, 15:].any()


def test_long_tailed_mix_fills_the_rows():
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(5.0, 1.1, 6000)), 10, 3072).astype(int).tolist()
    heard = [n // 3 if n % 3 == 0 else 0 for n in lengths]
    packer = Packer(PackingConfig())
    rows = [row for n, t in zip(lengths, heard, strict=True) for row in packer.add(n, n, t)]
    assert sum(map(sum, rows)) / (len(rows) * 3072) >= 0.98


# One kind of long sample (two to a row, into whose rest nothing fits), or of a few sizes: what rows starve of.
sizes = st.one_of(
    st.tuples(st.integers(17, 24), st.integers(17, 24)).map(sorted),
    st.lists(st.integers(1, 48), min_size=1, max_size=3),
)


@given(kinds=sizes, speech=st.lists(st.integers(0, 24), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_no_row_waits_for_more_than_its_patience(kinds, speech, seed):
    """Whatever sizes come: a sample goes out within a bounded number of rows, without those at the end."""
    rng = np.random.default_rng(seed)
    low, high = kinds[0], kinds[-1]
    packer, born, rows = Packer(CONFIG), [], 0
    for number in range(1500):
        tokens = int(rng.integers(min(low, high), max(low, high) + 1) if number % 3 else rng.choice(kinds))
        born.append(rows)
        for row in packer.add(number, tokens, int(rng.choice(speech))):
            rows += 1
            assert rows - min(born[item] for item in row) <= CONFIG.patience + 2 * CONFIG.rows_held
    assert all(rows - born[item] <= CONFIG.patience + 2 * CONFIG.rows_held for row in packer.open for item in row.items)


def test_patience_costs_no_efficiency(monkeypatch):
    """On the mixes that starved rows: one kind of sample, of which two fill a row but for what no third fits into."""

    def efficiency(draw, config):
        rng, packer = np.random.default_rng(0), Packer(config)
        rows = [row for n in (draw(rng) for _ in range(8000)) for row in packer.add(n, n, 0)]
        return sum(map(sum, rows)) / (len(rows) * config.length)

    pictures = (
        PackingConfig(3072, 0, 96, 24),
        lambda rng: 1030 + int(rng.lognormal(4.6, 0.8)) + int(rng.integers(1, 17)),
    )
    small = PackingConfig(176, 0, 8, 16), lambda rng: int(rng.integers(45, 72)) + int(rng.integers(1, 17))
    for config, draw in (pictures, small):
        patient = efficiency(draw, config)
        monkeypatch.setattr(PackingConfig, "patience", 10**9)
        assert patient >= efficiency(draw, config) - 1e-3
        monkeypatch.undo()


def test_tail_pads_depend_on_seed_epoch_and_sample_only():
    counts = np.array([tail_pads(example(i), 0, 1, 16, VOCABULARY.pad) for i in range(800)])
    assert set(counts) == set(range(1, 17)) and abs(counts.mean() - 8.5) < 0.5
    again = np.array([tail_pads(example(i), 0, 1, 16, VOCABULARY.pad) for i in range(800)])
    np.testing.assert_array_equal(counts, again)
    assert (counts != [tail_pads(example(i), 1, 1, 16, VOCABULARY.pad) for i in range(800)]).mean() > 0.8
    assert (counts != [tail_pads(example(i), 0, 2, 16, VOCABULARY.pad) for i in range(800)]).mean() > 0.8
    ended = example(3)
    ended.tokens[-1] = VOCABULARY.pad
    assert tail_pads(ended, 0, 1, 16, VOCABULARY.pad) == 0
    assert tail_pads(example(3), 0, 1, 0, VOCABULARY.pad) == 0


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match="best_fit"):
        PackingConfig(strategy="best")
    with pytest.raises(UserError, match="length = 0 must be at least 1"):
        PackingConfig(length=0)
