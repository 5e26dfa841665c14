"""The Scenes world: determinism, disjoint splits, pictures, language, speech, records."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.scenes import language, speech
from data_pipelines.scenes.render import IMAGE_SIZE, RGB, place_box, render
from data_pipelines.scenes.scene import (
    BACKGROUNDS,
    COLORS,
    COUNT_WEIGHTS,
    HELD_OUT_PAIRS,
    MAX_INDEX,
    PLACES,
    SHAPES,
    SIZES,
    SPLITS,
    Scene,
    Thing,
    generator,
    sample_scene,
)
from data_pipelines.scenes.tasks import TASKS, SceneRecords, make_record
from data_pipelines.speakers import espeak_engine
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG
from omnidiff_jax.tasks.registry import TASKS as REGISTRY

ROOT = Path(__file__).parents[1]
INDICES = st.integers(0, MAX_INDEX - 1)
SCENES = st.builds(sample_scene, INDICES, st.sampled_from(SPLITS))


KNOWN_CAPTIONS = [
    "small red square top left, big red square bottom right, on black",
    "small red square bottom left, on black",
    "big blue circle bottom left, on black",
    "small green circle top right, big green circle bottom left, on white",
    "small blue triangle top left, big green triangle top right, big yellow triangle bottom right, on black",
    "big red triangle top left, on black",
]


def pairs(scene):
    return {(thing.color, thing.shape) for thing in scene.objects}


# ---- scenes ------------------------------------------------------------------------------------------------


@given(INDICES, st.sampled_from(SPLITS))
def test_scene_is_a_function_of_index_and_split(index, split):
    scene = sample_scene(index, split)
    assert scene == sample_scene(index, split)
    places = [thing.place for thing in scene.objects]
    assert 1 <= len(places) <= 3
    assert places == [place for place in PLACES if place in places]
    assert all(abs(thing.dx) <= 1 and abs(thing.dy) <= 1 for thing in scene.objects)


def test_known_scenes_stay_what_they_are():
    """Data built by one version must be the data that another version trains on."""
    assert [language.caption(sample_scene(index, split)) for index in (0, 7) for split in SPLITS] == KNOWN_CAPTIONS


@given(INDICES)
def test_held_out_pairs_occur_in_the_compositional_split_only(index):
    assert pairs(sample_scene(index, "compositional")) & HELD_OUT_PAIRS
    for split in ("train", "test"):
        assert not pairs(sample_scene(index, split)) & HELD_OUT_PAIRS


def test_splits_share_no_content():
    contents = {split: {sample_scene(i, split).content() for i in range(500)} for split in SPLITS}
    assert not contents["train"] & contents["test"]
    assert not contents["train"] & contents["compositional"]
    assert not contents["test"] & contents["compositional"]


def test_every_word_stays_frequent_in_training():
    scenes = [sample_scene(i, "train") for i in range(1000)]
    counts = Counter(len(scene.objects) for scene in scenes)
    assert [counts[n] / len(scenes) for n in (1, 2, 3)] == pytest.approx(COUNT_WEIGHTS, abs=0.05)
    for attribute, words in (("size", SIZES), ("color", COLORS), ("shape", SHAPES), ("place", PLACES)):
        seen = Counter(getattr(thing, attribute) for scene in scenes for thing in scene.objects)
        assert set(seen) == set(words)
        assert min(seen.values()) > 0.6 * sum(seen.values()) / len(words)
    assert set(Counter(scene.background for scene in scenes)) == set(BACKGROUNDS)
    assert len({scene.content() for scene in scenes}) > 600


@pytest.mark.parametrize(("index", "split"), [(-1, "train"), (MAX_INDEX, "train"), (0, "training")])
def test_scene_out_of_range_is_refused(index, split):
    with pytest.raises(ValueError, match=r"index|split"):
        sample_scene(index, split)


# ---- pictures ----------------------------------------------------------------------------------------------


@given(SCENES, st.sampled_from((64, 96)))
def test_picture_shows_each_object_in_its_quadrant_and_nothing_else(scene, size):
    image = render(scene, size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    for place in PLACES:
        patch = image[place_box(place, size)]
        thing = scene.at(place)
        middle = patch[size // 4, size // 4]
        assert tuple(middle) == RGB[thing.color if thing else scene.background]
        edge = size // 64
        border = np.ones(patch.shape[:2], bool)
        border[edge:-edge, edge:-edge] = False
        assert (patch[border] == RGB[scene.background]).all()


def test_picture_is_anti_aliased_and_sizes_differ():
    def drawn(size):
        image = render(Scene((Thing(size, "red", "circle", "top left"),), "white")).astype(int)
        return (np.abs(image - 255).sum(axis=2) > 0).sum(), len(np.unique(image.reshape(-1, 3), axis=0))

    (small_area, small_colors), (big_area, big_colors) = drawn("small"), drawn("big")
    assert big_area > 2 * small_area
    assert small_colors > 4
    assert big_colors > 4


@pytest.mark.parametrize("size", [0, 63, -2])
def test_odd_picture_size_is_refused(size):
    with pytest.raises(ValueError, match="even"):
        render(sample_scene(0, "train"), size)


# ---- language ----------------------------------------------------------------------------------------------


@given(SCENES, st.booleans())
def test_caption_parses_back(scene, background):
    parsed = language.parse_caption(language.caption(scene, background))
    assert parsed is not None
    assert parsed.content() == scene.content()
    assert parsed.background == (scene.background if background else "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "on white",
        "red circle top left",
        "small red circle",
        "small red circle top left, big blue square top left",
        "small red circle top left on pink",
        "small mauve circle top left",
        "small red circle top left, on white, on white",
        "a small red circle top left",
        ", ".join(f"small red circle {place}" for place in PLACES),
    ],
)
def test_what_is_no_caption_does_not_parse(text):
    assert language.parse_caption(text) is None


def test_caption_parser_forgives_writing():
    parsed = language.parse_caption(" Big Blue Square bottom right  small red circle TOP LEFT, on white. ")
    assert [str(thing) for thing in parsed.objects] == ["small red circle top left", "big blue square bottom right"]


@given(SCENES)
def test_every_question_has_one_right_answer(scene):
    by_kind = language.questions(scene)
    texts = [question.text for group in by_kind.values() for question in group]
    assert len(texts) == len(set(texts))
    for question in by_kind["color"]:
        assert [t.color for t in scene.objects if t.shape == question.text.split()[-1]] == [question.answer]
    for question in by_kind["shape"]:
        assert [t.shape for t in scene.objects if t.color == question.text.split()[-1]] == [question.answer]
    for question in by_kind["where"]:
        assert [t.place for t in scene.objects if t.shape == question.text.split()[-1]] == [question.answer]
    for question in by_kind["exists"]:
        color, shape = question.text.split()[-2:]
        assert (question.answer == "yes") == ((color, shape) in pairs(scene))
    spoken = {question.phrase for group in by_kind.values() for question in group}
    assert spoken <= {*language.answer_phrases(), *language.held_out_phrases()}


def test_questions_drawn_are_balanced():
    drawn = [language.draw_question(sample_scene(i, "train"), generator("q", i)) for i in range(1400)]
    kinds = Counter(question.kind for question in drawn)
    assert set(kinds) == set(language.QUESTION_KINDS)
    assert min(kinds.values()) > 100
    answers = Counter(question.answer for question in drawn if question.kind == "exists")
    assert 0.35 < answers["yes"] / kinds["exists"] < 0.65


def test_word_lists_hold_everything_that_is_said():
    heard, answered = set(language.heard_words()), set(language.answer_words())
    for name, count in (("asr", 15), ("spoken_qa", 15), ("tts", 30), ("spoken_vqa", 15)):
        for index in range(count):
            meta = make_record(name, index, "compositional" if index % 3 == 0 else "train").meta
            assert set(re.findall(r"\w+", meta.get("heard", ""))) <= heard
            assert set(re.findall(r"\w+", meta.get("spoken", ""))) <= answered


# ---- speech ------------------------------------------------------------------------------------------------


def test_at_least_a_thousand_distinct_voices():
    voices = [speech.heard_voice(i) for i in range(speech.VOICE_COUNT)]
    assert len({(v.accent, v.variant, v.pitch) for v in voices}) == speech.VOICE_COUNT >= 1000
    assert speech.heard_voice(speech.VOICE_COUNT) == voices[0]
    assert speech.ANSWER_VOICE not in voices
    assert all(170 <= voice.rate <= 220 for voice in voices)
    for accent in speech.ACCENTS:  # the engine knows each of them
        for variant in speech.VARIANTS:
            assert speech.say("yes", speech.Voice(accent, variant)).seconds > 0.1


def test_speech_depends_on_text_and_voice_alone():
    """The engine keeps state between utterances and seeds its noise with the clock; neither may be heard."""
    text = "big blue square bottom right"
    voices = [speech.heard_voice(i) for i in (0, 8, 36, 44, 51)]
    first = [speech.say(text, voice).samples for voice in voices]
    for voice in reversed(voices):
        speech.say("something else", voice)
    for voice, samples in reversed(list(zip(voices, first, strict=True))):
        np.testing.assert_array_equal(speech.say(text, voice).samples, samples)
    assert len({len(samples) for samples in first}) > 1
    for samples in first:
        assert samples.dtype == np.float32
        assert 0.1 < np.abs(samples).max() <= 1.0
        assert np.abs(samples[[0, -1]]).min() > 0.0


def test_speech_is_the_same_in_another_process():
    program = (
        "import sys; from data_pipelines.scenes.speech import heard_voice, say;"
        "sys.stdout.buffer.write(say('yes', heard_voice(36)).samples.tobytes())"
    )
    theirs = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True).stdout
    assert theirs == speech.say("yes", speech.heard_voice(36)).samples.tobytes()


def test_answering_voice_puts_words_on_the_code_grid():
    whole = speech.say("it is a red circle", speech.ANSWER_VOICE).samples
    words = [speech.say(word, speech.ANSWER_VOICE).samples for word in ("it", "is", "a", "red", "circle")]
    assert all(len(word) % speech.GRID == 0 and np.abs(word[:100]).max() > 0.01 for word in words)
    np.testing.assert_array_equal(whole, np.concatenate(words))
    cells = [len(speech.say(word, speech.ANSWER_VOICE).samples) // speech.GRID for word in language.answer_words()]
    assert 4 <= np.mean(cells) <= 6


def test_speech_edge_cases():
    assert speech.say("", speech.ANSWER_VOICE).samples.size == 0
    assert speech.say("?!", speech.heard_voice(0)).samples.size == 0
    with pytest.raises(UserError, match="no voice"):
        speech.say("hello", speech.Voice("gmw/xx"))


def test_speech_engine_survives_a_long_installation_path(tmp_path, monkeypatch):
    original = espeak_engine.espeakng_loader.get_data_path()
    folder = tmp_path / ("x" * 160)
    folder.mkdir()
    (folder / "espeak-ng-data").symlink_to(original)
    monkeypatch.setattr(espeak_engine.espeakng_loader, "get_data_path", lambda: str(folder / "espeak-ng-data"))
    expected = speech.say("yes", speech.heard_voice(0)).samples
    espeak_engine._data_path.cache_clear()
    try:
        np.testing.assert_array_equal(speech.say("yes", speech.heard_voice(0)).samples, expected)
    finally:
        espeak_engine._data_path.cache_clear()


# ---- records -----------------------------------------------------------------------------------------------


def test_scenes_serves_every_registered_task():
    assert set(TASKS) == set(REGISTRY)


@pytest.mark.parametrize("name", TASKS)
def test_record_is_deterministic_and_well_formed(name):
    for split in SPLITS:
        record, again = make_record(name, 5, split), make_record(name, 5, split)
        assert record.sample_id == again.sample_id
        assert record.messages == again.messages
        assert record.meta == again.meta
        for mine, theirs in zip(record.images, again.images, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        for mine, theirs in zip(record.audios, again.audios, strict=True):
            np.testing.assert_array_equal(mine.samples, theirs.samples)
        text = "".join(message.content for message in record.messages)
        assert text.count(IMAGE_TAG) == len(record.images)
        assert text.count(AUDIO_TAG) == len(record.audios)
        assert all(0.1 < waveform.seconds < 9 and waveform.rate == 16000 for waveform in record.audios)
        assert all(image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3) for image in record.images)
        prompt = REGISTRY[name].prompt(record.meta.get("request", ""))
        assert record.messages[: len(prompt)] == prompt
        assert record.messages[-1].role == "assistant"
        assert split == "train" or len(record.messages) == len(prompt) + 1  # exams ask one thing


def test_records_mention_held_out_pairs_in_the_compositional_split_only():
    def mentioned(record):
        texts = [*(message.content for message in record.messages), *map(str, record.meta.values())]
        return any(kind in text for kind in language.HELD_OUT_KINDS for text in texts)

    for name in ("text_qa", "captioning", "vqa", "t2i", "inpainting", "tts", "spoken_qa", "asr"):
        count = 25 if name in ("spoken_qa", "asr") else 100
        assert not any(mentioned(make_record(name, i, split)) for i in range(count) for split in ("train", "test"))
    for name in ("captioning", "t2i", "inpainting", "s2i", "text_qa"):
        assert all(mentioned(make_record(name, i, "compositional")) for i in range(15))


def test_record_ids_do_not_collide_between_tasks_and_splits():
    records = [make_record(name, i, split) for name in ("vqa", "t2i") for split in SPLITS for i in range(100)]
    assert len({record.sample_id for record in records}) == len(records)


def test_record_source():
    source = SceneRecords("vqa", "train", 3, start=10)
    assert len(source) == 3
    assert source[2].meta == make_record("vqa", 12, "train").meta
    with pytest.raises(IndexError, match="record 3 of 3"):
        source[3]
    with pytest.raises(UserError, match="vqa"):
        make_record("vqaa", 0, "train")
