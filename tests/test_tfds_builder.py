"""The TFDS builder of Scenes: its features hold a whole record; writing needs TensorFlow, reading does not."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tfds_toys import write_tfds

from data_pipelines.scenes.tasks import TASKS, make_record
from data_pipelines.tfds_builders import scenes
from data_pipelines.tfds_builders.reader import TFDS_READER
from omnidiff_jax.codecs.encode import load_media
from omnidiff_jax.data.readers import SourceConfig
from omnidiff_jax.data.sources import TfdsRecords
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.image import png_bytes


def assert_same(found, record):
    assert (found.sample_id, found.task, found.messages) == (record.sample_id, record.task, record.messages)
    assert found.meta == record.meta
    assert (found.hole is None) == (record.hole is None) and np.array_equal(found.hole, record.hole)
    for mine, theirs in zip(found.images, record.images, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for mine, theirs in zip(found.audios, record.audios, strict=True):
        assert mine.rate == theirs.rate
        np.testing.assert_allclose(mine.samples, theirs.samples, atol=2**-14)  # wav files have 16 bits


@pytest.mark.parametrize("name", TASKS)
def test_example_holds_the_whole_record(name):
    record = make_record(name, 1, "train")
    example = scenes.to_example(record)
    assert_same(scenes.to_record(example), record)
    # As TFDS reads it: bytes for text, and a dictionary of sequences.
    messages = {key: [message[key].encode() for message in example["messages"]] for key in ("role", "content")}
    read = example | {"task": name.encode(), "meta": example["meta"].encode(), "messages": messages}
    assert_same(scenes.to_record(read), record)


def test_every_task_has_a_config():
    assert {config.task: config.name for config in scenes.Scenes.BUILDER_CONFIGS} == {name: name for name in TASKS}


def test_builder_writes_array_records_that_read_back(tmp_path):
    pytest.importorskip("tensorflow", reason="TFDS needs TensorFlow (extra `build`) to write")
    pytest.importorskip("apache_beam", reason="Beam (extra `build`) makes the examples")
    config = scenes.ScenesConfig(name="tiny", task="spoken_vqa", train=3, test=2, compositional=1)
    builder = scenes.Scenes(config=config, data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare(download_config=scenes.download_config("DirectRunner"))
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "train": 3,
        "test": 2,
        "compositional": 1,
    }
    source = TfdsRecords(builder.data_dir, "train", scenes.to_record)
    expected = {record.sample_id: record for record in (make_record("spoken_vqa", i, "train") for i in range(3))}
    assert len(source) == len(expected)
    for index in range(len(source)):
        assert_same(source[index], expected[source[index].sample_id])


def flat(record):
    """A record without media as the builder's features name its parts."""
    return {
        "sample_id": [record.sample_id],
        "task": [record.task],
        "messages/role": [message.role for message in record.messages],
        "messages/content": [message.content for message in record.messages],
        "images": [],
        "audios": [],
        "holes": [],
        "meta": [json.dumps(record.meta)],
    }


def test_a_prepared_set_is_encoded_by_the_command(tmp_path, omnidiff):
    records = [make_record("text_qa", index, "train") for index in range(3)]
    write_tfds(tmp_path / "set", "scenes", scenes.features(), [flat(record) for record in records])
    words = ("--config=experiments/configs/nano.py", f"--tfds={tmp_path / 'set'}", "--split=train[1:]", "--json")
    done = omnidiff("data", "build", str(tmp_path / "out"), "--task=text_qa", *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["text_qa"]["examples"] == 2
    manifest = json.loads((tmp_path / "out" / "text_qa" / "manifest.json").read_text())
    told = {"task": "text_qa", "path": str(tmp_path / "set"), "split": "train[1:]"}
    assert manifest["origin"] == told | {"world": manifest["origin"]["world"]}
    refused = omnidiff("data", "build", str(tmp_path / "more"), *words)
    assert refused.returncode == 2 and "--tfds needs --task" in refused.stderr


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A set that nothing of this project wrote: pictures with labels, and what is said of them."""
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            "info": {"asked": tfds.features.Text(), "times": np.int64},
        }
    )
    picture = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    rows = [
        {"image": [png_bytes(picture)], "label": [label], "info/asked": [" What  is it? "], "info/times": [3]}
        for label in (1, 0)
    ]
    place = tmp_path_factory.mktemp("elsewhere") / "set"
    write_tfds(place, "elsewhere", features, rows)
    return place, picture


def opened(place, columns, **settings):
    config = SourceConfig("tfds", path=str(place), columns=columns, **settings)
    return TFDS_READER.records(config)


def test_a_set_from_elsewhere_is_read_by_columns(elsewhere):
    place, picture = elsewhere
    read = opened(place, {"image": "image", "text": "label"})
    shown = [read[index] for index in range(len(read))]
    assert [record.task for record in shown] == ["captioning"] * 2
    assert [record.messages[-1].content for record in shown] == ["dog", "cat"]
    np.testing.assert_array_equal(load_media(shown[0]).images[0], picture)

    asked = opened(place, {"image": "image", "question": "info.asked", "answer": "label"})[1]
    assert asked.task == "vqa" and asked.messages[-1].content == "cat"
    assert asked.messages[-2].content.startswith("What is it?")


def test_sounds_of_a_set_from_elsewhere(tmp_path):
    pytest.importorskip("tensorflow", reason="TFDS needs TensorFlow (extra `build`) for its Audio")
    features = {"speech": tfds.features.Audio(sample_rate=16000), "words": tfds.features.Text()}
    rows = [{"speech": [0, 16384, -16384], "words": ["good day"]}]
    write_tfds(tmp_path / "set", "sounds", tfds.features.FeaturesDict(features), rows)
    heard = opened(tmp_path / "set", {"audio": "speech", "text": "words"}, task="asr")[0]
    assert heard.messages[-1].content == "good day" and heard.audios[0].rate == 16000
    np.testing.assert_allclose(heard.audios[0].samples, [0, 0.5, -0.5])


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({}, "was not written by these builders .* columns.text, .* it has image, info, label"),
        ({"image": "imag", "text": "label"}, "no column 'imag'; .*image"),
        ({"picture": "image"}, "picture"),
    ],
)
def test_what_a_set_from_elsewhere_lacks_is_said(elsewhere, columns, said):
    with pytest.raises(UserError, match=said):
        opened(elsewhere[0], columns)
