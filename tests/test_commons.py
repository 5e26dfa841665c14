"""Commons: things and their words, pictures, records of every task, what is kept from training, speech in clips."""

import dataclasses
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from commons_toys import FAMILIES, write_world

from data_pipelines.commons import judges, questions
from data_pipelines.commons.exams import commons_exam, exam
from data_pipelines.commons.pictures import DRAWN, GROUNDS, Rendering, draw_rendering, picture
from data_pipelines.commons.reader import COMMONS_READER
from data_pipelines.commons.speaking import pieces, speak
from data_pipelines.commons.speech import open_clips
from data_pipelines.commons.tasks import PICTURED, SPOKEN, TASKS, make_record
from data_pipelines.commons.things import STYLES, open_world, with_article
from data_pipelines.commons.tokenizers.image import CommonsImageTokenizerRun, world_pictures
from data_pipelines.commons.tokenizers.text import CommonsTextTokenizerRun
from experiments.common import load_config
from omnidiff_jax.config import build
from omnidiff_jax.data.readers import SourceConfig, check_source, raw_records
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.names import NAMED
from omnidiff_jax.records import RejectedRecord
from omnidiff_jax.runs.config import run_config
from omnidiff_jax.tasks.registry import TASKS as REGISTRY

TRUE = Path(os.environ.get("OMNIDIFF_COMMONS") or "nowhere")
RECORDS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("commons")
    write_world(place)
    return place


@pytest.fixture(scope="module")
def world(folder):
    return open_world(str(folder))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    place = tmp_path_factory.mktemp("clips")
    settings = {"speaker": {"kind": "espeak", "voices": 6}, "held_out": 0.34, "voices_of_name": 2, "sentences": 30}
    (place / "speech.json").write_text(json.dumps(settings))
    return open_clips(str(place))


@pytest.fixture(
    params=[
        "toy",
        pytest.param(
            "true",
            marks=pytest.mark.skipif(
                not (TRUE / "wordnet" / "data.noun").is_file(),
                reason="no real things: OMNIDIFF_COMMONS names no folder of `omnidiff data fetch commons`",
            ),
        ),
    ]
)
def any_world(request, world):
    return world if request.param == "toy" else open_world(str(TRUE))


def plain(record):
    """A record as what can be compared."""
    media = [image.tobytes() for image in record.images]
    media += [audio.samples.tobytes() for audio in record.audios]
    hole = b"" if record.hole is None else record.hole.tobytes()
    return record.sample_id, record.messages, media, record.meta, hole


# ---- things ------------------------------------------------------------------------------------------------


def test_things_have_words_kinds_and_definitions(world):
    found = {thing.name: thing for thing in world.things}
    assert "up arrow" not in found and "tiger" not in found and "clock face one oclock" not in found
    assert not {"paw prints", "grinning", "sun behind a very large cloud"} & found.keys()
    assert found["scissors"].category == "office supplies" and found["automobile"].synonyms == ("car",)
    assert found["wolf"].is_animal and "cat face" in found, "a face is the whole where there is no other"
    assert found["hammer"].synonyms == found["wrench"].synonyms == (), "a word of two things is nobody's"
    assert found["cat"].description == "small feline beast", "the sense of its kind, its first clause"
    assert found["owl"].description == "", "a definition that has the word"
    assert found["shark"].description == "a large fish with teeth"
    assert {family.name: family.people for family in world.families} == {
        name.lower(): people for name, people in FAMILIES
    }


@pytest.mark.parametrize(
    "name, said",
    [("owl", "an owl"), ("unicorn", "a unicorn"), ("hourglass", "an hourglass"), ("grapes", "grapes")]
    + [("octopus", "an octopus"), ("dress", "a dress"), ("rhinoceros", "a rhinoceros"), ("x-ray", "an x-ray")],
)
def test_articles(name, said):
    assert with_article(name) == said


