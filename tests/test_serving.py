"""The server as clients meet it: the real `openai` package against one process with the shipped model."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from data_pipelines.scenes.speech import heard_voice, say

openai = pytest.importorskip("openai")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

ROOT = Path(__file__).parents[1]
SCENE = "small red circle top left, big blue square bottom right, on white"


@pytest.fixture(scope="module")
def url():
    """Weights under a config, as converted ones are served; `test_serving_trouble.py` starts it without either."""
    config = [f"--config={ROOT / 'experiments/configs/nano.py'}", "--config.init.folder=nano"]
    command = [sys.executable, "-m", "omnidiff_jax.cli", "serve", *config, "--port=0", "--warm=none", "--rows=2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"XLA_FLAGS": ""})
    try:
        for line in process.stderr:
            if found := re.search(r"http://\S+", line):
                break
        yield found[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
    finally:
        process.kill()


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def drawn(client):
    data = client.images.generate(model="nano", prompt=SCENE, extra_body={"seed": 3}).data
    return base64.b64decode(data[0].b64_json)


def get(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.status, answer.headers, answer.read()


def test_it_says_what_it_is(url, client):
    assert [model.id for model in client.models.list()] == ["nano"]
    assert get(f"{url}/health/live")[0] == 200
    _, headers, page = get(f"{url}/")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    for name in re.findall(r'(?:src|href)="([^"]+)"', page.decode()):
        assert get(f"{url}/{name}")[0] == 200
    paths = json.loads(get(f"{url}/openapi.json")[2])["paths"]
    assert {"/v1/chat/completions", "/v1/images/edits", "/v1/audio/transcriptions"} <= paths.keys()


def test_a_stream_says_what_the_whole_answer_says(client):
    asked = {
        "model": "nano",
        "messages": [{"role": "user", "content": f"{SCENE}. what color is the circle"}],
        "seed": 1,
    }
    whole = client.chat.completions.create(**asked)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("red", "stop")
    assert whole.usage.completion_tokens > 0
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "red"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


def test_canvases_are_events_of_their_own(url):
    body = {
        "model": "nano", "messages": [{"role": "user", "content": f"{SCENE}. what color is the circle"}],
        "stream": True, "stream_options": {"include_canvas": True}, "settings": {"sampler.reveal.kind": "schedule"},
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        events = answer.read().decode().split("\n\n")
    canvases = [json.loads(e.split("data: ")[1])["canvas"] for e in events if e.startswith("event: canvas")]
    assert canvases and canvases[0]["step"] <= 2 and "red" in canvases[-1]["text"]
    assert [c["step"] for c in canvases] == sorted({c["step"] for c in canvases})


def test_a_picture_is_drawn_and_repaired_in_its_own_pixels(client, drawn):
    again = client.images.generate(model="nano", prompt=SCENE, extra_body={"seed": 3}).data[0].b64_json
    assert base64.b64decode(again) == drawn
    picture = Image.open(io.BytesIO(drawn)).convert("RGB").resize((96, 96))
    mask = np.full((96, 96, 4), 255, np.uint8)
    mask[:48, :48, 3] = 0
    files = [io.BytesIO(), io.BytesIO()]
    picture.save(files[0], "png")
    Image.fromarray(mask).save(files[1], "png")
    edited = client.images.edit(
        model="nano", prompt="small green triangle top left, big blue square bottom right, on white",
        image=("picture.png", files[0].getvalue()), mask=("mask.png", files[1].getvalue()),
    )  # fmt: skip
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(edited.data[0].b64_json))).convert("RGB"))
    kept = mask[..., 3] == 255
    np.testing.assert_array_equal(found[kept], np.asarray(picture)[kept])
    hole = found[:48, :48].reshape(-1, 3).astype(int)
    assert ((hole[:, 1] > hole[:, 0] + 60) & (hole[:, 1] > hole[:, 2] + 60)).sum() > 20  # something green


def test_it_speaks(client):
    spoken = client.audio.speech.create(model="nano", voice="default", input="it is red", response_format="wav").content
    samples, rate = soundfile.read(io.BytesIO(spoken))
    assert 0.5 < len(samples) / rate < 4 and np.abs(samples).max() > 0.05


def test_it_hears(client):
    said = "what comes after five"
    wave, recording = say(said, heard_voice(3)), io.BytesIO()
    soundfile.write(recording, wave.samples, wave.rate, format="FLAC")
    heard = client.audio.transcriptions.create(model="nano", file=("speech.flac", recording.getvalue()))
    assert heard.text == said


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty"),
        ({"tools": []}, 400, "tools"),
        ({"model": "nan"}, 404, "nan"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "red " * 400}]}, 400, ""),
        ({"seed": -1}, 400, "seed"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(client, change, status, said):
    body = {"model": "nano", "messages": [{"role": "user", "content": "red"}]} | change
    with pytest.raises(openai.APIStatusError) as refused:
        client.post("/chat/completions", body=body, cast_to=object)
    assert refused.value.status_code in (status, 413 if status == 400 else status)
    assert said in refused.value.message


def test_no_url_is_fetched(client):
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/picture.png"}}
    with pytest.raises(openai.BadRequestError, match="image_url"):
        client.chat.completions.create(model="nano", messages=[{"role": "user", "content": [part]}])


def test_nothing_is_left_under_way(url, client):
    client.models.list()
    text = get(f"{url}/metrics")[2].decode()
    gauges = dict(re.findall(r'^omnidiff_requests\{stage="(\w+)"\} (\S+)$', text, re.MULTILINE))
    assert gauges and all(float(value) == 0 for value in gauges.values()), gauges
