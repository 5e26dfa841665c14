"""What users hand in wrongly is one line, whatever its type; nothing that they give is dropped in silence."""

import io

import numpy as np
import pytest
from omni_toys import RATE, generator, picture, quick, tone
from PIL import Image

import omnidiff_jax
from omnidiff_jax import files
from omnidiff_jax.answering.conversation import read_turns
from omnidiff_jax.answering.media import Audio, to_audio, to_image
from omnidiff_jax.answering.model import Answer, Model
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.audio import read_audio, wav_bytes
from omnidiff_jax.media.image import png_bytes
from omnidiff_jax.tasks.registry import TASKS

RAGGED = [[1, 2], [3]]
USER = {"role": "user", "content": "red"}


def refused(function, *arguments, **named):
    with pytest.raises(UserError) as caught:
        function(*arguments, **named)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 400, said
    return said


@pytest.fixture(scope="module")
def toy():
    return Model(generator(), {name: quick(task.decoding) for name, task in TASKS.items()}, "toy")


# ---- types -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"task": None}, "task = None must be a string"),
        ({"task": 3}, "task = 3 must be a string, not int"),
        ({"task": ["t2i"]}, "task = ['t2i'] must be a string"),
        ({"text": 5}, "text = 5 must be a string, not int"),
        ({"text": b"x"}, "text = b'x' must be a string, not bytes"),
        ({"text": ["a"]}, "text = ['a'] must be a string"),
        ({"text": "a\ud800"}, "holds half a character"),
        ({"settings": "steps"}, "settings = 'steps' must be a mapping"),
        ({"settings": ["steps"]}, "settings = ['steps'] must be a mapping"),
        ({"settings": {5: 3}}, "settings has the key 5"),
        ({"settings": {"sampler": {5: 3}}}, "settings.sampler has the key 5"),
        ({"settings": {"sampler": {"steps": [1]}}}, "settings.sampler.steps = [1] must be"),
        ({"film": "no"}, "film = 'no' must be True or False"),
        ({"seed": "x"}, "seed = 'x' must be a whole number from 0 to 4294967295"),
        ({"seed": True}, "seed = True must be a whole number"),
        ({"seed": 1.5}, "seed = 1.5 must be a whole number"),
        *[({"request_id": bad}, f"request_id = {bad!r} must be") for bad in ("x", None, -1, 1.7, 2**40)],
        ({"task": "captioning", "image": RAGGED}, "an image of type list is no array"),
        ({"task": "captioning", "image": 5}, "an image of int64 [] cannot be used"),
        ({"task": "asr", "audio": RAGGED}, "audio of type list cannot be used"),
        ({"task": "asr", "audio": (RAGGED, RATE)}, "audio of type list is no array"),
        ({"task": "inpainting", "image": picture(0), "hole": RAGGED}, "hole of type list is no array"),
        ({"task": "inpainting", "image": picture(0), "hole": np.zeros((3, 3))}, "hole = ndarray [3, 3] must be"),
    ],
)
def test_a_value_of_another_type_is_named(toy, named, words):
    assert words in refused(toy.answer_many, [{"task": "text_qa", "text": "red"} | named])


def test_what_is_no_list_of_requests_or_turns_is_named(toy):
    for wrong in (None, 3, "t2i", {"task": "t2i"}):
        assert "requests must be a list of mappings, such as [{" in refused(toy.answer_many, wrong)
    assert "the request must be a mapping" in refused(toy.answer_many, [None])
    assert "unknown argument 5" in refused(toy.answer_many, [{5: 3}])
    for wrong in (None, 5, "red", b"red", USER, np.zeros(3)):
        assert "messages must be a list of turns, such as [{" in refused(toy.chat, wrong)
    assert "answer = 5 must be a string" in refused(toy.chat, [USER], 5)
    assert "message 1: role = ['user'] must be a string" in refused(toy.chat, [{"role": ["user"], "content": "a"}])
    assert "message 1: text = 5 must be a string" in refused(toy.chat, [{"role": "user", "text": 5}])
    assert "message 1: unknown key 5" in refused(toy.chat, [{"role": "user", 5: "a"}])


def test_numbers_of_numpy_are_numbers(toy):
    requests = (
        {"task": "text_qa", "text": "red", "seed": kind(7), "settings": {"steps": kind(2)}} for kind in (int, np.int64)
    )
    one, other = toy.answer_many(requests)  # a generator is a list, too
    assert one.text == other.text and one.steps == other.steps == 2
    assert to_audio((tone(0.5).samples, np.int32(RATE))).rate == RATE
    assert "temperature" in refused(toy.answer, "text_qa", text="red", settings={"temperature": np.float32(np.nan)})


