"""SDVI's rules, each with an example it must drop or rewrite and one it must leave alone; and the builder."""

import json
import random

import numpy as np
import pytest

from data_pipelines.scenes.candidates import SORTS, draw_candidate
from data_pipelines.scenes.scene import generator, sample_scene
from data_pipelines.scenes.tasks import make_record, speaker
from data_pipelines.sdvi import rules
from data_pipelines.sdvi.build import VOICES, Counts, build, build_speech_to_image, build_spoken_vqa
from data_pipelines.sdvi.rules import speakable
from omnidiff_jax.data.sources import JsonlRecords
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.audio import read_audio
from omnidiff_jax.media.image import write_png
from omnidiff_jax.records import Message, Record, RejectedRecord, Waveform

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


class Beeper:
    """A stand-in for speech: remembers what it was asked to say."""

    def __init__(self):
        self.said = []

    def __call__(self, text, voice):
        self.said.append((text, voice))
        return Waveform(np.full(160 * (2 + len(text)), 0.1, np.float32), 16000)


def manifest(folder, samples):
    write_png(folder / "a.png", np.zeros((4, 4, 3), np.uint8))
    lines = []
    for turns in samples:
        messages = [{"role": role, "content": content} for role, content in turns]
        lines.append(json.dumps({"messages": messages, "images": ["a.png"]}))
    (folder / "set.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "set.jsonl"


def test_spoken_vqa_set_is_built_and_read_back(tmp_path):
    source = manifest(
        tmp_path,
        [
            [("user", "<|image|>\nWhat is it?"), ("assistant", "a cat"), ("user", "And this?"), ("assistant", "a dog")],
            [("user", "<|image|>\nWhat is 1 + 1?"), ("assistant", "2")],
            [("user", f"<|image|>\nColor?\nA. red\nB. blue\n{DIRECT}"), ("assistant", "A")],
        ],
    )
    with source.open("a") as lines:
        lines.write("not json\n")
        lines.write(
            json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]})
        )
    beeper = Beeper()
    counts = build(source, tmp_path / "out", "spoken_vqa", beeper)
    assert counts.to_dict() == {
        "accepted": 3,
        "rewritten": 1,
        "rejected": {"line is not JSON": 1, "mathematics": 1, "no image": 1},
    }
    assert [text for text, voice in beeper.said if voice is None] == ["a cat", "a dog", "red"]
    assert [text for text, voice in beeper.said if voice is not None] == ["What is it?", "And this?", "Color?"]
    records = JsonlRecords(tmp_path / "out" / "data.jsonl")
    assert [record.messages[-1].content for record in records] == [
        "a cat\n<|audio|>",
        "a dog\n<|audio|>",
        "red\n<|audio|>",
    ]
    assert {record.task for record in records} == {"spoken_vqa"}
    for record in records:
        assert len(record.audios) == 2
        assert read_audio(record.audios[0]).rate == 16000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "out", "set.jsonl"]


def test_speech_to_image_set(tmp_path):
    source = manifest(tmp_path, [[("user", "Generate an image.\na red door"), ("assistant", "<|image|>")]])
    beeper = Beeper()
    counts = build(source, tmp_path / "out", "s2i", beeper, seed=1)
    assert counts.accepted == 1
    (record,) = JsonlRecords(tmp_path / "out" / "data.jsonl")
    assert record.messages[-1].content == "<|image|>"
    assert beeper.said[0][0] == "a red door"


def test_voices_do_not_depend_on_what_is_dropped():
    def record(question):
        return Record(
            0, "vqa", (Message("user", question), Message("assistant", "yes")), (np.zeros((2, 2, 3), np.uint8),)
        )

    def voices(questions):
        records = build_spoken_vqa([record(q) for q in questions], Beeper(), Counts())
        return {r.meta["heard"]: r.meta["voice"] for r in records}

    questions = [f"Is it number {i}?" for i in range(200)]
    some = list(questions)
    for dropped in random.Random(0).sample(range(200), 50):
        some[dropped] = "What is 1 + 1?"
    everything, kept = voices(questions), voices(some)
    assert all(everything[question] == voice for question, voice in kept.items())
    assert len(set(everything.values())) > 150
    assert all(0 <= voice < VOICES == 1000 for voice in everything.values())


def test_text_to_image_without_a_prompt_is_counted():
    counts = Counts()
    silent = Record(
        0, "t2i", (Message("user", " "), Message("assistant", "<|image|>")), (np.zeros((2, 2, 3), np.uint8),)
    )
    assert not list(build_speech_to_image([silent], Beeper(), counts))
    assert counts.rejected == {rules.NOTHING_TO_SAY: 1}


def test_build_refuses_and_leaves_nothing_half_written(tmp_path):
    source = manifest(tmp_path, [[("user", "<|image|>\nWhat is it?"), ("assistant", "a cat")]])

    def broken(text, voice):
        raise RuntimeError("no speech today")

    with pytest.raises(RuntimeError, match="no speech"):
        build(source, tmp_path / "out", "spoken_vqa", broken)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "set.jsonl"]
    with pytest.raises(UserError, match="exists"):
        build(source, tmp_path, "spoken_vqa", Beeper())
    with pytest.raises(UserError, match="spoken_vqa"):
        build(source, tmp_path / "out", "spoken_vqua", Beeper())
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        build(tmp_path / "nowhere.jsonl", tmp_path / "out", "s2i", Beeper())


def test_missing_image_is_counted(tmp_path):
    source = manifest(tmp_path, [[("user", "<|image|>\nWhat is it?"), ("assistant", "a cat")]])
    (tmp_path / "a.png").unlink()
    assert build(source, tmp_path / "out", "spoken_vqa", Beeper()).to_dict()["rejected"] == {"image file is missing": 1}


def test_scenes_record_is_what_the_builder_makes():
    record = make_record("spoken_vqa", 0, "train")
    pair = Record(
        0, "vqa", (Message("user", record.meta["heard"]), Message("assistant", record.meta["answer"])), record.images
    )
    (built,) = build_spoken_vqa([pair], speaker, Counts())
    assert built.messages == record.messages
    np.testing.assert_array_equal(built.audios[1].samples, record.audios[1].samples)
