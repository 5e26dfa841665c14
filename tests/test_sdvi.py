"""SDVI's rules, each with an example it must drop or rewrite and one it must leave alone; and the builder."""

import dataclasses
import json
import random
import shutil

import numpy as np
import pytest

from data_pipelines.scenes.candidates import SORTS, draw_candidate
from data_pipelines.scenes.scene import generator, sample_scene
from data_pipelines.scenes.tasks import make_record
from data_pipelines.sdvi import build as building
from data_pipelines.sdvi import rules
from data_pipelines.sdvi.build import build
from data_pipelines.sdvi.opening import opened, sdvi_config
from data_pipelines.sdvi.reader import SDVI_READER
from data_pipelines.sdvi.records import VOICES, SdviConfig, SdviRecords, turns_of
from data_pipelines.sdvi.rules import speakable
from data_pipelines.speakers.gate import Gate, GateConfig
from data_pipelines.speakers.kinds import ScenesSpeaker, SpeakerConfig
from omnidiff_jax.config import to_dict
from omnidiff_jax.data.readers import SourceConfig
from omnidiff_jax.data.sources import JsonlRecords
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.audio import read_audio
from omnidiff_jax.media.image import png_bytes, read_image, write_png
from omnidiff_jax.records import Medium, Message, Record, RejectedRecord, Waveform, stable_id

DIRECT = "Answer with the option's letter from the given choices directly."
HINT = "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end."


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("What is 3 + 4?", "7", rules.MATHEMATICS),
        ("Solve for x.", "x = 3", rules.MATHEMATICS),
        ("How long is the side?", "It is $\\frac{3}{4}$ of the base.", rules.MATHEMATICS),
        ("Calculate the area.", "twelve", rules.MATHEMATICS),
        ("What is the perimeter of the garden?", "twelve metres", rules.MATHEMATICS),
        ("What is left?", "7 - 2", rules.MATHEMATICS),
        ("What does it print?\n```\nx\n```", "x", rules.PROGRAMMING),
        ("Write a Python function.", "ok", rules.PROGRAMMING),
        ("What is shown?", "def f(x): return x", rules.PROGRAMMING),
        ("What is shown?", "import os", rules.PROGRAMMING),
        ("What is shown?", "<div>hello</div>", rules.PROGRAMMING),
        ("Describe the picture.", "word " * 101, rules.LONG_ANSWER),
        ("What is it?\nA. red\nB. blue", "D", rules.UNRESOLVED_CHOICE),
        ("What is it?\nA. red\nB. blue", "green", rules.UNRESOLVED_CHOICE),
        (f"What is in the picture? {DIRECT}", "C", rules.UNRESOLVED_CHOICE),
        ("Which statement is true?\nA. the cat sleeps\nB. the dog sleeps", "A", rules.NEEDS_CHOICES),
        ("What is here?\nA. a cat\nB. a dog\nC. all of the above", "C", rules.NEEDS_CHOICES),
        ("<image>", "red", rules.NOTHING_TO_SAY),
        ("What is it?", "?!", rules.NOTHING_TO_SAY),
    ],
)
def test_pairs_that_are_dropped(question, answer, reason):
    with pytest.raises(RejectedRecord) as caught:
        speakable(question, answer)
    assert caught.value.reason == reason
    assert reason in rules.REASONS


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("How many sides has a triangle?", "three sides"),
        ("What time is it?", "It is open 24/7."),
        ("When was this?", "From 1990 - 1995, I think."),
        ("What does it cost?", "from $5 to $10"),
        ("Is the barcode on the computer visible?", "Yes, important things are in focus."),
        ("Is it a 5* hotel?", "No, but one with 4+ stars."),
        ("Describe the picture.", "word " * 99 + "word"),
        ("Who is J. A. Smith?", "a *really* kind man"),
        ("What do red and yellow make?", "orange"),
    ],
)
def test_pairs_that_are_left_alone(question, answer):
    pair = speakable(question, answer)
    assert (pair.question, pair.answer, pair.rewritten) == (question, answer, False)


@pytest.mark.parametrize(
    ("question", "answer", "opened", "words"),
    [
        (f"What color is it?\nA. red\nB. blue\nC. green\n{DIRECT}", "B", "What color is it?", "blue"),
        (
            f"<image>\n{HINT}\nQuestion: What is it?\nChoices:\n(A) a cat\n(B) a dog",
            "The answer is B",
            "What is it?",
            "a dog",
        ),
        ("Which is bigger? (A) the car (B) the bus. Answer with the letter.", "(A)", "Which is bigger?", "the car"),
        ("What is it? Options: A. a tree B. a house", "A.", "What is it?", "a tree"),
        ("What is it?\nA. red\nB. blue", "B. blue", "What is it?", "blue"),
        ("What is it?\na) red\nb) blue", "Blue.", "What is it?", "blue"),
        (
            "What is it?\nA. red\nB. blue",
            "The answer is B because it rains.",
            "What is it?",
            "The answer is blue because it rains.",
        ),
        ("Which of the following animals is it?\nA. cat\nB. dog", "A", "Which animals is it?", "cat"),
    ],
)
def test_multiple_choice_becomes_open(question, answer, opened, words):
    pair = speakable(question, answer)
    assert (pair.question, pair.answer, pair.rewritten) == (opened, words, True)


