"""Records to examples to bytes to disk and back; JSONL and TFDS sources; bad media counted, never fatal."""

import collections
import dataclasses
import json

import numpy as np
import pytest
from data_world import VOCABULARY, example
from hypothesis import given
from hypothesis import strategies as st
from tfds_toys import write_tfds

from omnidiff_jax.codecs import encode
from omnidiff_jax.codecs.judgment import check_trainable
from omnidiff_jax.data import serialization, sources, storage
from omnidiff_jax.data.check import check_jsonl, report_lines
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.audio import write_wav
from omnidiff_jax.media.image import write_png
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG, Message, Record, RejectedRecord, Waveform
from omnidiff_jax.tasks.chat import ChatLayout
from omnidiff_jax.tasks.registry import TASKS
from omnidiff_jax.tokenizers import assets

FINGERPRINT = "those of the test"


class Letters:
    size = 300

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode()

    def untaught(self, text):
        return []


def tone(seconds, rate=16000):
    return Waveform(np.sin(np.arange(int(seconds * rate)) / 9).astype(np.float32) / 2, rate)


def picture(value, height=8, width=8):
    return np.full((height, width, 3), value, np.uint8)


class FakeTokenizers:
    """Codes that name what was encoded, and a record of the calls."""

    def __init__(self):
        self.image_calls = []

    def images(self, pixels):
        self.image_calls.append(pixels.shape)
        assert pixels.dtype == np.uint8
        cells = (pixels.shape[1] // 4) ** 2
        return np.repeat(pixels[:, :1, 0, 0] % 16, cells, axis=1)

    def speech(self, waves):
        if any(len(wave.samples) < 100 for wave in waves):
            raise UserError("audio is too short")
        return [np.full(max(1, int(wave.seconds * 12.5)), len(waves) % 2) for wave in waves]

    def features(self, wave):
        if not np.isfinite(wave.samples).all():
            raise UserError("audio holds NaN")
        return np.full((int(wave.seconds / 0.06), 560), wave.samples[1], np.float32)

    def codecs(self):
        layout = ChatLayout(VOCABULARY, Letters())
        return encode.Codecs(layout, self.images, self.speech, self.features, None, None, (2, 2), 16, 8)


def turn(user, assistant):
    return (Message("user", user), Message("assistant", assistant))


RECORDS = [
    Record(1, "text_qa", turn("hi", "ho")),
    Record(2, "vqa", turn("what?\n<|image|>", "red"), images=(picture(5),)),
    Record(3, "t2i", turn("draw", "<|image|>"), images=(picture(7),)),
    Record(4, "asr", turn("hear\n<|audio|>", "one"), audios=(tone(0.5),)),
    Record(5, "spoken_vqa", turn("<|audio|>\n<|image|>", "two\n<|audio|>"), (picture(9),), (tone(0.3), tone(0.4))),
]


def test_records_become_examples():
    fakes = FakeTokenizers()
    examples = list(encode.encode(RECORDS, fakes.codecs()))
    assert [e.sample_id for e in examples] == [1, 2, 3, 4, 5]
    vocabulary = VOCABULARY
    counted = [
        (vocabulary.image.contains(e.tokens).sum(), vocabulary.speech.contains(e.tokens).sum()) for e in examples
    ]
    assert counted == [(0, 0), (16, 0), (4, 0), (0, 0), (16, 5)]
    assert [e.frame_counts.tolist() for e in examples] == [[], [], [], [8], [5]]
    assert examples[3].frames.shape == (8, 560) and examples[3].frames.dtype == np.float16
    assert (examples[3].tokens == vocabulary.context_audio).sum() == 12
    seen = vocabulary.image.decode(examples[4].tokens[vocabulary.image.contains(examples[4].tokens)])
    assert set(seen.tolist()) == {9}
    # One call for both looked-at images and one for the drawn one.
    assert sorted(fakes.image_calls) == [(1, 8, 8, 3), (2, 16, 16, 3)]


def test_one_bad_record_loses_only_itself():
    nan = Waveform(np.full(8000, np.nan, np.float32), 16000)
    bad = {
        "unusable audio": [
            Record(11, "asr", turn("<|audio|>", "x"), audios=(nan,)),
            Record(12, "asr", turn("<|audio|>", "x"), audios=(tone(0.01),)),
            Record(13, "tts", turn("say", "<|audio|>"), audios=(Waveform(np.zeros(3, np.float32), 16000),)),
        ],
        "images do not match the tags": [Record(14, "t2i", turn("draw", "<|image|>"))],
        "missing image": [Record(15, "vqa", turn("<|image|>", "x"), images=("nowhere.png",))],
        "messages cannot be laid out": [Record(16, "text_qa", (Message("user", "only a question"),))],
    }
    mixed = [record for group in bad.values() for record in group] + RECORDS
    results = list(encode.encode(mixed, FakeTokenizers().codecs(), chunk=6))
    examples = results[-5:]
    rejected = collections.Counter(result.reason for result in results[:-5])
    assert [e.sample_id for e in examples] == [1, 2, 3, 4, 5]
    assert rejected == {reason: len(group) for reason, group in bad.items()}
    source = sources.EncodedRecords(mixed, FakeTokenizers().codecs())
    assert len(source) == len(mixed)
    with pytest.raises(sources.RejectedRecord, match="NaN"):
        source[0]
    np.testing.assert_array_equal(source[6].tokens, examples[0].tokens)


def test_of_a_painted_picture_the_hole_alone_is_learned():
    hole = np.zeros((16, 16), bool)
    hole[:3, 9:] = True  # touches the upper right of 2 x 2 codes
    fake, messages = FakeTokenizers(), turn("paint", IMAGE_TAG)
    whole = Record(1, "t2i", messages, (picture(5, 16, 16),))
    painted = dataclasses.replace(whole, task="inpainting", hole=hole)
    drawn, filled = encode.encode([whole, painted], fake.codecs())
    np.testing.assert_array_equal(drawn.tokens, filled.tokens)
    codes = np.flatnonzero(drawn.tokens == VOCABULARY.begin_image)[0] + 1 + np.arange(4)
    np.testing.assert_array_equal(np.flatnonzero(filled.targets), codes[1:2])
    shown = dataclasses.replace(painted, hole=np.repeat(hole[..., None], 3, axis=-1) * np.uint8(255))
    (light,) = encode.encode([shown], fake.codecs())
    np.testing.assert_array_equal(light.targets, filled.targets)


@pytest.mark.parametrize(
    "task, hole, reason",
    [
        ("inpainting", None, "not a sample of its task"),
        ("t2i", np.ones((16, 16), bool), "not a sample of its task"),
        ("inpainting", np.ones((8, 16), bool), "hole of another size"),
        ("inpainting", np.zeros((16, 16), bool), "hole is empty"),
    ],
)
def test_a_hole_that_cannot_be_painted_is_rejected(task, hole, reason):
    records = [
        Record(1, "text_qa", turn("a", "b")),
        Record(2, task, turn("p", IMAGE_TAG), (picture(5, 16, 16),), hole=hole),
    ]
    _, rejected = encode.encode(records, FakeTokenizers().codecs())
    assert rejected.reason == reason


def test_prompts_are_the_heads_of_training_samples():
    fakes = FakeTokenizers()
    whole = encode.encode_one(RECORDS[3], fakes.codecs())
    question = Record(4, "asr", RECORDS[3].messages[:1], audios=RECORDS[3].audios)
    (prompt,) = encode.encode_prompts([question], fakes.codecs())
    np.testing.assert_array_equal(prompt.tokens, whole.tokens[~whole.targets])
    np.testing.assert_array_equal(prompt.frames, whole.frames)
    assert not prompt.targets.any()
    with pytest.raises(sources.RejectedRecord, match="do not match"):
        encode.encode_prompts([Record(1, "vqa", (Message("user", "<|image|>"),))], fakes.codecs())


def test_images_are_resized_and_cropped_in_the_centre():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    assert (encode.fit_image(wide, 10)[:, 1:-1] > 150).all()
    assert encode.fit_image(np.zeros((1, 100_000, 3), np.uint8), 16).shape == (16, 16, 3)
    assert encode.fit_image(np.zeros((3, 2, 3), np.uint8), 64).shape == (64, 64, 3)
    exact = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    np.testing.assert_array_equal(encode.fit_image(exact, 8), exact)


@given(
    sample_id=st.integers(0, 2**32 - 1),
    task=st.text(max_size=9),
    text=st.integers(1, 40),
    heard=st.lists(st.integers(0, 5), max_size=3),
)
def test_bytes_give_the_example_back(sample_id, task, text, heard):
    made = example(sample_id, task, text, tuple(heard), width=4)
    back = serialization.from_bytes(serialization.to_bytes(made))
    assert (back.sample_id, back.task) == (made.sample_id, made.task)
    for field in ("tokens", "targets", "frame_counts"):
        np.testing.assert_array_equal(getattr(back, field), getattr(made, field))
        assert getattr(back, field).dtype == getattr(made, field).dtype
    np.testing.assert_array_equal(back.frames, made.frames.astype(np.float16))


def test_bytes_that_are_no_example_are_refused():
    data = serialization.to_bytes(example(1, heard=(2,)))
    for broken in (b"", data[:-1], b"XXXX" + data[4:], data[:4] + b"\x09\x00" + data[6:], data + b"0"):
        with pytest.raises(UserError, match="build the data set again"):
            serialization.from_bytes(broken)


def test_sets_survive_the_disk(tmp_path):
    made = [example(i, "hear" if i % 2 else "read", 5 + i, (i,) if i % 2 else ()) for i in range(10)]
    manifest = storage.write_set(tmp_path / "set", iter(made), FINGERPRINT, {"seed": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
    source = storage.EncodedSet(tmp_path / "set", FINGERPRINT)
    assert source.manifest == manifest and len(source) == 10
    assert manifest.tasks == {"hear": 5, "read": 5} and manifest.origin == {"seed": 1}
    for index in (0, 9, 3, 4, 4):
        np.testing.assert_array_equal(source[index].tokens, made[index].tokens)
        assert source[index].sample_id == index
    np.testing.assert_array_equal(source.lengths(), [len(e.tokens) for e in made])
    with pytest.raises(IndexError):
        source[10]
    with pytest.raises(UserError, match="exists already"):
        storage.write_set(tmp_path / "set", iter(made), FINGERPRINT)
    with pytest.raises(UserError, match="other tokenizers"):
        storage.EncodedSet(tmp_path / "set", "others")


def test_fingerprint_of_tokenizers_changes_with_their_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_bytes(b"{}")
    (tmp_path / "a" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "text.model").write_bytes(b"pieces")
    parts = [tmp_path / "a", tmp_path / "text.model"]
    first = assets.fingerprint(parts)
    assert assets.fingerprint(parts) == first
    (tmp_path / "a" / "model.safetensors").write_bytes(b"retrained")
    assert assets.fingerprint(parts) != first
    with pytest.raises(UserError, match="cannot read"):
        assets.fingerprint([tmp_path / "none"])


def test_broken_sets_are_named(tmp_path):
    with pytest.raises(UserError, match=r"manifest\.json"):
        storage.EncodedSet(tmp_path / "none", FINGERPRINT)

    def failing():
        yield example(1)
        raise OSError("disk full")

    with pytest.raises(UserError, match="disk full"):
        storage.write_set(tmp_path / "half", failing(), FINGERPRINT)
    assert not list(tmp_path.iterdir())
    storage.write_set(tmp_path / "set", [example(1), example(2)], FINGERPRINT)
    (shard,) = (tmp_path / "set").glob("*.array_record")
    shard.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="array_record"):
        storage.EncodedSet(tmp_path / "set", FINGERPRINT)
    (tmp_path / "set" / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="not a data set's manifest"):
        storage.EncodedSet(tmp_path / "set", FINGERPRINT)


@pytest.fixture
def manifest(tmp_path):
    """A JSONL set with one good record of each kind and one of every fault."""
    root = tmp_path / "media"
    root.mkdir()
    write_png(root / "red.png", picture(9, 12, 20))
    (root / "torn.png").write_bytes((root / "red.png").read_bytes()[:60])
    write_wav(root / "ask.wav", tone(0.5, 44100))
    (root / "empty.wav").write_bytes(b"")
    (tmp_path / "secret.png").write_bytes((root / "red.png").read_bytes())
    (root / "link.png").symlink_to(tmp_path / "secret.png")

    def line(user, assistant, **media):
        messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        return json.dumps({"messages": messages, **media})

    good = [
        line("hi", "ho", images=None),
        line("what?\n<|image|>", "red", images=["red.png"]),
        line("Convert the speech to text.\n<|audio|>", "one", audios=["ask.wav"]),
        line("name it\n<|image|>", "a wall", images=["red.png"], task="captioning"),
    ]
    bad = {
        "line is not JSON": ["{", "[" * 100_000],
        "no list of messages": ["3", "{}", '{"messages": {}}'],
        "a message is not {role, content} of strings": ['{"messages": [{"role": "user", "content": 3}]}'],
        "unknown role": ['{"messages": [{"role": "bot", "content": "x"}]}'],
        "no assistant message": ['{"messages": [{"role": "user", "content": "x"}]}'],
        "images do not match the tags": [line("a", "b", images=["red.png"]), line("<|image|>", "b")],
        "images is not a list of paths": [line("<|image|>", "b", images=[3]), line("<|image|>", "b", images="red.png")],
        "path leads out of the media folder": [
            line("<|image|>", "b", images=[name])
            for name in ("../secret.png", str(tmp_path / "secret.png"), "link.png")
        ],
        "missing image": [line("<|image|>", "b", images=["none.png"])],
        "unusable image": [line("<|image|>", "b", images=["torn.png"])],
        "missing audio": [line("<|audio|>", "b", audios=["none.wav"])],
        "unusable audio": [line("<|audio|>", "b", audios=["empty.wav"])],
        "unknown task": [line("a", "b", task=3)],
    }
    lines = [*good[:2], "", *(entry for group in bad.values() for entry in group), *good[2:]]
    (tmp_path / "set.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "set.jsonl", root, {reason: len(group) for reason, group in bad.items()}


def test_check_counts_every_fault(manifest):
    path, root, faults = manifest
    report = json.loads(json.dumps(check_jsonl(path, root)))
    assert report["accepted"] == 4 and report["rejected"] == faults
    assert report["tasks"] == {"asr": 1, "captioning": 1, "text_qa": 1, "vqa": 1}
    assert report["sizes"]["images"] == 2 and report["sizes"]["pixels"] == 480
    assert report["sizes"]["seconds_heard"] == 0.5 and report["sizes"]["seconds_spoken"] == 0
    assert all(detail.startswith(reason) for reason, detail in report["examples_of_rejects"].items())
    with pytest.raises(UserError, match="cannot read"):
        check_jsonl(path.parent / "none.jsonl")


def test_jsonl_trains_past_its_faults(manifest):
    path, root, faults = manifest
    records = sources.JsonlRecords(path, root)
    assert len(records) == 4 + sum(faults.values())
    source = sources.EncodedRecords(records, FakeTokenizers().codecs())
    kept, rejected = [], collections.Counter()
    for index in range(len(source)):
        try:
            kept.append(source[index])
        except sources.RejectedRecord as error:
            rejected[error.reason] += 1
    assert [e.task for e in kept] == ["text_qa", "vqa", "asr", "captioning"] and rejected == faults
    assert len({e.sample_id for e in kept}) == 4


def test_tfds_sets_are_read_without_tensorflow(tmp_path):
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({"sample_id": np.int64, "question": tfds.features.Text()})
    write_tfds(tmp_path, "toy", features, [{"sample_id": [i], "question": [f"how many {i}"]} for i in range(3)])

    def parse(found):
        return Record(int(found["sample_id"]), "text_qa", turn(found["question"].decode(), "ho"))

    records = sources.TfdsRecords(tmp_path, "train", parse)
    assert len(records) == 3 and records[2] == Record(2, "text_qa", turn("how many 2", "ho"))
    assert len(sources.EncodedRecords(records, FakeTokenizers().codecs())[0].tokens) > 10
    assert len(sources.TfdsRecords(tmp_path, "train[1:]", parse)) == 2
    for folder, name in ((tmp_path, "test"), (tmp_path / "none", "train")):
        with pytest.raises(UserError, match=f"cannot open split '{name}'"):
            sources.TfdsRecords(folder, name, parse)


SILENCE = Waveform(np.zeros(8000, np.float32), 16000)
UNTRAINABLE = {
    "nothing said": Record(1, "text_qa", turn("hi", " \n\u200b")),
    "one of two answers blank": Record(1, "text_qa", (*turn("hi", ""), *turn("and?", "ho"))),
    "no answer": Record(1, "text_qa", (Message("user", "hi"),)),
    "text called asr": Record(1, "asr", turn("hi", "ho")),
    "a drawing called asr": Record(1, "asr", turn("<|audio|>", "<|image|>"), (picture(1),), (tone(1),)),
    "speech called asr": Record(1, "asr", turn("<|audio|>", "<|audio|>"), audios=(tone(1), tone(1))),
    "text called a drawing": Record(1, "t2i", turn("draw", "done")),
    "text called speech": Record(1, "tts", turn("say", "done")),
    "no picture to ask about": Record(1, "vqa", turn("what?", "red")),
    "a picture where none is seen": Record(1, "vqa", turn("what?", "<|image|>"), (picture(1),)),
    "heard in the wrong turn": Record(1, "spoken_qa", turn("hi", "ho\n<|audio|>"), audios=(tone(1),)),
    "silence heard": Record(1, "asr", turn("<|audio|>", "ho"), audios=(SILENCE,)),
    "one sample heard": Record(1, "asr", turn("<|audio|>", "ho"), audios=(tone(1 / 16000),)),
    "one sample spoken": Record(1, "tts", turn("say", "<|audio|>"), audios=(tone(1 / 16000),)),
    "nothing heard": Record(1, "asr", turn("<|audio|>", "ho"), audios=(tone(0),)),
    "an unknown task": Record(1, "dance", turn("hi", "ho")),
}


def written(folder, records):
    """A manifest of records, with their media beside it."""
    lines = []
    for number, record in enumerate(records):
        images = [f"{number}-{place}.png" for place in range(len(record.images))]
        audios = [f"{number}-{place}.wav" for place in range(len(record.audios))]
        for name, image in zip(images, record.images, strict=True):
            write_png(folder / name, image)
        for name, wave in zip(audios, record.audios, strict=True):
            write_wav(folder / name, wave)
        messages = [dataclasses.asdict(message) for message in record.messages]
        lines.append(json.dumps({"messages": messages, "images": images, "audios": audios, "task": record.task}))
    (folder / "set.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "set.jsonl"


@pytest.mark.parametrize("record", [*RECORDS, *UNTRAINABLE.values()], ids=[*(r.task for r in RECORDS), *UNTRAINABLE])
def test_checking_building_and_training_judge_alike(tmp_path, record):
    """What `check` accepts is encoded and trained on, what it rejects is not."""
    path, good = written(tmp_path, [record]), record in RECORDS
    report = check_jsonl(path)
    records, codecs = sources.JsonlRecords(path), FakeTokenizers().codecs()
    assert report["accepted"] == good and sum(report["rejected"].values()) == 1 - good
    assert ("nothing in this set can be trained on" in report_lines(report)) == (not good)
    if good:
        assert len(sources.EncodedRecords(records, codecs)[0].tokens)
        assert len(list(encode.encode([records[0]], codecs))) == 1
        return
    (reason,) = report["rejected"]
    for refused in (lambda: sources.EncodedRecords(records, codecs)[0], lambda: encode.encode_one(records[0], codecs)):
        with pytest.raises(RejectedRecord) as caught:
            refused()
        assert caught.value.reason == reason


@given(st.sampled_from(list(TASKS)), st.sampled_from(list(TASKS)))
def test_a_sample_trains_its_own_task_and_no_unlike_one(of, called):
    """Of every task's own training sample, and the name that its media amount to."""
    chosen = TASKS[of]
    messages = chosen.conversation("ask" if "text" in chosen.inputs else "", "say")
    content = "".join(message.content for message in messages)
    images, audios = (picture(1),) * content.count(IMAGE_TAG), (tone(0.5),) * content.count(AUDIO_TAG)
    for name in (of, sources.infer_task(messages)):
        hole = np.ones((8, 8), bool) if TASKS[name].answer == "hole" else None
        check_trainable(Record(1, name, messages, images, audios, hole=hole))
    # Of the answer's media, in this order: what a task answers with is not taken for another's. Text beside speech is
    # free in both directions, and holes are in pictures.
    media = {"text": 0, "text_and_speech": 1, "speech": 2, "image": 3, "hole": 3}
    one, other = media[TASKS[called].answer], media[chosen.answer]
    if abs(one - other) > 1 or {one, other} == {2, 3} or (one, other) == (0, 1):
        with pytest.raises(RejectedRecord, match="not a sample of its task"):
            check_trainable(Record(1, called, messages, images, audios))


def test_a_set_without_records_is_said_to_be_empty(tmp_path):
    said = " ".join(report_lines(check_jsonl(written(tmp_path, RECORDS))))
    assert "nothing" not in said and "×" not in said, "neither the whole set nor a record is rejected"
    (tmp_path / "set.jsonl").write_text("")
    assert "this set is empty" in report_lines(check_jsonl(tmp_path / "set.jsonl"))


@pytest.mark.parametrize(
    ("user", "assistant", "task"),
    [
        ("draw", "<|image|>", "t2i"),
        ("<|audio|>", "<|image|>", "s2i"),
        ("<|audio|>\n<|image|>", "x\n<|audio|>", "spoken_vqa"),
        ("<|audio|>", "x\n<|audio|>", "spoken_qa"),
        ("say", "<|audio|>", "tts"),
        ("<|audio|>", "x", "asr"),
    ],
)
def test_tasks_follow_from_the_modalities(user, assistant, task):
    assert sources.infer_task(turn(user, assistant)) == task