def test_load_names_what_it_cannot_take(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "1").mkdir(parents=True)
    for wrong in (None, 3, b""):
        assert "must be a path, not" in refused(omnidiff_jax.load, wrong)
    for wrong in (0, -1, "8", 1.5, True):
        assert f"rows = {wrong!r} must be a whole number from 1" in refused(omnidiff_jax.load, run, rows=wrong)
    assert "seed = 'x' must be a whole number" in refused(omnidiff_jax.load, run, seed="x")
    assert "decoding = 3 must be a mapping" in refused(omnidiff_jax.load, run, decoding=3)
    assert "tokenizers = 3 must be a mapping" in refused(omnidiff_jax.load, run, tokenizers=3)
    assert "config = 3 must be a RunConfig" in refused(omnidiff_jax.load, run, config=3)
    # What a run has of its own is not taken in silence.
    assert "its own tokenizers; leave out" in refused(omnidiff_jax.load, run, tokenizers={"image": "/nope"})


# ---- nothing is dropped ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({"content": "a", "image": picture(0)}, "image stands beside content"),
        ({"content": [{"image": picture(0)}], "text": "a"}, "text stands beside content"),
        ({"content": [{"image": picture(0), "audio": tone(0.5)}]}, "the part of type image also has 'audio'"),
        ({"content": [{"type": "text", "text": "a", "image": picture(0)}]}, "the part of type text also has 'image'"),
        (
            {"content": [{"type": "image", "image": picture(0), "detail": "low"}]},
            "the part of type image also has 'detail'",
        ),
        ({"content": [{"type": "image", "text": "a"}]}, "a part must be a string or"),
        ({"content": np.zeros((4, 4), np.uint8)}, "a part must be a string or"),
        ({"content": 5}, "a part must be a string or"),
        ({"content": []}, "message 1 is empty"),
    ],
)
def test_a_turn_says_one_thing_in_one_place(turn, words):
    assert words in refused(read_turns, [{"role": "user", **turn}])


def test_a_medium_may_stand_for_the_content():
    audio = Audio(tone(0.5).samples, RATE)
    for content in (Image.fromarray(picture(0)), {"image": picture(0)}, [Image.fromarray(picture(0))]):
        (image,) = read_turns([{"role": "user", "content": content}]).images
        np.testing.assert_array_equal(image, picture(0))
    for content in (audio, [audio], {"type": "audio", "audio": audio}):
        assert len(read_turns([{"role": "user", "content": content}]).audios) == 1
    # What says nothing drops nothing.
    assert read_turns([{"role": "user", "content": "a", "image": None, "text": ""}]).text == "a"
    empty = Answer("", None, None, "end", 1)
    for turn in (empty, {"role": "assistant", "content": empty}):
        said = refused(read_turns, [USER, turn, USER])
        assert "message 2: this answer of the model is empty; leave out its turn" in said


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"messages": [USER], "image": picture(0)}, "image"),
        ({"messages": [USER], "text": "red"}, "text"),
        ({"messages": [USER], "hole": (0, 0, 3, 3)}, "hole"),
        ({"messages": [USER], "task": "t2i"}, "task"),
        ({"task": "text_qa", "text": "red", "answer": "speech"}, "answer"),
    ],
)
def test_what_the_other_form_of_request_takes_is_named(toy, request_, words):
    takes = "messages, answer" if "messages" in request_ else "task, text, image"
    assert f"unknown argument '{words}'; this takes {takes}" in refused(toy.answer_many, [request_])


# ---- messages of batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"task": "captioning", "image": "absent.png"},
        {"task": "t2j", "text": "red"},
        {"task": "text_qa", "text": "red", "settings": {"stps": 3}},
        {"task": "text_qa", "text": "red", "seed": -1},
        {"task": "asr", "audio": (np.zeros(RATE, np.float32), RATE)},
        {"task": "text_qa", "text": "x" * 500},
        {"task": "text_qa", "text": "円"},
        {"task": "text_qa"},
        {"messages": [USER, {"role": "user", "image": "absent.png"}]},
        {"messages": [USER], "answer": "spech"},
        {"txt": "red"},
        None,
    ],
    ids=str,
)
def test_a_bad_request_of_several_is_told_by_its_number(toy, bad):
    good = {"task": "text_qa", "text": "red"}
    assert "request 3" in refused(toy.answer_many, [good, {"task": "asr", "audio": tone(0.5), "film": True}, bad])
    alone = refused(toy.answer_many, [bad])
    assert "request 3" not in alone and "example" not in alone


