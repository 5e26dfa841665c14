"""Requests in plain words: they mean what they say, and leave answers alone."""

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.scenes.language import parse_caption
from data_pipelines.scenes.scene import BACKGROUNDS, MAX_INDEX, SPLITS, Scene, Thing, sample_scene, split_of
from data_pipelines.scenes.tasks import SceneRecords, make_record
from data_pipelines.scenes.wording import SYNONYMS, Canonical, Description, Plain, is_wanted, meets, settled

INDICES = st.integers(0, MAX_INDEX - 1)
SCENES = st.builds(sample_scene, INDICES, st.sampled_from(SPLITS))
ASKED = st.sampled_from(("text_qa", "captioning", "vqa", "inpainting"))


@given(INDICES, ASKED)
def test_only_the_request_differs(index, name):
    canonical, plain = make_record(name, index, "train"), make_record(name, index, "train", 1.0)
    assert plain.messages[-1] == canonical.messages[-1]
    assert plain.meta.get("answer") == canonical.meta.get("answer") and plain.sample_id == canonical.sample_id
    assert all((a == b).all() for a, b in zip(plain.images, canonical.images, strict=True))
    assert plain.messages == make_record(name, index, "train", 1.0).messages


@given(INDICES)
def test_the_picture_shows_what_was_asked_for(index):
    record = make_record("t2i", index, "train", 1.0)
    scene = sample_scene_of(record)
    assert meets(scene, record.meta["wanted"], record.meta["background"])
    for wanted in record.meta["wanted"]:
        size, color, shape, place = wanted
        words = record.meta["request"].lower()
        assert shape in ("circle", "square", "triangle")
        if not color and len(record.meta["wanted"]) == 1:
            assert scene.objects[0].color not in words.split()


def sample_scene_of(record):
    scene = parse_caption(record.meta["caption"])
    assert scene is not None
    return scene


@given(SCENES)
def test_open_requests_are_settled_in_one_way(scene):
    described = Plain(np.random.default_rng(len(str(scene)))).scene(scene)
    answer, told = settled(scene, described, split_of(scene))
    assert all(is_wanted(thing, wanted) for thing, wanted in zip(answer.objects, told.wanted, strict=True))
    assert [told.wanted[index] for index in told.order] == [described.wanted[index] for index in described.order]
    assert meets(answer, described.wanted, described.background) and split_of(answer) == split_of(scene)
    assert described.background or answer.background == "white"
    # What the scene had where the request leaves it open does not matter.
    others = tuple(
        dataclasses.replace(thing, size=size or "small")
        for thing, (size, *_) in zip(scene.objects, described.wanted, strict=True)
    )
    again, _ = settled(Scene(others, "black"), described, split_of(scene))
    assert again.content() == answer.content() and again.background == answer.background


def test_objects_take_the_first_free_places_in_the_order_they_are_named_in():
    things = (Thing("small", "red", "circle", "top left"), Thing("small", "blue", "square", "bottom right"))
    wanted = (("", "red", "circle", ""), ("small", "", "square", "top left"))
    answer, _ = settled(Scene(things, "black"), Description("", wanted, (0, 1), ""), "train")
    assert (
        parse_caption("big red circle top right, small green square top left, on white").content() == answer.content()
    )
    open_ones = (("", "red", "circle", ""), ("", "blue", "square", ""))
    answer, _ = settled(Scene(things, "black"), Description("", open_ones, (1, 0), "black"), "train")
    assert [thing.kind for thing in answer.objects] == ["blue square", "red circle"] and answer.background == "black"
    assert [thing.place for thing in answer.objects] == ["top left", "top right"]


@given(SCENES)
def test_a_scene_meets_its_own_description_and_no_other_count(scene):
    described = Canonical().scene(scene)
    assert meets(scene, described.wanted, described.background)
    assert not meets(Scene(scene.objects[1:], scene.background), described.wanted, described.background)
    other = next(color for color in BACKGROUNDS if color != scene.background)
    assert not meets(Scene(scene.objects, other), described.wanted, described.background)


def test_open_words_are_met_by_anything_and_objects_one_for_one():
    red, blue = Thing("small", "red", "circle", "top left"), Thing("big", "blue", "square", "top right")
    scene = Scene((red, blue), "white")
    assert meets(scene, [("", "blue", "square", ""), ("", "", "circle", "")], "")
    assert not meets(scene, [("", "", "circle", ""), ("", "red", "circle", "")], "")
    assert meets(scene, [("", "", "", ""), ("", "red", "", "")], "white")
    assert not meets(scene, [("big", "red", "", ""), ("", "", "", "")], "")


def test_plain_words_are_many_and_the_share_is_kept():
    requests = [record.meta["request"] for record in SceneRecords("t2i", "train", 200, plain=1.0)]
    assert len(set(requests)) > 195
    assert any(word in text for text in requests for word in SYNONYMS["small"][2:])
    same = sum(
        make_record("text_qa", i, "train", 0.5).meta["request"] == make_record("text_qa", i, "train").meta["request"]
        for i in range(200)
    )
    assert 70 < same < 130