def test_words_are_of_one_thing_each(any_world):
    words = Counter(word for thing in any_world.things for word in (thing.name, *thing.synonyms))
    assert max(words.values()) == 1
    told = Counter(thing.description for thing in any_world.things if thing.description)
    assert max(told.values()) == 1
    for thing in any_world.things:
        assert len(thing.name.split()) <= 4 and not set(thing.name.split()) & set(thing.description.split()), thing
    learned, kept = (any_world.of(held_out) for held_out in (False, True))
    assert kept and len(learned) + len(kept) == len(any_world.things)


@pytest.mark.skipif(not (TRUE / "wordnet" / "data.noun").is_file(), reason="no real things: see OMNIDIFF_COMMONS")
def test_the_true_world_is_large_enough():
    world = open_world(str(TRUE))
    assert 500 <= len(world.things) <= 700 and 0.06 < len(world.of(True)) / len(world.things) < 0.14
    assert sum(bool(thing.description) for thing in world.things) > 200
    assert {thing.is_animal for thing in world.of(True)} == {True, False}
    for style in STYLES:
        for shown in (*world.things, *world.families):
            assert picture(world.folder, style, shown.picture).shape == (64, 64, 3)


@pytest.mark.parametrize(
    "file, content, said",
    [
        ("google/emoji.json", None, "cannot read"),
        ("google/emoji.json", "[{}]", "not the emoji.json"),
        (
            "google/emoji.json",
            '[{"name": "CAT", "subcategory": "tool", "image": "../x.png"}]',
            "not the emoji",
        ),
        ("wordnet/index.noun", None, "part=wordnet"),
        ("wordnet/data.noun", "00000000 no WordNet", "not of one WordNet"),
    ],
)
def test_a_file_that_is_missing_or_another_is_named(tmp_path, file, content, said):
    write_world(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=said):
        open_world(str(tmp_path))


# ---- pictures ----------------------------------------------------------------------------------------------


def test_a_picture_lies_on_its_ground(folder):
    name, ground = "1f402.png", 3
    drawn = picture(folder, "google", name)
    assert (drawn[:8] == 255).all() and (drawn[10:38, 10:54] == (20, 40, 215)).all()
    shown = picture(folder, "google", name, Rendering(48, 1, 2, False, ground))
    assert (shown[:8] == GROUNDS[ground]).all() and (shown[16:36, 24:56] == (20, 40, 215)).all()
    assert (picture(folder, "google", name, Rendering(mirrored=True)) == drawn[:, ::-1]).all()
    assert (picture(folder, "twitter", name) != drawn).any()


def test_what_is_looked_at_never_shares_a_rendering_with_tests():
    rng = np.random.default_rng(0)
    shown = [{draw_rendering(rng, "a.png", held_out) for _ in range(300)} for held_out in (False, True)]
    assert not shown[0] & shown[1] and DRAWN not in shown[1]
    assert len({rendering.size for rendering in shown[0]}) == 3 and len(shown[0]) > 80


