"""A served nano model in trouble: bad requests, clients that leave or are killed, a full queue, its own end."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest
import served

import omnidiff_jax
from omnidiff_jax.answering.media import Audio

openai = pytest.importorskip("openai")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from openapi_spec_validator import validate  # noqa: E402
from served import CIRCLE, MODEL, STEPS, heard, long_stream, posted, raw, said, serving, settle  # noqa: E402

from omnidiff_jax.serving.failures import Failure  # noqa: E402

pytestmark = pytest.mark.slow


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


def cancelled(found: dict[str, float]) -> float:
    return sum(value for name, value in found.items() if name.startswith("omnidiff_cancellations_total"))


def served_by(port: int) -> list[str]:
    """The command in a process of its own."""
    return [sys.executable, "-m", "omnidiff_jax.cli", "serve", f"--port={port}", "--warm=none", f"--name={MODEL}"]


def alone_env() -> dict[str, str]:
    """One CPU device, as users have it."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


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
    assert cancelled(settle(server)) > cancelled(before)
    assert client.chat.completions.create(**request).choices[0].finish_reason


def test_a_client_that_is_killed_harms_nobody(server, client):
    request = {"model": MODEL, "messages": said("what colour is snow"), "extra_body": STEPS}
    alone = client.chat.completions.create(**request).choices[0].message.content
    long_stream(server.url).close()  # its programs are compiled
    before = settle(server)
    command = [sys.executable, served.__file__, server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        seen = process.stdout.readline()
        process.kill()
        assert seen == "seen\n"
        assert client.chat.completions.create(**request).choices[0].message.content == alone
        assert process.stdout.read() == ""
    assert cancelled(settle(server)) == cancelled(before) + 1


def test_a_server_that_is_killed_starts_again():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with subprocess.Popen(served_by(port), env=alone_env(), stderr=subprocess.PIPE, text=True) as process:
        try:
            stream = long_stream(process.stderr.readline().split()[-1])
        finally:
            process.kill()
        with pytest.raises((OSError, http.client.HTTPException)):
            stream.read()
    with subprocess.Popen(served_by(port), env=alone_env(), stderr=subprocess.PIPE, text=True) as process:
        try:
            with long_stream(process.stderr.readline().split()[-1]) as stream:
                assert stream.read().endswith(b"data: [DONE]\n\n")
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


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
    with subprocess.Popen(served_by(0), env=alone_env(), stderr=subprocess.PIPE, text=True) as process:
        try:
            url = process.stderr.readline().split()[-1]
            with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as asking:
                assert [entry.id for entry in asking.models.list()] == [MODEL]
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
    refused = omnidiff("serve", "--warm=nothing")
    assert refused.returncode == 2 and "'nothing' is no task" in refused.stderr