def test_candidates_of_scenes_are_dropped_or_rewritten_by_their_sort():
    outcomes = {sort: set() for sort in SORTS}
    for index in range(400):
        scene = sample_scene(index, "train")
        candidate = draw_candidate(scene, generator("candidate", index))
        try:
            pair = speakable(candidate.question, candidate.answer)
        except RejectedRecord as rejection:
            outcomes[candidate.sort].add(rejection.reason)
        else:
            outcomes[candidate.sort].add("rewritten" if pair.rewritten else "kept")
            assert "\n" not in pair.question
            assert len(pair.answer) > 1
    assert outcomes == {
        "open": {"kept"},
        "choice": {"rewritten"},
        "mathematics": {rules.MATHEMATICS},
        "programming": {rules.PROGRAMMING},
        "essay": {rules.LONG_ANSWER},
    }


# ---- building ----------------------------------------------------------------------------------------------

RATE = 16000


class Beeper:
    """A stand-in for speech: a third of a second a word, its loudness by voice, text and seed; too long a word is lost.

    Attributes:
        said: every line it was asked for, of all beepers.
        patience: lines until it breaks down.
    """

    name, licence, said, patience = "beeper", "public domain", [], 10**9

    def __init__(self, voices=VOICES):
        self.voices = voices

    def say(self, lines):
        for line in lines:
            if len(self.said) >= self.patience:
                raise RuntimeError("no speech today")
            self.said.append(line)
        return [self._beep(line) for line in lines]

    def _beep(self, line):
        drawn = np.random.default_rng(stable_id(line.text, line.voice, line.seed)).uniform(-0.5, 0.5, RATE // 3)
        lost = "incomprehensible" in line.text or ("mumbled" in line.text and not line.seed)
        return Waveform(np.tile(drawn.astype(np.float32), 0 if lost else len(line.text.split())), RATE)

    def described(self, voice):
        return f"tone {voice}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beeps(SpeakerConfig, word="beeps"):
    def open(self):
        return Beeper(self.voices)


@pytest.fixture
def said(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("OMNIDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(Beeper, "said", [])
    return Beeper.said


def manifest(folder, samples):
    write_png(folder / "a.png", np.zeros((4, 4, 3), np.uint8))
    lines = []
    for turns in samples:
        messages = [{"role": role, "content": content} for role, content in turns]
        lines.append(json.dumps({"messages": messages, "images": ["a.png"]}))
    (folder / "set.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "set.jsonl"


def config_of(source, task="spoken_vqa", **others):
    return SdviConfig(SourceConfig("jsonl", path=str(source)), task, Beeps(), **others)


def asked(*questions):
    return [[("user", f"<|image|>\n{question}"), ("assistant", "a cat")] for question in questions]


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records_of(source, task="spoken_vqa"):
    speaker = Beeper()
    return SdviRecords(source, task, speaker, Gate(GateConfig(), speaker), turns_of(source, task))


def test_spoken_vqa_set_is_built_and_read_back(said, tmp_path):
    source = manifest(
        tmp_path,
        [
            [("user", "<|image|>\nWhat is it?"), ("assistant", "a cat"), ("user", "And this?"), ("assistant", "a dog")],
            [("user", "<|image|>\nWhat is 1 + 1?"), ("assistant", "2")],
            [("user", f"<|image|>\nColor?\nA. red\nB. blue\n{DIRECT}"), ("assistant", "A")],
            [("user", "<|image|>\nWhat was mumbled?"), ("assistant", "incomprehensible")],
        ],
    )
    with source.open("a") as lines:
        lines.write("not json\n")
        lines.write(
            json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]})
        )
    told = build(config_of(source), tmp_path / "out")
    rejected = {"answer silent": 1, "line is not JSON": 1, "mathematics": 1, "no image": 1}
    assert {key: told[key] for key in ("candidates", "accepted", "rewritten", "clips", "rejected")} == {
        "candidates": 7,
        "accepted": 3,
        "rewritten": 1,
        "clips": 6,
        "rejected": rejected,
    }
    assert told["failed_attempts"] == {"silent": 1 + 3}, "the question once, the answer every time"
    assert [line.text for line in said if line.voice is None and not line.seed] == [
        "a cat",
        "a dog",
        "red",
        "incomprehensible",
    ]
    records = JsonlRecords(tmp_path / "out" / "data.jsonl")
    assert [record.messages[-1].content for record in records] == [
        "a cat\n<|audio|>",
        "a dog\n<|audio|>",
        "red\n<|audio|>",
    ]
    for record in records:
        assert record.task == "spoken_vqa" and len(record.audios) == 2
        assert read_audio(record.audios[0]).rate == RATE
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "audios",
        "card.json",
        "data.jsonl",
        "images",
    ]