def test_a_picture_that_cannot_be_read_is_named(folder, tmp_path):
    with pytest.raises(UserError, match=r"1f000.png is missing.*--part=twitter"):
        picture(folder, "twitter", "1f000.png")
    (tmp_path / "google" / "pictures").mkdir(parents=True)
    (tmp_path / "google" / "pictures" / "1f001.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    with pytest.raises(UserError, match="1f001.png cannot be read"):
        picture(tmp_path, "google", "1f001.png")


# ---- records -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_a_record_is_a_function_of_task_index_and_split(world, clips, name):
    for index in range(3):
        record = make_record(world, name, index, "train", clips)
        assert plain(record) == plain(make_record(world, name, index, "train", clips))
        assert plain(record) != plain(make_record(world, name, index + 1, "train", clips))
        told = REGISTRY[name]
        assert record.messages[:-1] == told.prompt(record.meta.get("request", ""))
        assert len(record.images) == (name in PICTURED) and len(record.audios) == sum(
            ("audio" in told.inputs, told.answer in ("speech", "text_and_speech"))
        )
        assert all(image.dtype == np.uint8 and image.shape == (64, 64, 3) for image in record.images)


@pytest.mark.parametrize("name", TASKS)
def test_nothing_kept_from_training_is_in_it(world, clips, name, monkeypatch):
    kept = {thing.name for thing in world.of(True)}
    styles, pictures = set(), set()
    monkeypatch.setattr(
        "data_pipelines.commons.maker.picture",
        lambda folder, style, name, *rest: styles.add(style) or pictures.add(name) or np.zeros((64, 64, 3), np.uint8),
    )
    records = [make_record(world, name, index, "train", clips) for index in range(RECORDS)]
    assert styles <= {STYLES[0]} and not pictures & {thing.picture for thing in world.of(True)}
    assert {record.meta["style"] for record in records} == {STYLES[0]}
    assert not {record.meta.get("thing") for record in records} & kept
    others = {make_record(world, name, index, "concepts", clips).meta.get("thing") for index in range(10)}
    assert others <= kept | {None}
    if "voice" in records[0].meta:
        assert {record.meta["voice"] for record in records} <= set(clips.voices(learned=True))


@pytest.mark.parametrize("name", ["captioning", "vqa", "text_qa", "spoken_qa", "spoken_vqa"])
@pytest.mark.parametrize("split", ["train", "test", "concepts"])
def test_answers_are_right(world, clips, name, split):
    things, families = ({one.name: one for one in found} for found in (world.things, world.families))
    kinds = Counter()
    for index in range(RECORDS if split == "train" else 10):
        meta = make_record(world, name, index, split, clips).meta
        kind, answer, asked = meta.get("kind", "name"), meta["answer"], meta.get("request") or meta.get("heard", "")
        kinds[kind] += 1
        assert answer in meta["accepted"]
        if kind == "count":
            assert questions.NUMBERS.index(answer) + 1 == families[meta["thing"]].people
            continue
        thing = things[meta["thing"]]
        expected = {"category": thing.category, "animal": "yes" if thing.is_animal else "no"}.get(kind, thing.one)
        assert answer == expected
        if kind == "which":
            assert f" {thing.one}" in asked and " or " in asked
        if kind == "definition":
            assert thing.description in asked
    assert split != "train" or name == "captioning" or len(kinds) >= 3


def test_a_hole_is_a_quadrant(world):
    holes = [make_record(world, "inpainting", index, "train").hole for index in range(12)]
    assert all(hole.sum() == 32 * 32 for hole in holes) and len({hole.tobytes() for hole in holes}) == 4


def test_the_other_style_is_asked_about_where_something_is_looked_at(world, clips):
    for name in ("captioning", "vqa", "spoken_vqa"):
        records = [make_record(world, name, index, "style", clips) for index in range(4)]
        assert {record.meta["style"] for record in records} == {STYLES[1]}
    with pytest.raises(UserError, match="style"):
        make_record(world, "t2i", 0, "style")
    with pytest.raises(UserError, match="split"):
        make_record(world, "vqa", 0, "tests")
    with pytest.raises(UserError, match=r"speech\.json"):
        make_record(world, "asr", 0, "train")


# ---- speech ------------------------------------------------------------------------------------------------


def test_voices_of_exams_are_never_learned(clips):
    learned, kept = clips.voices(True), clips.voices(False)
    assert len(kept) == 2 and not set(learned) & set(kept)
    for name in ("owl", "cat"):
        assert sum(clips.names(voice, name) for voice in range(6)) == 2


def test_clips_are_spoken_once(world, clips, monkeypatch):
    first = make_record(world, "spoken_qa", 0, "train", clips)
    monkeypatch.setattr(clips._gate, "spoken", lambda lines: pytest.fail(f"{lines} are there"))
    assert plain(make_record(world, "spoken_qa", 0, "train", clips)) == plain(first)


def test_pieces_stand_apart_and_those_of_the_answering_voice_on_the_grid_of_codes(clips):
    joined, apart = clips.joined(("owl",) * 2, 0), clips.joined(("owl",), 0)
    assert len(joined.samples) == 2 * len(apart.samples) + round(0.06 * joined.rate)
    fast = clips.joined(("owl",) * 2, 0, pace=1.2, gap=0.03)
    assert abs(1.2 * len(fast.samples) - 2 * len(apart.samples) - 0.03 * joined.rate) < 4
    first, then = clips.joined(("yes",), None), clips.joined(("no",), None)
    both = clips.joined(("yes", "no"), None)
    assert len(first.samples) % round(0.08 * first.rate) == 0
    np.testing.assert_array_equal(both.samples, np.concatenate([first.samples, then.samples]))


def test_what_is_spoken_ahead_is_all_that_training_joins(world, tmp_path, monkeypatch):
    settings = {"speaker": {"kind": "espeak", "voices": 3}, "held_out": 0.34, "voices_of_name": 1, "sentences": 30}
    (tmp_path / "speech.json").write_text(json.dumps(settings))
    clips = open_clips(str(tmp_path))
    wanted = pieces(world, clips)
    assert len(set(wanted)) == len(wanted) and not {voice for _, voice in wanted} & set(clips.voices(False))
    assert not {thing.one for thing in world.of(True)} & {text for text, _ in wanted}
    halves = [speak(clips, wanted[host::2]) for host in (0, 1)]
    assert sum(half.accepted for half in halves) == len(wanted) and not any(half.rejected for half in halves)
    monkeypatch.setattr(clips._gate, "spoken", lambda lines: pytest.fail(f"{lines} were not spoken ahead"))
    for name in SPOKEN:
        for index in range(RECORDS):
            make_record(world, name, index, "train", clips)


def test_a_clip_that_fails_is_not_tried_again(tmp_path):
    settings = {"speaker": {"kind": "espeak", "voices": 5}, "gate": {"seconds_per_word": [8, 9], "attempts": 1}}
    (tmp_path / "speech.json").write_text(json.dumps(settings))
    clips = open_clips(str(tmp_path))
    for _ in range(2):
        with pytest.raises(RejectedRecord, match="'an owl' by 1"):
            clips.joined(("an owl",), 1)
        clips._gate.spoken = lambda lines: pytest.fail("it was tried again")


@pytest.mark.parametrize(
    "content, said",
    [(None, r"docs/commons\.md"), ("{", "not JSON"), ("[]", "object"), ('{"held_out": 0.0}', "none for exams")],
)
def test_settings_of_speech_are_checked(tmp_path, content, said):
    if content is not None:
        (tmp_path / "speech.json").write_text(content)
    with pytest.raises(UserError, match=said):
        open_clips(str(tmp_path))


# ---- the reader --------------------------------------------------------------------------------------------


def test_a_source_is_known_by_what_is_read(folder, tmp_path):
    def opened(place, **changes):
        settings = {"reader": "commons", "path": str(place), "task": "vqa", "examples": 3} | changes
        source = SourceConfig(**settings)
        return raw_records(source, check_source("x", source, {"commons": COMMONS_READER}))

    records, identity = opened(folder)
    assert len(records) == 3 and records[2].meta["index"] == 2
    write_world(tmp_path)
    assert opened(tmp_path)[1] == identity == opened(folder, split="test")[1] != opened(folder, split="style")[1]
    (tmp_path / "google" / "pictures" / "1f402.png").write_bytes(
        (tmp_path / "google" / "pictures" / "1f403.png").read_bytes()
    )
    assert opened(tmp_path)[1] != identity and opened(tmp_path, task="text_qa")[1] == opened(folder, task="text_qa")[1]
    with pytest.raises(UserError, match=r"clips/speech\.json"):
        opened(folder, task="asr")
    with pytest.raises(UserError, match="examples"):
        opened(folder, examples=0)


# ---- exams, tokenizers, the config -------------------------------------------------------------------------


def test_an_exam_accepts_every_word_for_a_thing(folder):
    made = exam("captioning", 6, str(folder), "test")
    truths = [case.truth for case in made.cases]
    score = made.measures[0].score
    assert score(truths, made.cases)[0].sum() == 6
    said = {name: f"The {word.title()}." for case in made.cases for name, *_, word in [case.meta["accepted"]]}
    others = [dataclasses.replace(truth, text=said[truth.text]) for truth in truths]
    assert score(others, made.cases)[0].sum() == 6
    assert score([dataclasses.replace(truth, text="a thing") for truth in truths], made.cases)[0].sum() == 0
    with pytest.raises(UserError, match="--data"):
        commons_exam("vqa", 3)
    further = commons_exam("captioning", 3, str(folder)).further
    assert {case.meta["thing"] for case in further["concepts"].cases} <= {"cat", "snake"}
    assert {case.meta["style"] for case in further["style"].cases} == {"twitter"}


class Pixels:
    """A judge of pictures that sees their pixels."""

    name = "pixels"

    def features(self, pictures):
        return np.stack([np.asarray(one, np.float32).reshape(-1)[::97] - 128.0 for one in pictures])


def test_what_is_drawn_is_judged_by_features(folder, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"imagenet is missing; get it by .* --part=imagenet"):
        exam("t2i", 4, str(folder))
    with pytest.raises(UserError, match=r"whisper is missing"):
        judges.measures("tts", str(folder))
    assert [measure.metric for measure in judges.measures("spoken_qa", str(folder))] == [NAMED.metric]
    assert "one measure less" in capsys.readouterr().err
    monkeypatch.setattr(judges, "judge", lambda part, folder: Pixels())
    for kept in (judges.gallery, judges.probe):
        kept.cache_clear()
    made = exam("t2i", 8, str(folder))
    for kept in (judges.gallery, judges.probe):
        kept.cache_clear()
    truths = [case.truth for case in made.cases]
    first = next(measure for measure in made.measures if "top 1 " in measure.metric)
    assert first.score(truths, made.cases)[0].sum() == 8
    kinds = made.measures[-1]
    right, turned = (kinds.score(told, made.cases)[0].sum() for told in (truths, truths[4:] + truths[:4]))
    assert "category" in kinds.metric and right > turned, (right, turned)
    turned = [truths[(number + 1) % 8] for number in range(8)]
    other = [
        a.meta["thing"] != b.meta["thing"] for a, b in zip(made.cases, [*made.cases[1:], made.cases[0]], strict=True)
    ]
    assert first.score(turned, made.cases)[0].tolist() == [float(not differs) for differs in other] and any(other)


def test_the_image_tokenizer_learns_both_styles_and_all_things(world):
    learned, kept = (world_pictures(world, 0.25, held_out) for held_out in (False, True))
    seen, wanted = learned(5, 40)
    assert seen is wanted and seen.shape == (40, 64, 64, 3)
    assert (learned(10, 1)[0] == seen[5:6]).all() and (kept(5, 40)[0] != seen).any()
    whole = [picture(world.folder, style, thing.picture) for thing in world.things for style in STYLES]
    assert any((image == one).all() for image in seen for one in whole)


def test_the_text_tokenizer_has_a_piece_for_every_learned_word(folder, tmp_path):
    config = load_config(
        "experiments/configs/tokenizers/commons_text.py", [f"--config.folder={folder}", "--config.records=5"]
    )
    trained = build(CommonsTextTokenizerRun, config).train(tmp_path)
    for name in ("a hamburger", "a penguin", "what kind of thing is this?"):
        assert trained.decode(trained.encode(name)) == name and len(trained.encode(name)) <= len(name.split()) + 1


def test_the_config_reads_every_task_from_one_folder(folder):
    config = run_config(load_config("experiments/configs/commons.py", [f"--config.data.sources.text_qa.path={folder}"]))
    assert {source.path for source in config.sources.values()} == {str(folder)}
    assert config.sources.keys() == set(TASKS) - {"inpainting"}
    for stage in config.plan:
        assert stage.weights.keys() <= config.sources.keys()
    drawn, heard = config.decoding["t2i"].sampler, config.decoding["asr"].adaptive
    assert drawn.reveal.least == 0.9 and (heard.rate, heard.minimum) == (0.5, 16) and not config.fast
    image = load_config("experiments/configs/tokenizers/commons_image.py", [f"--config.pictures.folder={folder}"])
    opened = build(CommonsImageTokenizerRun, image)
    asking = dataclasses.replace(opened, training=dataclasses.replace(opened.training, perceptual=0.1))
    assert (opened.optimizer_used.frozen, asking.optimizer_used.frozen) == ((), ("perceptual/*",))
    with pytest.raises(UserError, match="imagenet is missing; get it by"):
        asking.open()
    assert opened.training.model.downsampling == 8 and opened.pictures.folder == str(folder)
