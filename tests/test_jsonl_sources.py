"""JSONL manifests as sources: samples are known by content, so that a manifest may move; `~` stands for the home."""

import json

import jax
import numpy as np
import pytest
from data_world import VOCABULARY, example

from omnidiff_jax.codecs.encode import load_media
from omnidiff_jax.data.config import DataConfig
from omnidiff_jax.data.hosting import HostBatches
from omnidiff_jax.data.mixture import Stage
from omnidiff_jax.data.packing import PackingConfig
from omnidiff_jax.data.sources import JsonlRecords, Source
from omnidiff_jax.data.streams import Corpus
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.image import write_png
from omnidiff_jax.records import RejectedRecord
from omnidiff_jax.speech_frames import SpeechLayout

PACKING = PackingConfig(length=64, frames=0, samples=8, open_rows=5, speech=SpeechLayout(width=3))
CONFIG = DataConfig(seed=3, batch_size=4, streams=2, max_tail_pads=16, packing=PACKING)


def turns(asked, answered="yes"):
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def write(file, lines):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


class Lines:
    """The records of a manifest as examples of `text` tokens and more."""

    def __init__(self, file, text=6):
        self.records, self._text = JsonlRecords(file), text

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return example(self.records[index].sample_id, "text_qa", self._text + index % 9)


def batches_of(file, text=6, config=CONFIG):
    lines = Lines(file, text)
    sources = {"mine": Source(lines, "text_qa", lines.records.fingerprint)}
    return HostBatches(Corpus(sources, (Stage(9, weights={"mine": 1.0}, name="all"),), VOCABULARY), config)


@pytest.fixture
def manifest(tmp_path):
    return write(tmp_path / "raw" / "data.jsonl", [{"messages": turns(f"question {i}")} for i in range(40)])


@pytest.mark.parametrize("moved", ["elsewhere/data.jsonl", "raw/renamed.jsonl", "a/b/other.jsonl"])
def test_a_manifest_may_move_between_two_starts(manifest, tmp_path, moved):
    batches = batches_of(manifest)
    for _ in range(3):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    expected = [next(batches) for _ in range(12)]
    (tmp_path / moved).parent.mkdir(parents=True, exist_ok=True)
    manifest.rename(tmp_path / moved)
    again = batches_of(tmp_path / moved)
    again.set_state(state)
    for batch in expected:
        jax.tree.map(np.testing.assert_array_equal, batch, next(again))


def test_samples_are_told_apart_by_content_and_task(manifest, tmp_path):
    copy = write(tmp_path / "copy" / "data.jsonl", [json.loads(line) for line in manifest.read_text().splitlines()])
    other = write(tmp_path / "other" / "data.jsonl", [{"messages": turns(f"another {i}")} for i in range(40)])
    ids = [
        {records[index].sample_id for index in range(len(records))}
        for records in (JsonlRecords(manifest), JsonlRecords(other), JsonlRecords(manifest, task="captioning"))
    ]
    assert len(set.union(*ids)) == 120
    assert {JsonlRecords(copy)[index].sample_id for index in range(40)} == ids[0]


def test_a_saved_row_that_fits_no_longer_is_said_in_one_line(manifest):
    """As of versions that keyed tail pads otherwise, or where media changed under a manifest."""
    batches = batches_of(manifest)
    for _ in range(3):
        next(batches)
    with pytest.raises(UserError, match=r"row that fits no longer: its samples of 'mine' take \d+ tokens") as refused:
        batches_of(manifest, text=20).set_state(batches.get_state())
    assert "\n" not in str(refused.value) and "another --workdir" in str(refused.value)


@pytest.mark.parametrize(
    ("place", "path", "root"),
    [
        ("set", "~/set/data.jsonl", None),
        ("lists", "~/lists/data.jsonl", "~/set"),
        ("lists", "{home}/lists/data.jsonl", "~/set"),
    ],
)
def test_a_tilde_is_the_home_for_a_manifest_and_for_its_media(tmp_path, monkeypatch, place, path, root):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / place / "data.jsonl", [{"messages": turns("what\n<|image|>"), "images": ["a.png"]}])
    (tmp_path / "set").mkdir(exist_ok=True)
    write_png(tmp_path / "set" / "a.png", np.full((4, 5, 3), 7, np.uint8))
    (record,) = JsonlRecords(path.format(home=tmp_path), root)
    assert (load_media(record).images[0] == 7).all()


@pytest.mark.parametrize("key", ["prefix_path", "begin_time", "end"])
def test_keys_that_say_which_part_or_where_are_not_passed_over(key, tmp_path):
    write_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    line = {"messages": turns("<|image|>what?"), "images": ["a.png"]}
    file = write(tmp_path / "a.jsonl", [line, line | {key: 1.5, "id": 7}, {"messages": turns("what?"), key: 1.5}])
    records = JsonlRecords(file)
    assert records[0].images and records[2].task == "text_qa"
    with pytest.raises(RejectedRecord, match=f"key is not understood: .*record 2: '{key}'"):
        records[1]


def test_a_hole_makes_a_sample_one_of_inpainting(tmp_path):
    drawn = [{"role": "user", "content": "a sun"}, {"role": "assistant", "content": "<|image|>"}]
    line = {"messages": drawn, "images": ["sun.png"]}
    lines = [line | {"hole": "hole.png"}, line, line | {"hole": "../hole.png"}, line | {"hole": 3}]
    records = JsonlRecords(write(tmp_path / "data.jsonl", lines))
    assert [(records[i].task, records[i].hole) for i in range(2)] == [
        ("inpainting", str(tmp_path / "hole.png")),
        ("t2i", None),
    ]
    with pytest.raises(RejectedRecord, match="leads out"):
        records[2]
    with pytest.raises(RejectedRecord, match="hole is not a path"):
        records[3]