# ---- media -----------------------------------------------------------------------------------------------------


def test_samples_are_taken_at_their_scale(tmp_path):
    wave = tone(0.5).samples
    for dtype in (np.uint8, np.int8, np.int16, np.int32):
        whole = 2.0 ** (8 * np.dtype(dtype).itemsize - 1)
        pcm = np.round(wave.astype(np.float64) * (whole - 1) + (whole if dtype == np.uint8 else 0)).astype(dtype)
        heard = to_audio((pcm, RATE)).samples
        assert heard.dtype == np.float32
        np.testing.assert_allclose(heard, wave, atol=1.01 / whole if whole < 2**20 else 1e-6)
        stereo = to_audio((np.stack([pcm, pcm], 1), RATE)).samples
        np.testing.assert_allclose(stereo, heard, atol=1e-6)
    # As from a file of them.
    Audio(wave, RATE).save(tmp_path / "a.wav")
    pcm = np.frombuffer((tmp_path / "a.wav").read_bytes()[44:], np.int16)
    np.testing.assert_array_equal(to_audio((pcm, RATE)).samples, read_audio(tmp_path / "a.wav").samples)
    assert to_audio((wave * 2.2, RATE)).samples.max() == 1.0, "resampling overshoots a little"
    for wrong, said in (
        (wave * 4, "peaks at 2, where samples lie in [-1, 1]; scale it down"),
        ((wave * 32767).astype(np.int64), "samples of int64 have no known scale; give (samples, rate in Hz)"),
        (wave > 0, "samples of bool have no known scale"),
        (wave + 1j, "samples of complex64 have no known scale"),
        (np.array(["a"]), "have no known scale"),
        (np.full(RATE, np.nan), "holds NaN"),
        (np.zeros((2, 2, 2)), "samples of shape [2, 2, 2] cannot be used"),
        (np.zeros((2000, 100)), "100 channels, over 32"),
        (16000, "samples of shape [] cannot be used"),
    ):
        assert said in refused(to_audio, (wrong, RATE))
    for rate in (0, -1, True, None, "16000", 16000.5):
        for make in (lambda rate: to_audio((wave, rate)), lambda rate: Audio(wave, rate)):
            assert "the rate of audio in Hz = " in refused(make, rate)


def test_open_files_and_views_are_files():
    pixels, wave = picture(2), tone(0.5)
    png, wav = png_bytes(pixels), wav_bytes(wave)
    stream = io.BytesIO(png)
    stream.seek(0, io.SEEK_END)  # as it stands after it was written
    for form in (memoryview(png), bytearray(png), stream):
        np.testing.assert_array_equal(to_image(form), pixels)
    for form in (memoryview(wav), io.BytesIO(wav)):
        np.testing.assert_allclose(to_audio(form).samples, wave.samples, atol=1e-4)
    assert "opened as text" in refused(to_image, io.StringIO("x"))
    stream.close()
    assert "cannot be read from" in refused(to_image, stream)
    assert "has no pixels" in refused(to_image, Image.new("RGB", (0, 3)))


def test_speech_is_saved_where_it_is_told_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    speech, sent = Audio(tone(0.5).samples, RATE), {}

    class Bucket:
        def __init__(self, url):
            self.url = url

        def check(self):
            pass

        def put(self, file, name):
            sent[f"{self.url}/{name}"] = file.read_bytes()

    monkeypatch.setattr(files, "Bucket", Bucket)
    for url in ("s3://bucket/a/x.wav", "gs://bucket/x.wav"):
        speech.save(url)
        assert sent[url] == speech.wav()
    speech.save("~/new/x.wav")
    assert (tmp_path / "home" / "new" / "x.wav").read_bytes() == speech.wav()
    for wrong in ("x.mp3", "x", "", "s3://bucket/x.flac"):
        assert f"'{wrong}' must end with .wav" in refused(speech.save, wrong)
    assert "path = None must be a path" in refused(speech.save, None)
    assert [file.name for file in tmp_path.iterdir()] == ["home"]
