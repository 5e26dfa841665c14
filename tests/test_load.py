"""The library's door: `load`, requests of any task, batches, settings, films, media in any form, conversation."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from omni_toys import SIZE, generator, left_half, picture, quick, tone
from PIL import Image
from tiny_run import write_config

import omnidiff_jax
from experiments.checks.untrained import untrained
from experiments.common import load_config
from omnidiff_jax.answering.conversation import conversation_query, read_turns
from omnidiff_jax.answering.media import Audio, to_audio, to_hole, to_image
from omnidiff_jax.answering.model import Model
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.audio import write_wav
from omnidiff_jax.media.image import png_bytes, write_png
from omnidiff_jax.runs.config import run_config
from omnidiff_jax.runs.stored import export_newest
from omnidiff_jax.sampling import EntropyBound, Threshold
from omnidiff_jax.tasks.registry import TASKS


def refused(function, *arguments, **named):
    with pytest.raises(UserError) as caught:
        function(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def toy():
    return Model(generator(), {name: quick(task.decoding) for name, task in TASKS.items()}, "toy")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loaded")
    file = write_config(folder)
    config = load_config(str(file))
    config.batch_size = 8
    untrained(config, folder / "run")
    return folder / "run"


def same(one, other):
    assert one.text == other.text and one.finish == other.finish
    assert (one.image is None) == (other.image is None) and (one.audio is None) == (other.audio is None)
    if one.image is not None:
        assert one.image.tobytes() == other.image.tobytes()
    if one.audio is not None:
        np.testing.assert_array_equal(one.audio.samples, other.audio.samples)


# ---- presets ---------------------------------------------------------------------------------------------------


def test_the_fast_preset_replaces_the_tasks_it_has(workdir, tmp_path):
    assert "unknown preset 'fsat'; did you mean 'fast'" in refused(omnidiff_jax.load, workdir, preset="fsat")
    config = load_config(str(write_config(tmp_path)))
    config.batch_size = 8
    config.fast = ConfigDict()
    without = tmp_path / "without"
    untrained(config, without)
    assert f"{without} has no fast settings" in refused(omnidiff_jax.load, without, preset="fast")
    config.fast = ConfigDict({"t2i": {"sampler": {"reveal": {"kind": "entropy_bound", "gamma": 0.25}}}})
    untrained(config, tmp_path / "run")
    exact, fast = (omnidiff_jax.load(tmp_path / "run", preset=preset) for preset in ("exact", "fast"))
    ours, theirs = (model.decoding["t2i"].sampler for model in (fast, exact))
    assert type(ours.reveal) is EntropyBound and ours.reveal.gamma == 0.25 and type(theirs.reveal) is Threshold
    # What a group does not name is as in `decoding`; tasks that are not named are decoded as ever.
    assert ours.reveal.least == theirs.reveal.least and dataclasses.replace(ours, reveal=theirs.reveal) == theirs
    assert all(fast.decoding[name] == exact.decoding[name] for name in TASKS if name != "t2i")
    config.fast = ConfigDict({"t2l": {}})
    with pytest.raises(UserError, match="task in config.fast.*t2i"):
        run_config(config)


# ---- load ------------------------------------------------------------------------------------------------------


def test_from_import_to_picture_in_three_lines(workdir, tmp_path):
    model = omnidiff_jax.load(workdir)
    model.answer("t2i", text="small red circle top left").image.save(tmp_path / "circle.png")
    with Image.open(tmp_path / "circle.png") as image:
        assert image.size == (64, 64) and image.mode == "RGB"


def test_an_exported_run_answers_as_the_run(workdir, tmp_path):
    export_newest(workdir, tmp_path / "released")
    requests = [{"task": "t2i", "text": "a red circle"}, {"task": "asr", "audio": tone(1.0)}]
    answers = omnidiff_jax.load(workdir).answer_many(requests)
    for one, other in zip(omnidiff_jax.load(tmp_path / "released").answer_many(requests), answers, strict=True):
        same(one, other)


def test_what_cannot_be_loaded_is_said(workdir, tmp_path):
    assert "neither a folder nor the name of a model" in refused(omnidiff_jax.load, tmp_path / "absent")
    assert "neither a folder nor the name of a model" in refused(omnidiff_jax.load, "nanno")
    assert "paths are local, or begin with" in refused(omnidiff_jax.load, "http://hub/model")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert "no checkpoint" in refused(omnidiff_jax.load, tmp_path / "run")
    assert "config.decoding.t2i = 3 must be" in refused(omnidiff_jax.load, workdir, decoding={"t2i": 3})
    with pytest.raises(AttributeError):
        _ = omnidiff_jax.laod


def test_importing_the_library_imports_nothing_heavy():
    code = "import sys, omnidiff_jax; print(sorted(m for m in sys.modules if m in ('jax', 'numpy', 'flax', 'orbax')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- requests --------------------------------------------------------------------------------------------------


def test_requests_of_several_tasks_in_one_batch_are_answered_as_alone(toy):
    requests = [
        {"task": "text_qa", "text": "red"},
        {"task": "t2i", "text": "a big blue square"},
        {"task": "text_qa", "text": "where is the cross"},
        {"task": "spoken_qa", "audio": tone(0.6)},
        {"messages": [{"role": "user", "content": "red"}], "answer": "speech"},
        {"task": "t2i", "text": "red", "settings": {"steps": 2}},
    ]
    together = toy.answer_many(requests)
    for request, answer in zip(requests, together, strict=True):
        same(toy.answer_many([request])[0], answer)
    assert toy.answer_many([]) == [] and together[5].steps == 2 and together[1].steps == 4


def test_requests_of_several_seeds_share_a_batch(toy, monkeypatch):
    sizes, decode = [], toy.generator._answer
    monkeypatch.setattr(
        toy.generator, "_answer", lambda queries, strips: (sizes.append(len(queries)), decode(queries, strips))[1]
    )
    noisy = {"task": "t2i", "text": "red", "settings": {"temperature": 5.0}}
    requests = [noisy | {"seed": seed} for seed in (1, 2**32 - 1, 1)]
    first, second, again = toy.answer_many(requests)
    assert sizes == [3]
    same(first, again)
    assert first.image.tobytes() != second.image.tobytes()
    same(second, toy.answer_many([requests[1]])[0])


def test_settings_hold_for_one_request(toy):
    assert toy.answer("text_qa", text="red", settings={"steps": 2}).steps == 2
    assert toy.answer("text_qa", text="red", settings={"sampler": {"steps": 3}}).steps == 3
    assert toy.answer("text_qa", text="red", settings={"sampler.steps": 1, "length": 5}).steps == 1
    assert toy.answer("text_qa", text="red").steps == 4
    noisy = {"temperature": 5.0}
    first, again, other = (toy.answer("t2i", text="red", seed=seed, settings=noisy) for seed in (1, 1, 2))
    same(first, again)
    assert first.image.tobytes() != other.image.tobytes()
    assert "did you mean 'steps'" in refused(toy.answer, "text_qa", text="red", settings={"stps": 2})
    assert "temperature" in refused(toy.answer, "text_qa", text="red", settings={"temperature": float("nan")})
    assert "seed = -1" in refused(toy.answer, "text_qa", text="red", seed=-1)
    assert "length of a picture" in refused(toy.answer, "t2i", text="red", settings={"length": 5})
    assert "did you mean 't2i'" in refused(toy.answer, "t2", text="red")
    assert "task vqa needs image; it takes text, image" in refused(toy.answer, "vqa", text="red")
    assert "the request: unknown argument 'txt'; did you mean 'text'?" in refused(
        toy.answer_many, [{"task": "t2i", "txt": "red"}]
    )
    assert "names neither a task" in refused(toy.answer_many, [{"text": "red"}])


TURNS = [{"role": "user", "content": "what is red"}]


@pytest.mark.parametrize(
    "ask",
    [
        lambda toy, **named: toy.answer("text_qa", text="red", **named),
        lambda toy, **named: toy.chat(TURNS, **named),
        lambda toy, **named: toy.answer_many([{"task": "text_qa", "text": "red", **named}]),
        lambda toy, **named: toy.answer_many([{"messages": TURNS, **named}]),
    ],
    ids=["answer", "chat", "answer_many", "answer_many of turns"],
)
def test_an_unknown_argument_is_told_with_what_was_meant(toy, ask):
    assert "unknown argument 'stepz'; did you mean settings={'steps': …}?" in refused(ask, toy, stepz=3)
    assert "unknown argument 'temperature'; did you mean settings={'temperature': …}?" in refused(
        ask, toy, temperature=0.5
    )
    assert "unknown argument 'sed'; did you mean 'seed'?" in refused(ask, toy, sed=3)
    assert "unknown argument '§'; known: " in refused(ask, toy, **{"§": 3})
    assert "unknown setting settings.stepz; did you mean 'steps'?" in refused(ask, toy, settings={"stepz": 3})


def test_a_request_is_a_task_or_a_conversation(toy):
    said = refused(toy.answer_many, [{"task": "text_qa", "text": "red"}, {"task": "text_qa", "messages": TURNS}])
    assert "request 2: unknown argument 'task'" in said


def test_a_film_is_asked_for(toy):
    answer = toy.answer("t2i", text="red", film=True)
    assert len(answer.film) == 4 and answer.film[-1].tobytes() == answer.image.tobytes()
    assert all(frame.size == (SIZE, SIZE) for frame in answer.film)
    text = toy.answer("text_qa", text="red", film=True)
    assert "·" in text.film[0] and text.film[-1] == text.text
    speech = toy.answer("tts", text="red", film=True)
    assert all(isinstance(frame, Image.Image) for frame in speech.film)
    assert toy.answer("t2i", text="red").film is None


def test_an_answer_says_why_it_ended(toy):
    assert toy.answer("t2i", text="red").finish == "end"
    finishes = {toy.answer("text_qa", text=text, settings={"length": 3}).finish for text in ("red", "a", "b c", "d?")}
    assert finishes <= {"end", "length"} and "length" in finishes
    # Blocks of the released form whose share of the steps rounds down to none stay masked.
    blocks = {"steps": 2, "length": 12, "sampler": {"blocks": {"size": 3, "form": "released"}}}
    assert toy.answer("text_qa", text="red", settings=blocks).finish == "steps"


def test_media_come_in_any_form(toy, tmp_path):
    pixels, wave = picture(3), tone(0.7)
    write_png(tmp_path / "a.png", pixels)
    write_wav(tmp_path / "a.wav", wave)
    forms = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        png_bytes(pixels),
        pixels,
        Image.fromarray(pixels),
        pixels / 255,
    ]
    for form in forms:
        np.testing.assert_array_equal(to_image(form), pixels)
    clipped = to_audio(tmp_path / "a.wav").samples
    for sound in (str(tmp_path / "a.wav"), (tmp_path / "a.wav").read_bytes(), wave, (wave.samples, wave.rate)):
        np.testing.assert_allclose(to_audio(sound).samples, clipped, atol=1e-4)
    Audio(wave.samples, wave.rate).save(tmp_path / "b.wav")
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "a.wav").read_bytes()
    np.testing.assert_array_equal(to_hole((0, 0, SIZE // 2, SIZE), SIZE), left_half())
    same(toy.answer("captioning", image=pixels), toy.answer("captioning", image=str(tmp_path / "a.png")))
    for wrong in (np.zeros((3, 3, 7), np.uint8), object(), b"not an image"):
        refused(to_image, wrong)
    for wrong in (object(), b"not a sound", (np.zeros(0), 16000)):
        refused(to_audio, wrong)
    assert "box inside" in refused(to_hole, (0, 0, SIZE + 1, 3), SIZE)
    assert str(tmp_path) not in refused(to_image, b"GIF89a")


# ---- conversation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["text", "speech", "image", "text_and_speech"])
def test_any_history_is_answered_in_any_form(toy, answer):
    drawn = toy.answer("t2i", text="red")
    history = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "draw"}, {"audio": tone(0.5)}]},
        {"role": "assistant", "content": drawn},
        {"role": "user", "text": "what is it", "image": drawn.image},
    ]
    said = toy.chat(history, answer)
    assert (said.image is not None) == (answer == "image")
    assert said.finish in ("end", "length", "steps") and said.steps >= 1
    same(said, toy.chat(history, answer))


def test_a_conversation_of_one_turn_is_the_task_it_amounts_to(toy):
    image, audio = picture(1), tone(0.5)
    for name, turn, answer in (
        ("t2i", {"text": "red"}, "image"),
        ("vqa", {"text": "what", "image": image}, "text"),
        ("s2i", {"audio": audio}, "image"),
        ("spoken_vqa", {"audio": audio, "image": image}, "text_and_speech"),
    ):
        same(toy.chat([{"role": "user", **turn}], answer), toy.answer(name, **turn))


def test_bad_conversations_are_one_line(toy):
    for messages, words in (
        ([], "must be a list of turns"),
        ("hello", "messages must be a list"),
        ([{"role": "usr", "content": "a"}], "did you mean 'user'"),
        ([{"role": "user", "content": "  "}], "message 1 is empty"),
        ([{"role": "user", "content": "see <|image|>"}], "the place of a medium"),
        ([{"role": "user", "content": [{"type": "video", "video": "x"}]}], "a part must be a string or"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "the last message is the assistant's",
        ),
        ([{"role": "user", "image": "absent.png"}], "does not exist"),
        ([{"role": "user", "contnt": "a"}], "unknown key 'contnt'"),
    ):
        assert words in refused(toy.chat, messages)
    assert "did you mean 'speech'" in refused(toy.chat, [{"role": "user", "content": "a"}], "spech")
    turns = read_turns([{"role": "user", "content": "a"}])
    assert conversation_query(turns, "speech", toy.decoding).decoding.length >= 12


def test_the_terminal_talks(workdir, omnidiff, tmp_path):
    write_wav(tmp_path / "a.wav", tone(1.0))
    lines = [
        "/image absent.png",
        "/answer image",
        "a red circle",
        f"/audio {tmp_path / 'a.wav'}",
        "",
        "/nonsense",
        "/quit",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "omnidiff_jax.cli", "chat", f"--workdir={workdir}", f"--out={tmp_path}"],
        input="\n".join([*lines, "/quit", ""]),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [str(tmp_path / "answer_1.png"), str(tmp_path / "answer_2.png")]
    assert "absent.png" in done.stderr and "did you mean" in done.stderr and "Traceback" not in done.stderr
