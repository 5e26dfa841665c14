"""The registry of tasks and their answers: prompts, inputs, templates, and reading a filled canvas."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnidiff_jax.config import build, to_dict
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG
from omnidiff_jax.sampling.plan import total_steps
from omnidiff_jax.tasks.answers import AnswerForms
from omnidiff_jax.tasks.chat import ChatLayout, segments
from omnidiff_jax.tasks.decodings import DECODINGS
from omnidiff_jax.tasks.registry import TASKS, Decoding, task
from omnidiff_jax.vocabulary import Vocabulary

NAMES = ("text_qa", "captioning", "vqa", "t2i", "asr", "tts", "spoken_qa", "s2i", "spoken_vqa", "inpainting")
# Name in the recorded layouts -> task, request.
RECORDED = {
    "ASR": ("asr", ""),
    "TTS": ("tts", "TEXT"),
    "VQA": ("vqa", "QUESTION"),
    "T2I": ("t2i", "PROMPT"),
    "S2I": ("s2i", ""),
    "SQA": ("spoken_qa", ""),
    "SVQA": ("spoken_vqa", ""),
}


class Letters:
    """One id a byte."""

    size = 256

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


VOCABULARY = Vocabulary.compact(256, 20, 30)
LAYOUT = ChatLayout(VOCABULARY, Letters())
FORMS = AnswerForms(LAYOUT, image_codes=6)
MASK = VOCABULARY.mask


def prompt_string(messages):
    return "".join(segment.value for segment in segments(messages, generate=True))


def message(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_ten_tasks_of_the_scorecard():
    assert tuple(TASKS) == NAMES
    assert all(task(name) is TASKS[name] and task(name).name == name for name in NAMES)


@pytest.mark.parametrize(("wrong", "right"), [("t2j", "t2i"), ("spoken-vqa", "spoken_vqa"), ("caption", "captioning")])
def test_a_misspelt_task_is_answered_with_the_nearest(wrong, right):
    assert message(task, wrong) == f"unknown task {wrong!r}; did you mean {right!r}?"


@pytest.mark.parametrize("name", RECORDED)
def test_prompts_are_the_recorded_strings(golden, name):
    recorded = json.loads((golden / "manifests" / "prompt_layouts.json").read_text())[name]
    chosen, text = RECORDED[name]
    assert prompt_string(task(chosen).prompt(text, style="released")) == recorded
    # Trained samples have no newline before a lone audio tag.
    trained = recorded.replace("user\n\n", "user\n")
    assert prompt_string(task(chosen).prompt(text)) == trained


def test_the_training_sample_begins_with_the_prompt():
    for name in NAMES:
        prompt, sample = task(name).prompt("a question"), task(name).conversation("a question", "an answer")
        assert sample[:-1] == prompt and sample[-1].role == "assistant"
    assert task("spoken_vqa").conversation(answer="red")[-1].content == f"red\n{AUDIO_TAG}"
    assert task("t2i").conversation("a cat")[-1].content == IMAGE_TAG
    assert "Describe the image." in prompt_string(task("captioning").prompt())


def test_inputs_are_checked_by_name():
    task("captioning").check_inputs({"image"})
    task("captioning").check_inputs({"image", "text"})
    task("inpainting").check_inputs({"image", "text", "hole"})
    assert message(task("vqa").check_inputs, {"image"}) == "task vqa needs text; it takes text, image"
    assert message(task("asr").check_inputs, set()) == "task asr needs audio; it takes audio"
    assert message(task("asr").check_inputs, {"audio", "text"}) == "task asr does not take text; it takes audio"
    assert "needs hole" in message(task("inpainting").check_inputs, {"image", "text"})
    said = message(task("vqa").check_inputs, {"image"}, "--{}".format)
    assert said == "task vqa needs --text; it takes --text, --image", "as a command line spells it"


@pytest.mark.parametrize("tag", [IMAGE_TAG, AUDIO_TAG])
def test_a_request_cannot_hold_a_media_tag(tag):
    assert tag in message(task("text_qa").prompt, f"what is {tag}?")


def test_image_answers_are_templates():
    answer = FORMS.build("image", task("t2i").decoding, 0)
    v = VOCABULARY
    closing = [v.end_image, v.im_end, *LAYOUT.encode_text("\n")]
    assert answer.tokens.tolist() == [v.begin_image, *[MASK] * 6, *closing]
    assert (answer.groups == np.where(answer.tokens == MASK, FORMS.sets["image"], 0)).all()


def test_a_hole_keeps_the_other_codes():
    codes, hole = np.arange(6), np.array([0, 1, 0, 0, 1, 0], bool)
    answer = FORMS.build("hole", task("inpainting").decoding, 0, codes, hole)
    inner = answer.tokens[1:7]
    assert (inner == np.where(hole, MASK, VOCABULARY.image.encode(codes))).all()
    assert (answer.groups[1:7] == np.where(hole, FORMS.sets["image"], 0)).all()


def test_lengths_follow_the_request():
    text, asr, tts = (task(name) for name in ("text_qa", "asr", "tts"))
    assert len(FORMS.build(text.answer, dataclasses.replace(text.decoding, length=7), 99)) == 7
    assert len(FORMS.build(asr.answer, asr.decoding, 100, prompt=142)) == 28
    assert len(FORMS.build(tts.answer, tts.decoding, 10)) == 35
    spoken = FORMS.build(tts.answer, tts.decoding, 10)
    assert spoken.tokens[0] == VOCABULARY.begin_audio and (spoken.tokens[1:] == MASK).all()


def test_spoken_answers_are_prefilled():
    chosen = task("spoken_qa")
    answer = FORMS.build(chosen.answer, dataclasses.replace(chosen.decoding, length=40, prefill=0.25), 0)
    assert np.flatnonzero(answer.tokens != MASK).tolist() == [10]
    assert answer.tokens[10] == VOCABULARY.begin_audio
    before, after = FORMS.sets["text_before_speech"], FORMS.sets["speech"]
    assert (answer.groups[:10] == before).all() and (answer.groups[11:] == after).all()
    # Sampling stops at the turn's end: before the speech it would leave the answer mute.
    assert not FORMS.sets.table[before][VOCABULARY.im_end] and FORMS.sets.table[after][VOCABULARY.im_end]
    assert FORMS.sets.table[before][VOCABULARY.pad]
    free = FORMS.build(chosen.answer, dataclasses.replace(chosen.decoding, length=40, prefill=None), 0)
    assert (free.tokens == MASK).all() and (free.groups == FORMS.sets["text_and_speech"]).all()


def test_the_mask_and_the_turn_header_are_never_allowed():
    for name in ("text", "image", "speech", "text_before_speech", "text_and_speech"):
        row = FORMS.sets.table[FORMS.sets[name]]
        assert not row[[MASK, VOCABULARY.im_start, VOCABULARY.context_audio]].any()


def test_text_ends_at_the_turns_end_and_speech_at_its_own():
    v = VOCABULARY
    text = LAYOUT.encode_text
    speech = v.speech.encode
    parsed = FORMS.parse(np.array([*text(" red\n"), v.im_end, *text("noise"), v.pad]))
    assert (parsed.text, parsed.image, parsed.speech) == ("red", None, None)
    parsed = FORMS.parse(np.array([*text("hi"), v.begin_audio, speech(3), speech(4), v.end_audio, speech(5), v.im_end]))
    assert parsed.text == "hi" and parsed.speech.tolist() == [3, 4]
    parsed = FORMS.parse(np.array([v.begin_audio, speech(3), v.im_end, speech(5), v.end_audio]))
    assert parsed.text == "" and parsed.speech.tolist() == [3]
    # What the model was not asked for, or had no time to fill in, is dropped.
    parsed = FORMS.parse(np.array([*text("a"), v.pad, MASK, v.im_start, *text("b"), v.begin_audio, MASK, speech(7)]))
    assert parsed.text == "ab" and parsed.speech.tolist() == [7]
    assert FORMS.parse(np.array([v.begin_audio, v.end_audio])).speech.tolist() == []


CODES = st.lists(st.integers(0, 19), max_size=8).map(lambda codes: np.array(codes, np.int32))
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=12)


@given(st.sampled_from(NAMES), WORDS, CODES)
def test_a_training_answer_reads_back(name, text, codes):
    """parse is the inverse of what the chat layout makes of a task's answer."""
    chosen = task(name)
    spoken = chosen.answer in ("speech", "text_and_speech")
    images = [np.arange(6)] * (
        ("image" in chosen.inputs and chosen.answer != "hole") + (chosen.answer in ("image", "hole"))
    )
    audios = [3] * ("audio" in chosen.inputs) + [codes] * spoken
    rendered = LAYOUT.render(chosen.conversation("ask", text), images, audios)
    parsed = FORMS.parse(rendered.tokens[rendered.targets])
    assert parsed.text == (text if chosen.answer in ("text", "text_and_speech") else "")
    assert (parsed.speech.tolist() if spoken else parsed.speech) == (codes.tolist() if spoken else None)
    assert (parsed.image is not None) == (chosen.answer in ("image", "hole"))


