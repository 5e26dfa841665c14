"""Fifteen public bug reports of other tools as inputs, each beside what is right."""

import dataclasses
import io
import json
import struct

import corpora
import jax
import numpy as np
import pytest
from corpora import opened
from data_world import VOCABULARY, example

from omnidiff_jax.codecs.encode import load_media
from omnidiff_jax.codecs.judgment import check_trainable
from omnidiff_jax.data.assemble import Sample, assemble
from omnidiff_jax.data.config import DataConfig
from omnidiff_jax.data.hosting import HostBatches
from omnidiff_jax.data.mixture import Stage
from omnidiff_jax.data.packing import PackingConfig
from omnidiff_jax.data.sources import JsonlRecords, Source
from omnidiff_jax.data.streams import Corpus
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.audio import read_audio
from omnidiff_jax.records import Medium, RejectedRecord

PACKING = PackingConfig(length=64, frames=0, samples=8, open_rows=3)
CONFIG = DataConfig(seed=3, batch_size=4, streams=2, max_tail_pads=4, packing=PACKING)
PICTURE = corpora.png_bytes(corpora.picture(7))


pytestmark = pytest.mark.usefixtures("own_cache")


class Examples:
    """Records as examples, media read and judged, without tokenizers."""

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        record = load_media(self.records[index])
        check_trainable(record)
        return example(record.sample_id, "text_qa", 12)


def judged(records):
    """What each record is rejected for, or its last message."""
    told = []
    for index in range(len(records)):
        try:
            record = load_media(records[index])
            check_trainable(record)
            told.append(record.messages[-1].content)
        except RejectedRecord as error:
            told.append(error)
    return told


def hosted(sources, weights, config=CONFIG, owned=None):
    named = {name: samples if isinstance(samples, Source) else Source(samples) for name, samples in sources.items()}
    return HostBatches(Corpus(named, (Stage(9, weights=weights, name="all"),), VOCABULARY), config, owned)


def numbers(batch):
    return [int(i) for i, group in zip(batch.sample_ids.flat, batch.group_ids.flat, strict=True) if group >= 0]


def shard(root, *members):
    return corpora.tar(root / "train-0.tar", members)


PAIRS = {"image": "png|jpg", "text": "txt"}


def test_1_names_with_dots_are_keys_up_to_the_first_one(tmp_path):
    shard(
        tmp_path,
        *(
            (f"{folder}/22.0/1.1.{ending}", content)
            for folder in "ab"
            for ending, content in (("png", PICTURE), ("txt", folder))
        ),
    )
    assert judged(opened("tar", tmp_path, columns=PAIRS, task="captioning")) == ["a", "b"]


def test_2_members_in_any_order_are_whole_samples(tmp_path):
    shard(tmp_path, ("0.jpg", PICTURE), ("1.jpg", PICTURE), ("0.txt", "zero"), ("1.txt", "one"))
    assert judged(opened("tar", tmp_path, columns=PAIRS)) == ["zero", "one"]


def test_3_a_name_twice_is_one_reject(tmp_path):
    members = ("0.jpg", PICTURE), ("0.txt", "zero"), ("0.jpg", PICTURE), ("1.jpg", PICTURE), ("1.txt", "one")
    shard(tmp_path, *members)
    twice, good = judged(opened("tar", tmp_path, columns=PAIRS))
    assert twice.reason == "two members of one name" and "train-0.tar, 0" in str(twice) and good == "one"


def test_4_one_picture_cut_short_is_one_reject_and_a_resume_counts_the_same(tmp_path):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(buffer, "JPEG")
    whole = buffer.getvalue()
    rows = [
        {"image": corpora.cell(content, f"{n}.jpg"), "text": str(n)}
        for n, content in enumerate((whole, whole[:-45], whole))
    ]
    corpora.parquet(tmp_path / "train.parquet", rows)
    records = opened("parquet", tmp_path, columns={"image": "image", "text": "text"})
    first, second, third = judged(records)
    assert (first, third) == ("0", "2") and second.reason == "unusable image" and "row 2, 1.jpg" in str(second)
    running, resumed = (hosted({"text_qa": Examples(records)}, {"text_qa": 1.0}) for _ in range(2))
    for _ in range(3):
        next(running)
    resumed.set_state(json.loads(json.dumps(running.get_state())))
    for _ in range(3):
        assert numbers(next(running)) == numbers(next(resumed))
    assert running.rejected == resumed.rejected and sum(running.rejected.values()) > 2


