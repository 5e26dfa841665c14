"""A served nano model under OpenAI's client: alone and among others, every form, refused, left, full, at its end."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import omnidiff_jax
from omnidiff_jax.answering.media import Audio, to_audio

openai = pytest.importorskip("openai")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from openapi_spec_validator import validate  # noqa: E402

from omnidiff_jax.serving.failures import Failure  # noqa: E402
from omnidiff_jax.serving.limits import Limits  # noqa: E402
from omnidiff_jax.serving.server import Server  # noqa: E402

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CIRCLE, SQUARE = "small red circle top left", "large blue square"
LIMITS = Limits(body=2**20, answers=4, queue=24, patience=120, upload=1)
MODEL = "nano"
# A token a step, so that there is something to see and to leave: one lane for all that is answered in text.
STEPS = {"settings": {"sampler.reveal.kind": "schedule"}}


@pytest.fixture(scope="module")
def model():
    return omnidiff_jax.load(MODEL, rows=4)


@contextlib.contextmanager
def serving(model, **options):
    """A server of the model in a thread of its own, ready."""
    server = Server(model, MODEL, **{"limits": LIMITS, "warm": (), "drain": 60, **options})
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.service.ready:
            time.sleep(0.02)
        yield server
    finally:
        server.stop()
        thread.join()


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


def pixels(b64: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def said(text: str, *parts: dict) -> list[dict]:
    return [{"role": "user", "content": [{"type": "text", "text": text}, *parts]}]


def shown(image: Image.Image) -> dict:
    url = "data:image/png;base64," + base64.b64encode(png(image)).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def heard(wav: bytes) -> dict:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav).decode(), "format": "wav"}}


def gauges(server) -> dict[str, float]:
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        lines = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def settle(server) -> dict[str, float]:
    """The metrics once nothing is under way."""
    for _ in range(500):
        found = gauges(server)
        if not any(value for name, value in found.items() if name.startswith("omnidiff_requests{")):
            return found
        time.sleep(0.02)
    raise AssertionError(found)


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
    assert again.choices[0].finish_reason == "stop"


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


def test_a_bad_request_is_told_by_name_and_hurts_nobody(client):
    ask, draw, speak = client.chat.completions.create, client.images.generate, client.audio.speech.create
    hi = said("hi")
    lasting = Audio(0.1 * np.sin(np.arange(320_000) * 0.1), 16_000).wav()
    cases = [
        (lambda: ask(model="other", messages=hi), 404, "model"),
        (lambda: ask(model=MODEL, messages=hi, tools=[]), 400, "tools"),
        (lambda: ask(model=MODEL, messages=hi, n=5), 400, "n"),
        (lambda: ask(model=MODEL, messages=hi, modalities=["text", "image"]), 400, "modalities"),
        (lambda: ask(model=MODEL, messages=hi, extra_body={"settings": {"sampler.cache.kind": "dual"}}), 400, "cache"),
        (lambda: ask(model=MODEL, messages=hi, max_tokens=10**7), 400, "canvas of 176"),
        (lambda: ask(model=MODEL, messages=said("red " * 600)), 400, "canvas has 176"),
        (lambda: ask(model=MODEL, messages=said("red " * 60_000)), 413, "limit of 32768"),
        (lambda: ask(model=MODEL, messages=[{"role": "user", "content": [heard(lasting)]}]), 400, "canvas"),
        (lambda: ask(model=MODEL, messages=said("red " * 400_000)), 413, "limit of 1048576 bytes"),
        (lambda: ask(model=MODEL, messages=said("a", heard(b"no sound"))), 400, "input_audio"),
        (lambda: draw(model=MODEL, prompt=CIRCLE, size="1024x1024"), 400, "64x64"),
        (lambda: draw(model=MODEL, prompt=CIRCLE, response_format="url"), 400, "response_format"),
        (lambda: draw(model=MODEL, prompt=CIRCLE, n=2, stream=True), 400, "n:"),
        (lambda: speak(model=MODEL, voice="alloy", input="hi"), 400, "voice"),
        (lambda: speak(model=MODEL, voice="default", input="hi", speed=1.5), 400, "speed"),
        (lambda: client.audio.transcriptions.create(model=MODEL, file=("a", b"x"), language="en"), 400, "language"),
        (lambda: client.images.edit(model=MODEL, image=[b"a", b"b"], prompt="x"), 400, "image"),
        (lambda: client.models.retrieve("other"), 404, "other"),
    ]
    for call, status, told in cases:
        with pytest.raises(openai.APIStatusError) as caught:
            call()
        body = caught.value.body
        assert caught.value.status_code == status and told in body["message"], body
        assert set(body) == {"message", "type", "param", "code"}
    assert client.models.retrieve(MODEL).id == MODEL


def raw(server, content: bytes, wait: float = 10) -> bytes:
    with socket.create_connection(server.url.removeprefix("http://").split(":"), wait) as connection:
        connection.sendall(content)
        with contextlib.suppress(ConnectionError):
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))
    return b""


def posted(path: str, body: bytes, kind: str = "application/json", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n"
    return head.encode() + b"\r\n" + body


def test_what_is_no_request_at_all(server):
    chat, form = "/v1/chat/completions", "multipart/form-data; boundary=b"
    part = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\nx\r\n'
    for content, status in [
        (posted(chat, b"{"), 400),
        (posted(chat, b"[" * 200_000), 400),
        (posted(chat, b'{"seed": ' + b"9" * 10_000 + b"}"), 400),
        (posted(chat, b'{"seed": NaN}'), 400),
        (posted(chat, b"\xff\xfe"), 400),
        (posted(chat, b"{}", "text/plain"), 415),
        (posted(chat, b"", length=2**40), 413),
        (posted(chat, b"{", length=100), 408),
        (posted("/v1/images/edits", b"".join(part % str(i).encode() for i in range(99)) + b"--b--", form), 400),
        (posted("/v1/images/edits", b"nothing of the kind", form), 400),
        (posted("/v1/images/edits", b"", "multipart/form-data"), 400),
        (b"GET /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
    ]:
        answer = raw(server, content)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()), (content[:80], answer[:300])
        assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"error"}


def test_who_leaves_frees_the_slot(server, client):
    request = {"model": MODEL, "messages": said("hello"), "max_tokens": 30, "extra_body": STEPS}
    client.chat.completions.create(**request)  # its programs are compiled
    before = settle(server)
    stream = client.chat.completions.create(stream=True, stream_options={"include_canvas": True}, **request)
    next(iter(stream))
    stream.close()
    body = {"model": MODEL, "messages": said("hello"), "max_tokens": 30, "n": 4, **STEPS}
    with socket.create_connection(server.url.removeprefix("http://").split(":"), 10) as connection:
        connection.sendall(posted("/v1/chat/completions", json.dumps(body).encode()))
        time.sleep(0.05)
    after = settle(server)

    def cancelled(found: dict[str, float]) -> float:
        return sum(value for name, value in found.items() if name.startswith("omnidiff_cancellations_total"))

    assert cancelled(after) > cancelled(before)
    assert client.chat.completions.create(**request).choices[0].finish_reason


def test_a_queue_has_an_end(server, client):
    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as many:
            asked = (many.images.generate(model=MODEL, prompt=CIRCLE, n=4) for _ in range(24))
            return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(all_of_them())
    refused = [error for error in found if isinstance(error, Exception)]
    assert refused and len(refused) < len(found)
    for error in refused:
        assert isinstance(error, openai.RateLimitError) and int(error.response.headers["retry-after"]) >= 1
    settle(server)


def test_the_key_health_and_the_page(model, server):
    def status(server, path, **headers):
        request = urllib.request.Request(server.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    with serving(model, key="secret") as closed:
        for path in ("/v1/models", "/metrics"):
            assert status(closed, path) == status(closed, path, Authorization="Bearer secre") == 401
            assert status(closed, path, Authorization="Bearer secret") == 200
        assert status(closed, "/health/live") == status(closed, "/health/ready") == status(closed, "/health") == 200
        closed.service.ready = False
        assert status(closed, "/health/live") == 200 and status(closed, "/health/ready") == 503
        closed.service.ready = True
    with urllib.request.urlopen(server.url) as answer:
        assert b"<html" in answer.read() and "default-src 'none'" in answer.headers["Content-Security-Policy"]
    with urllib.request.urlopen(f"{server.url}/openapi.json") as answer:
        description = json.load(answer)
    validate(description)
    assert {"/v1/chat/completions", "/v1/images/edits", "/metrics"} < set(description["paths"])


def test_the_example_asks_every_endpoint(server, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["openai_client.py", server.url, str(tmp_path)])
    runpy.run_path(str(ROOT / "examples" / "openai_client.py"), run_name="__main__")
    made = {path.name for path in tmp_path.iterdir()}
    assert {"circle.png", "circle_0.png", "square_2.png", "edited.png", "spoken.wav", "heard.png"} <= made


def test_what_is_under_way_is_answered_before_the_end(model):
    found = []

    def ask(url):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as asking:
            request = {"model": MODEL, "messages": said("hello"), "max_tokens": 30, "extra_body": STEPS}
            found.append(asking.chat.completions.create(**request))

    with serving(model) as ending:
        asking = threading.Thread(target=ask, args=(ending.url,))
        asking.start()
        while not ending.service.scheduler.open:
            time.sleep(0.001)
        ending.stop()
        asking.join()
    assert found[0].choices[0].finish_reason in ("stop", "length")
    with pytest.raises(Failure, match="shutting down"):
        ending.service.scheduler.submit(model.query({"task": "t2i", "text": CIRCLE}))


def test_the_command_ends_well_on_sigterm(omnidiff):
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "omnidiff_jax.cli", "serve", "--port=0", "--warm=none", "--name=mine"]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = process.stderr.readline().split()[-1]
            with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as asking:
                assert [entry.id for entry in asking.models.list()] == ["mine"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
    refused = omnidiff("serve", "--warm=nothing")
    assert refused.returncode == 2 and "'nothing' is no task" in refused.stderr