def test_the_card_says_who_spoke_who_listened_and_what_was_left_out(said, tmp_path):
    source = manifest(tmp_path, asked("What is it?", "What is 1 + 1?", "What is mumbled here?"))
    told = build(config_of(source), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "card.json").read_text()) == told
    seconds = sum(read_audio(path).seconds for path in (tmp_path / "out" / "audios").rglob("*.wav"))
    assert told["seconds"] == pytest.approx(seconds, abs=0.01)
    assert told["recogniser"] == "none" and told["word_error_rate"] is None
    assert told["licences"] == {"speech": "public domain", "source": "its own"}
    assert told["voices"]["asking"] == VOICES and told["voices"]["heard"] == 2
    assert told["thresholds"]["attempts"] == 3 and told["settings"]["speaker"]["kind"] == "beeps"
    page = (tmp_path / "out" / "README.md").read_text()
    for words in ("2 of 3 candidates", "| mathematics | 1 |", "silent: 1", "public domain", "tone None"):
        assert words in page


def test_speech_to_image_set(said, tmp_path):
    source = manifest(tmp_path, [[("user", "Generate an image.\na red door"), ("assistant", "<|image|>")]])
    told = build(config_of(source, "s2i", seed=1), tmp_path / "out")
    assert told["accepted"] == 1
    (record,) = JsonlRecords(tmp_path / "out" / "data.jsonl")
    assert record.messages[-1].content == "<|image|>"
    assert said[0].text == "a red door"


def test_a_killed_build_goes_on_and_is_what_an_uninterrupted_one_is(said, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "PART", 3)
    monkeypatch.setattr(building, "_TOGETHER", 2)
    config = config_of(manifest(tmp_path, asked(*(f"Is it number {i}?" for i in range(10)))))
    build(config, tmp_path / "whole", 1)
    monkeypatch.setattr(Beeper, "patience", len(said) + 14)
    with pytest.raises(RuntimeError, match="no speech"):
        build(config, tmp_path / "killed", 1)
    assert not (tmp_path / "killed" / "data.jsonl").exists()
    monkeypatch.setattr(Beeper, "patience", 10**9)
    said.clear()
    build(config, tmp_path / "killed", 1)
    assert len(said) == 2 * (10 - 6), "two parts of three were done"
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    monkeypatch.setattr(Beeper, "patience", 0)
    with pytest.raises(RuntimeError, match="no speech"):
        build(config, tmp_path / "other", 1)
    with pytest.raises(UserError, match="begun with other settings"):
        build(dataclasses.replace(config, seed=5), tmp_path / "other", 1)


def test_a_record_is_the_same_alone_together_and_in_any_order(said):
    image = np.zeros((2, 2, 3), np.uint8)

    def record(question):
        return Record(0, "vqa", (Message("user", question), Message("assistant", "yes")), (image,))

    source = [record(f"Is it mumbled {i}?" if i % 3 else "What is 1 + 1?") for i in range(12)]
    records = records_of(source)
    together = records.made(range(12))
    order = list(range(12))
    random.Random(1).shuffle(order)
    for index in order:
        made = together[index]
        if made.record is None:
            with pytest.raises(RejectedRecord) as caught:
                records[index]
            assert caught.value.reason == made.reason == rules.MATHEMATICS
            continue
        alone = records[index]
        assert alone.meta == made.record.meta and alone.sample_id == made.record.sample_id
        for one, other in zip(alone.audios, made.record.audios, strict=True):
            np.testing.assert_array_equal(one.samples, other.samples)


def test_voices_do_not_depend_on_what_is_dropped(said):
    def record(question):
        return Record(
            0, "vqa", (Message("user", question), Message("assistant", "yes")), (np.zeros((2, 2, 3), np.uint8),)
        )

    def voices(questions):
        made = records_of([record(q) for q in questions]).made(range(len(questions)))
        return {one.record.meta["heard"]: one.record.meta["voice"] for one in made if one.record}

    questions = [f"Is it number {i}?" for i in range(200)]
    some = list(questions)
    for dropped in random.Random(0).sample(range(200), 50):
        some[dropped] = "What is 1 + 1?"
    everything, kept = voices(questions), voices(some)
    assert len(kept) == 150 and all(everything[question] == voice for question, voice in kept.items())
    assert len(set(everything.values())) > 150
    assert all(0 <= voice < VOICES == 1000 for voice in everything.values())


