"""A served nano model under OpenAI's client: alone and among others, every form of question and answer."""

from __future__ import annotations

import asyncio
import base64
import functools
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import omnidiff_jax
from omnidiff_jax.answering.media import to_audio

openai = pytest.importorskip("openai")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from served import CIRCLE, MODEL, SQUARE, STEPS, gauges, heard, pixels, png, said, serving, settle, shown  # noqa: E402

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model():
    return omnidiff_jax.load(MODEL, rows=4)


@pytest.fixture(scope="module")
def server(model):
    with serving(model) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def circle(model):
    return model.answer("t2i", text=CIRCLE, seed=3)


@pytest.fixture(scope="module")
def spoken(client):
    return client.audio.speech.create(model=MODEL, voice="default", input=CIRCLE, response_format="wav").content


def test_pictures_are_those_the_model_draws_alone(client, circle):
    drawn = client.images.generate(model=MODEL, prompt=CIRCLE, n=2, size="64x64", extra_body={"seed": 3})
    for data in drawn.data:
        np.testing.assert_array_equal(pixels(data.b64_json), np.asarray(circle.image))
    assert drawn.usage.output_tokens == 2 * 16 and drawn.size == "64x64"


def test_the_canvas_of_a_picture_is_seen_filling_in(client, server, model, circle):
    film = model.answer("t2i", text=CIRCLE, seed=3, settings={"steps": 8}, film=True).film
    request = {"model": MODEL, "prompt": CIRCLE, "stream": True, "extra_body": {"seed": 3}}
    *partial, last = client.images.generate(partial_images=2, **request)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * len(partial) and partial
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    np.testing.assert_array_equal(pixels(partial[0].b64_json), np.asarray(film[0]))  # after the first step
    assert last.type == "image_generation.completed"
    np.testing.assert_array_equal(pixels(last.b64_json), np.asarray(circle.image))
    chunks = client.chat.completions.create(
        model=MODEL,
        messages=said(CIRCLE),
        stream=True,
        stream_options={"include_canvas": True},
        extra_body={"modalities": ["image"], "seed": 3},
    )
    frames = [pixels(chunk.canvas["b64_json"]) for chunk in chunks if not chunk.choices]
    np.testing.assert_array_equal(frames, np.stack([np.asarray(frame) for frame in film]))


def test_a_conversation_in_text_and_pictures(client, circle):
    ask = functools.partial(client.chat.completions.create, model=MODEL, extra_body=STEPS)
    asked = said("what colour is the circle", shown(circle.image))
    answer = ask(messages=asked)
    choice = answer.choices[0]
    assert choice.message.content == "red" and choice.finish_reason == "stop" and choice.message.role == "assistant"
    usage = answer.usage
    assert usage.completion_tokens <= 8 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    texts = ["", ""]
    *chunks, last = ask(messages=asked, stream=True, stream_options={"include_usage": True}, n=2)
    for chunk in chunks:
        for part in chunk.choices:
            texts[part.index] += part.delta.content or ""
    assert texts == ["red", "red"] and last.usage.completion_tokens == 2 * usage.completion_tokens
    assert ask(messages=said("hello"), max_tokens=1).choices[0].finish_reason == "length"
    # What was answered is a turn as it stands.
    turns = [*asked, choice.message, *said("what colour is the circle")]
    assert ask(messages=turns).choices[0].finish_reason in ("stop", "length")


def test_a_spoken_conversation(client, spoken):
    both = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": [heard(spoken)]}],
        modalities=["text", "audio"],
        audio={"voice": "default", "format": "wav"},
    )
    message = both.choices[0].message
    assert message.content is None and to_audio(base64.b64decode(message.audio.data)).seconds > 0
    again = client.chat.completions.create(model=MODEL, messages=[*said("hi"), message, *said("hello")])
    assert again.choices[0].finish_reason in ("stop", "length")


def test_speech_in_every_form_and_back(client, spoken):
    seconds = to_audio(spoken).seconds
    for form in ("flac", "mp3", "opus", "pcm"):
        raw = client.audio.speech.with_raw_response.create(
            model=MODEL, voice="default", input=CIRCLE, response_format=form
        )
        content = raw.content
        assert raw.headers["x-omnidiff-finish"] == "end" and raw.headers["content-type"].startswith("audio/")
        found = len(content) / 48_000 if form == "pcm" else to_audio(content).seconds
        assert found == pytest.approx(seconds, abs=0.1)
    told = {
        form: client.audio.transcriptions.create(model=MODEL, file=("a.wav", spoken), response_format=form)
        for form in ("json", "text", "verbose_json")
    }
    assert told["json"].text == told["text"].strip() == told["verbose_json"].text
    assert told["verbose_json"].duration == pytest.approx(seconds, abs=1e-3)
    events = list(client.audio.transcriptions.create(model=MODEL, file=("a.wav", spoken), stream=True))
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == told["json"].text


def test_a_hole_is_filled_in_the_users_own_pixels(client, circle):
    photo = circle.image.convert("RGB").resize((90, 70))
    mask = Image.new("L", photo.size, 255)
    mask.paste(0, (0, 0, 40, 30))
    clear = photo.convert("RGBA")
    clear.putalpha(mask)
    edited = client.images.edit(model=MODEL, image=("a.png", png(photo)), mask=("m.png", png(clear)), prompt=SQUARE)
    found, hole = pixels(edited.data[0].b64_json), np.asarray(mask) == 0
    assert edited.size == "90x70" and found.shape == (70, 90, 3)
    np.testing.assert_array_equal(found[~hole], np.asarray(photo)[~hole])
    assert (found[hole] != np.asarray(photo)[hole]).any()
    *_, last = client.images.edit(
        model=MODEL, image=("a.png", png(clear)), prompt=SQUARE, stream=True, partial_images=1, output_format="webp"
    )
    assert last.type == "image_edit.completed"
    np.testing.assert_array_equal(pixels(last.b64_json)[~hole], np.asarray(photo)[~hole])


def test_many_at_once_get_what_each_gets_alone(server, client, circle):
    whats = ("grass", "snow", "the sky", "coal", "blood")

    def draw(asked):
        return asked.images.generate(model=MODEL, prompt=CIRCLE, extra_body={"seed": 3})

    def ask(asked, what):
        messages = said(f"what colour is {what}")
        return asked.chat.completions.create(model=MODEL, messages=messages, extra_body=STEPS)

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as many:
            return await asyncio.gather(*(draw(many) for _ in whats), *(ask(many, what) for what in whats))

    alone = [ask(client, what).choices[0].message.content for what in whats]
    before = gauges(server)
    found = asyncio.run(all_of_them())
    for drawn in found[:5]:
        np.testing.assert_array_equal(pixels(drawn.data[0].b64_json), np.asarray(circle.image))
    assert [answer.choices[0].message.content for answer in found[5:]] == alone
    after = settle(server)

    def grown(name: str) -> float:
        return after[f"omnidiff_{name}_total"] - before[f"omnidiff_{name}_total"]

    # They shared their steps.
    assert grown("engine_busy_slots") > 1.2 * grown("engine_steps")


def test_the_example_asks_every_endpoint(server, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["openai_client.py", server.url, str(tmp_path)])
    runpy.run_path(str(ROOT / "examples" / "openai_client.py"), run_name="__main__")
    made = {path.name for path in tmp_path.iterdir()}
    assert {"circle.png", "circle_0.png", "square_2.png", "edited.png", "spoken.wav", "heard.png"} <= made