def test_5_media_that_are_no_list_or_no_tag_are_clear_rejects(tmp_path):
    (tmp_path / "a.jpg").write_bytes(PICTURE)
    asked = [{"role": "user", "content": "<|image|>What?"}, {"role": "assistant", "content": "x"}]
    plain = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "x"}]
    rows = [{"messages": asked, "images": "a.jpg"}, {"messages": plain, "images": ["a.jpg"]}]
    rows += [{"messages": plain, "images": None}, {"messages": plain}]
    records = JsonlRecords(corpora.lines(tmp_path / "a.jsonl", rows))
    string, untagged, *texts = judged(records)
    assert string.reason == "images is not a list of paths" and untagged.reason == "images do not match the tags"
    assert texts == ["x", "x"] and {records[n].task for n in (2, 3)} == {"text_qa"}


def test_6_an_empty_turn_or_a_dangling_one_is_no_target(tmp_path):
    def turns(*told):
        return {"messages": [{"role": role, "content": content} for role, content in told], "id": "x"}

    rows = [turns(("user", "a"), ("assistant", ""), ("user", "c"), ("assistant", "d"))]
    rows += [turns(("user", "a"), ("assistant", "b"), ("user", "c"), ("user", "d"))]
    corpora.parquet(tmp_path / "train.parquet", rows)
    empty, dangling = judged(opened("tulu3", tmp_path))
    assert empty.reason == "blank assistant message" and dangling == "b"


def test_7_a_lone_quote_is_a_character(tmp_path):
    corpora.make("common_voice", tmp_path)
    (table,) = tmp_path.rglob("train.tsv")
    names, first, _ = table.read_text().splitlines()
    said = ["One.", '"Two, he said.', "Three.", 'Fo"ur.', "Five."]
    told = [first.replace('"Well, he said.', text) for text in said]
    table.write_text("\n".join([names, *told]) + "\n")
    assert judged(opened("common_voice", tmp_path)) == said


def test_8_an_empty_mp3_is_a_reject_and_one_a_frame_short_is_none(tmp_path):
    corpora.make("common_voice", tmp_path)
    (clips,) = tmp_path.rglob("clips")
    (clips / "clip_0.mp3").write_bytes(b"")
    content = (clips / "clip_1.mp3").read_bytes()
    at = max(content.find(b"Xing"), content.find(b"Info")) + 8
    frames = struct.unpack(">I", content[at : at + 4])[0]
    (clips / "clip_1.mp3").write_bytes(content[:at] + struct.pack(">I", frames + 2) + content[at + 4 :])
    empty, short = judged(opened("common_voice", tmp_path))
    assert empty.reason == "unusable audio" and short == "Yes."


def test_9_a_streamed_wav_is_read_to_its_end():
    samples = np.round(corpora.tone(300, 54.4, 8000) * 32767).astype("<i2").tobytes()
    layout = struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
    content = (
        b"RIFF"
        + struct.pack("<I", 0x7FFFFFFF)
        + b"WAVEfmt "
        + layout
        + b"data"
        + struct.pack("<I", 0x7FFFFFFF)
        + samples
    )
    assert read_audio(Medium("streamed.wav", content=content)).seconds == pytest.approx(54.4, abs=1e-9)


def test_10_segments_of_one_recording_are_its_slices(tmp_path):
    corpora.make("gigaspeech", tmp_path)
    file = tmp_path / "GigaSpeech.json"
    told = json.loads(file.read_text())
    segment = told["audios"][0]["segments"][0]
    marks = [(0.0, 0.7), (0.9, 1.6), (2.0, 2.9)]
    told["audios"][0]["segments"] = [
        segment | {"sid": f"S{n}", "begin_time": start, "end_time": end} for n, (start, end) in enumerate(marks)
    ]
    file.write_text(json.dumps(told))
    records = opened("gigaspeech", tmp_path)
    whole = read_audio(tmp_path / "audio/podcast/P0.opus")
    assert len({records[n].sample_id for n in range(3)}) == 3 and [records[n].meta["id"] for n in range(3)] == [
        "S0",
        "S1",
        "S2",
    ]
    for n, (start, end) in enumerate(marks):
        (wave,) = load_media(records[n]).audios
        first = round(start * whole.rate)
        np.testing.assert_allclose(wave.samples, whole.samples[first : round(end * whole.rate)], atol=1e-3)