def test_text_to_image_without_a_prompt_is_counted(said):
    silent = Record(
        0, "t2i", (Message("user", " "), Message("assistant", "<|image|>")), (np.zeros((2, 2, 3), np.uint8),)
    )
    (made,) = records_of([silent], "s2i").made([0])
    assert made.record is None and made.reason == rules.NOTHING_TO_SAY


def test_settings_are_a_file_and_a_reader(said, tmp_path):
    source = manifest(tmp_path, asked("What is it?", "And what is that?"))
    settings = tmp_path / "sdvi.json"
    settings.write_text(json.dumps(to_dict(config_of(source))))
    assert sdvi_config(settings) == config_of(source)
    named = SourceConfig("sdvi", path=str(settings))
    records = SDVI_READER.records(named)
    assert len(records) == 2 and records[1].meta["heard"] == "And what is that?"
    before = SDVI_READER.identity(named, None)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(source, moved / "set.jsonl")
    shutil.move(tmp_path / "a.png", moved)
    settings.write_text(json.dumps(to_dict(config_of(moved / "set.jsonl"))))
    assert SDVI_READER.identity(named, None) == before, "what is made does not hang on where it lies"
    settings.write_text(json.dumps(to_dict(config_of(moved / "set.jsonl", gate=GateConfig(attempts=1)))))
    assert SDVI_READER.identity(named, None) != before
    with pytest.raises(UserError, match="task"):
        SDVI_READER.records(SourceConfig("sdvi", path=str(settings), task="s2i"))
    settings.write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        sdvi_config(settings)
    settings.write_text(json.dumps({"source": {"reader": "jsonl"}, "task": "spoken_vqa", "gate": {"pauze": 1.0}}))
    with pytest.raises(UserError, match="pause"):
        sdvi_config(settings)


def test_build_refuses_what_it_cannot_build(said, tmp_path):
    source = manifest(tmp_path, asked("What is it?"))
    with pytest.raises(UserError, match="exists"):
        build(config_of(source), tmp_path)
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        build(config_of(tmp_path / "nowhere.jsonl"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_image_is_counted(said, tmp_path):
    source = manifest(tmp_path, asked("What is it?"))
    (tmp_path / "a.png").unlink()
    assert build(config_of(source), tmp_path / "out")["rejected"] == {"image file is missing": 1}


def test_pictures_within_other_files_are_decoded_or_rejected(said):
    whole = Medium("a.png", content=png_bytes(np.full((2, 3, 3), 9, np.uint8)))
    turns = (Message("user", "What is it?"), Message("assistant", "yes"))
    source = [Record(0, "vqa", turns, (medium,)) for medium in (whole, Medium("b.png", content=b"no picture"))]
    good, bad = records_of(source).made(range(2))
    assert (good.record.images[0] == 9).all() and good.record.images[0].shape == (2, 3, 3)
    assert bad.record is None and bad.reason == "unusable image"


def test_pictures_in_memory_are_stored(said, tmp_path):
    scenes = SourceConfig("scenes", task="vqa", examples=3)
    told = build(SdviConfig(scenes, "spoken_vqa", Beeps()), tmp_path / "out")
    assert told["accepted"] == 3
    first = JsonlRecords(tmp_path / "out" / "data.jsonl")[0]
    np.testing.assert_array_equal(read_image(first.images[0]), make_record("vqa", 0, "train").images[0])


def test_scenes_record_is_what_the_builder_makes():
    record = make_record("spoken_vqa", 0, "train")
    pair = Record(
        0, "vqa", (Message("user", record.meta["heard"]), Message("assistant", record.meta["answer"])), record.images
    )
    speaker = ScenesSpeaker().open()
    records = SdviRecords([pair], "spoken_vqa", speaker, Gate(GateConfig(), speaker), np.ones(1, int))
    assert records[0].messages == record.messages
    np.testing.assert_array_equal(records[0].audios[1].samples, record.audios[1].samples)


@pytest.mark.slow
def test_two_processes_build_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "PART", 4)
    scenes = SourceConfig("scenes", task="vqa", examples=10)
    for processes in (1, 2):
        build(SdviConfig(scenes, "spoken_vqa"), tmp_path / str(processes), processes)
    assert content(tmp_path / "1") == content(tmp_path / "2")
    assert opened(SdviConfig(scenes, "spoken_vqa")).speaker.voices == VOICES
