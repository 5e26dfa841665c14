"""Judges of Scenes: near perfect on right answers, far from it on wrong ones."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from data_pipelines.scenes import listener
from data_pipelines.scenes.exams import SCORE, exam, plain_exam
from data_pipelines.scenes.judges import inpainted, objects_drawn, scene_drawn
from data_pipelines.scenes.language import answer_phrases, caption, parse_caption
from data_pipelines.scenes.render import place_box, render
from data_pipelines.scenes.scene import (
    COLORS,
    MAX_INDEX,
    PLACES,
    SHAPES,
    SIZES,
    SPLITS,
    Scene,
    generator,
    sample_scene,
)
from data_pipelines.scenes.scene_parser import parse_scene, unclear
from data_pipelines.scenes.speech import ANSWER_VOICE, heard_voice, say
from data_pipelines.scenes.tasks import TASKS
from omnidiff_jax.answering.queries import Response
from omnidiff_jax.records import Waveform
from omnidiff_jax.words import word_error_rate

SPEAKING = ("tts", "spoken_qa", "spoken_vqa")


def share(counts):
    top, bottom = counts
    return float(np.sum(top) / np.sum(bottom))


# ---- scene parser ------------------------------------------------------------------------------------------


@given(st.integers(0, MAX_INDEX - 1), st.sampled_from(SPLITS))
def test_parser_reads_every_drawing(index, split):
    scene = sample_scene(index, split)
    found = parse_scene(render(scene))
    assert found.content() == scene.content()
    assert found.background == scene.background


def damaged(kind, image, rng):
    pixels = image.astype(np.float32)
    if kind == "blurred":
        pixels = gaussian_filter(pixels, (1.5, 1.5, 0))
    elif kind == "grainy":
        pixels = pixels + rng.normal(0, 20, pixels.shape)
    elif kind == "tinted":
        pixels = pixels * (1 + rng.normal(0, 0.05, 3)) + rng.normal(0, 5, 3)
    return np.clip(pixels, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", ["blurred", "grainy", "tinted"])
def test_parser_forgives_the_damage_of_a_tokenizer(kind):
    rng = np.random.default_rng(0)
    scenes = [sample_scene(i, "test") for i in range(60)]
    right = [parse_scene(damaged(kind, render(scene), rng)).content() == scene.content() for scene in scenes]
    assert np.mean(right) >= 0.95


@pytest.mark.parametrize("size", [48, 128])
def test_parser_takes_other_sizes(size):
    scenes = [sample_scene(i, "test") for i in range(20)]
    assert all(parse_scene(render(scene, size)).content() == scene.content() for scene in scenes)


def test_parser_does_not_round_rubbish_to_a_scene():
    rng = np.random.default_rng(0)
    for _ in range(5):
        noise = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
        smooth = np.clip(gaussian_filter(rng.normal(128, 600, (64, 64, 3)), (5, 5, 0)), 0, 255).astype(np.uint8)
        for image in (noise, smooth):
            assert all(thing == unclear(thing.place) for thing in parse_scene(image).objects)
    assert parse_scene(np.zeros((64, 64, 3), np.uint8)) == Scene((), "black")


def test_parser_sees_one_wrong_attribute():
    scene = sample_scene(3, "test")
    for attribute in ("size", "color", "shape"):
        other = next(
            getattr(thing, attribute)
            for i in range(100)
            for thing in sample_scene(i, "test").objects
            if getattr(thing, attribute) != getattr(scene.objects[0], attribute)
        )
        changed = dataclasses.replace(scene.objects[0], **{attribute: other})
        image = render(Scene((changed, *scene.objects[1:]), scene.background))
        assert parse_scene(image).content() != scene.content()


# ---- ceilings and floors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in TASKS if name not in SPEAKING])
def test_ceiling_is_perfect_and_floor_is_far(name):
    sat = exam(name, 12 if name in ("asr", "s2i") else 40)
    truths = [case.truth for case in sat.cases]
    shuffled = truths[1:] + truths[:1]
    assert len(sat.measures[0].metric) > 0
    for measure in sat.measures:
        ceiling, floor = share(measure.score(truths, sat.cases)), share(measure.score(shuffled, sat.cases))
        nothing = share(measure.score([Response()] * len(truths), sat.cases))
        if measure.higher_is_better:
            assert ceiling == 1.0
            assert floor <= 0.3
            assert nothing == 0.0
        else:
            assert ceiling == 0.0
            assert floor >= 0.6
            assert nothing == 1.0


@pytest.mark.parametrize("name", SPEAKING)
def test_ceiling_and_floor_of_speech(name):
    pytest.importorskip("pocketsphinx", reason="the judge of speech is in the extra `eval`")
    sat = exam(name, 12)
    truths = [case.truth for case in sat.cases]
    shuffled = truths[1:] + truths[:1]
    measure = sat.measures[-1]
    assert measure.judge == "pocketsphinx"
    assert share(measure.score(truths, sat.cases)) <= 0.05
    assert share(measure.score(shuffled, sat.cases)) >= 0.6
    assert share(measure.score([Response()] * 12, sat.cases)) == 1.0


def test_listener_hears_every_answer_and_is_repeatable():
    pytest.importorskip("pocketsphinx", reason="the judge of speech is in the extra `eval`")
    phrases = answer_phrases()[::3]
    heard = [listener.listen(say(phrase, ANSWER_VOICE)) for phrase in phrases]
    assert word_error_rate(phrases, heard) <= 0.05
    assert [listener._listen(say(phrase, ANSWER_VOICE)) for phrase in phrases[:4]] == heard[:4]
    for silence in (Waveform(np.zeros(0, np.float32), 16000), Waveform(np.zeros(8000, np.float32), 16000)):
        assert listener.listen(silence) == ""
    resampled = Waveform(np.repeat(say("it is red", ANSWER_VOICE).samples, 2), 32000)
    assert listener.listen(resampled) == "it is red"


def test_heard_voices_are_intelligible():
    pytest.importorskip("pocketsphinx", reason="the judge of speech is in the extra `eval`")
    texts = [caption(sample_scene(i, "train", (1, 0, 0))) for i in range(14)]
    heard = [listener.listen(say(text, heard_voice(4 * i))) for i, text in enumerate(texts)]
    assert word_error_rate(texts, heard) <= 0.1


def test_inpainting_judge_wants_known_pixels_and_the_object():
    sat = exam("inpainting", 10)
    both, known = sat.measures
    truths = [case.truth for case in sat.cases]
    touched = [Response(image=np.where(truth.image == truth.image[0, 0], 7, truth.image)) for truth in truths]
    assert share(known.score(touched, sat.cases)) == 0.0
    emptied = []
    for case in sat.cases:
        image = case.truth.image.copy()
        image[place_box(case.meta["hidden"])] = image[0, 0]
        emptied.append(Response(image=image))
    assert share(known.score(emptied, sat.cases)) == 1.0
    assert share(both.score(emptied, sat.cases)) == 0.0
    for case in sat.cases:  # what is hidden is not shown to the model
        assert (case.request.image[case.request.hole] == 128).all()
        assert case.request.hole.sum() == 32 * 32
        assert case.meta["hidden"] in PLACES


# ---- plain words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t2i", "inpainting"])
def test_what_a_request_leaves_open_is_not_asked_for(name):
    """Pictures with every open attribute drawn otherwise are right; with one that is named otherwise they are wrong."""
    judge, right, wrong = (objects_drawn if name == "t2i" else inpainted), [], []
    open_words = 0
    for index, case in enumerate(plain_exam(name, 40).cases):
        scene, rng = parse_caption(case.meta["caption"]), generator("open", index)
        numbers = [case.meta["hidden_number"]] if name == "inpainting" else range(len(scene.objects))
        things = list(scene.objects)
        for number in numbers:
            size, color, _, _ = case.meta["wanted"][number]
            open_words += (not size) + (not color)
            changed = {"color": COLORS[rng.integers(len(COLORS))]} if not color else {}
            changed |= {"size": SIZES[rng.integers(len(SIZES))]} if not size else {}
            things[number] = dataclasses.replace(things[number], **changed)
        right.append((Response(image=render(Scene(tuple(things), scene.background))), case))
        number = numbers[0]
        shape = SHAPES[(SHAPES.index(things[number].shape) + 1) % len(SHAPES)]
        things[number] = dataclasses.replace(things[number], shape=shape)
        wrong.append((Response(image=render(Scene(tuple(things), scene.background))), case))
    assert open_words > 10
    assert share(judge(*zip(*right, strict=True))) == 1.0
    assert share(judge(*zip(*wrong, strict=True))) == 0.0
    assert share(scene_drawn(*zip(*right, strict=True))) <= share(objects_drawn(*zip(*right, strict=True)))


def test_speech_to_image_asks_for_all_of_the_scene():
    case = exam("s2i", 1, start=SCORE).cases[0]
    assert all(all(words) for words in case.meta["wanted"]) and case.meta["background"]