def test_11_a_resume_right_after_an_overflow_and_in_the_third_epoch_is_the_same_run():
    rng = np.random.default_rng(0)
    sources = {"read": [example(i, "text_qa", int(rng.integers(4, 50))) for i in range(12)]}
    running = hosted(sources, {"read": 1.0})
    batches, states = [], []
    for _ in range(30):
        batches.append(next(running))
        states.append(json.loads(json.dumps(running.get_state())))
    overflowed = [n for n, state in enumerate(states) if any(len(state[stream]["open"][-1]) == 1 for stream in "01")]
    third = [n for n, batch in enumerate(batches) if batch.epochs.max() >= 2]
    assert overflowed and third
    for cut in {*overflowed[:3], *third[:3]} & set(range(27)):
        resumed = hosted(sources, {"read": 1.0})
        resumed.set_state(states[cut])
        for batch in batches[cut + 1 : cut + 4]:
            jax.tree.map(np.testing.assert_array_equal, batch, next(resumed))


def test_12_sources_are_mapped_by_name_or_refused_by_it():
    def source(first, size=9, print_=""):
        return Source([example(first + i, "text_qa", 10) for i in range(size)], "text_qa", print_ or str(first))

    sources, weights = {"a": source(0), "b": source(100), "c": source(200)}, dict.fromkeys("abc", 1.0)
    halves = [hosted(sources, weights, owned=[stream]) for stream in (0, 1)]
    for _ in range(3):
        parts = [next(half) for half in halves]
    state = json.loads(json.dumps(halves[0].get_state() | halves[1].get_state()))
    one = hosted(sources, weights)
    one.set_state(state)
    parts = [next(half) for half in halves]
    assert numbers(next(one)) == sum(map(numbers, parts), [])
    reordered = hosted({name: sources[name] for name in "cab"}, weights)
    reordered.set_state(state)
    assert json.loads(json.dumps(reordered.get_state()["0"])) == state["0"]
    for other, words in (
        (source(100, print_="other"), "of other content"),
        (source(100, 10), "9 samples then, 10 now"),
    ):
        with pytest.raises(UserError, match=f"source 'b' is not what .*{words}"):
            hosted(sources | {"b": other}, weights).set_state(state)


def test_13_weights_of_zero_and_tiny_sources():
    def source(first, size):
        return [example(first + i, "text_qa", 6) for i in range(size)]

    sources = {"a": source(0, 3), "b": source(100, 4), "c": source(200, 3)}
    only = hosted(sources, {"a": 1.0, "b": 0.0, "c": 0.0})
    assert {n // 100 for _ in range(9) for n in numbers(next(only))} == {0}
    host = hosted(sources, {"a": 0.2, "b": 0.6, "c": 0.2}, dataclasses.replace(CONFIG, streams=1))
    seen = []
    for _ in range(60):
        batch = next(host)
        real = batch.group_ids >= 0
        seen += list(zip(batch.sample_ids[real].tolist(), batch.epochs[real].tolist(), strict=True))
    shares = np.bincount([n // 100 for n, _ in seen]) / len(seen)
    np.testing.assert_allclose(shares, [0.2, 0.6, 0.2], atol=0.01)
    orders = {}
    for number, epoch in seen:
        orders.setdefault((number // 100, epoch), []).append(number)
    for (which, epoch), order in orders.items():
        if (
            epoch < max(e for w, e in orders if w == which) - 8
        ):  # what still waits in open rows belongs to the last ones
            assert sorted(order) == [100 * which + n for n in range((3, 4, 3)[which])]
    assert len({tuple(orders[1, epoch]) for epoch in range(8)}) > 1


def test_14_a_long_a_tiny_and_a_long_sample_share_a_row():
    row = [Sample(example(n, "text_qa", size), 0, 0, size, 0) for n, size in enumerate((30, 1, 30))]
    batch = assemble([row], PACKING, VOCABULARY)
    assert batch.inputs.segment_ids[0].tolist() == [1] * 30 + [2] + [3] * 30 + [0] * 3
    assert batch.inputs.positions[0, :61].tolist() == [*range(30), 0, *range(30)]


def test_15_one_shard_feeds_every_host(tmp_path):
    shard(
        tmp_path,
        *((f"{n}.{ending}", content) for n in range(32) for ending, content in (("txt", f"t{n}"), ("jpg", PICTURE))),
    )
    records = Examples(opened("tar", tmp_path, columns=PAIRS))
    config = dataclasses.replace(CONFIG, streams=4)
    hosts = [hosted({"text_qa": records}, {"text_qa": 1.0}, config, [stream]) for stream in range(4)]
    seen = [[], [], [], []]
    for _ in range(12):
        for host, mine in zip(hosts, seen, strict=True):
            batch = next(host)
            mine += [(n, e) for n, e in zip(batch.sample_ids.flat, batch.epochs.flat, strict=True) if n]
    assert all(len(mine) > 8 for mine in seen)
    together = [pair for mine in seen for pair in mine]
    assert len(set(together)) == len(together) and len({n for n, e in together if e == 0}) == 32