@given(st.sampled_from(NAMES), st.integers(1, 60), st.integers(0, 2**31))
def test_whatever_fills_a_canvas_can_be_read(name, length, seed):
    chosen, rng = task(name), np.random.default_rng(seed)
    decoding = dataclasses.replace(chosen.decoding, length=length, adaptive=None)
    answer = FORMS.build(chosen.answer, decoding, 0, np.arange(6), rng.random(6) < 0.5)
    allowed = FORMS.sets.table[answer.groups]
    draws = np.array([rng.choice(np.flatnonzero(row)) for row in allowed])
    parsed = FORMS.parse(np.where(answer.tokens == MASK, draws, answer.tokens))
    if chosen.answer in ("image", "hole"):
        assert len(parsed.image) == 6 and parsed.text == ""
    if parsed.image is not None:
        assert ((parsed.image >= 0) & (parsed.image < 30)).all()
    if parsed.speech is not None:
        assert ((parsed.speech >= 0) & (parsed.speech < 20)).all()


def test_decoding_sets_are_the_released_scripts():
    sets = DECODINGS["released"]
    assert [len(FORMS.build("text", sets["asr"], 93, prompt=n)) for n in (142, 129)] == [28, 25]
    halves = [total_steps(sets["asr"].sampler, length) for length in (25, 27, 28, 3000)]
    assert halves == [12, 13, 14, 1500]  # L // 2
    assert len(FORMS.build("text", sets["vqa"], 0)) == 8 == total_steps(sets["vqa"].sampler, 8)
    for found in DECODINGS.values():
        for name, decoding in found.items():
            assert name in TASKS and build(Decoding, to_dict(decoding)) == decoding
