"""The server's parts without a model: holes in pictures, sound, URLs, lanes, what is said of a half-filled text."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import io
import re
import types
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import uvicorn
import yaml
from absl import flags as absl_flags
from hypothesis import strategies as st
from PIL import Image

from experiments import launch, serve
from omnidiff_jax.answering.lanes import lane_lengths
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import Waveform
from omnidiff_jax.serving import remote
from omnidiff_jax.serving.bodies import ChatRequest, TranscriptionRequest
from omnidiff_jax.serving.canvases import Prefix
from omnidiff_jax.serving.connections import Connection
from omnidiff_jax.serving.failures import Failure
from omnidiff_jax.serving.limits import Limits
from omnidiff_jax.serving.openapi import document
from omnidiff_jax.serving.pictures import file_of, read_hole
from omnidiff_jax.serving.reading import checked, data_of
from omnidiff_jax.serving.remote import Trusted
from omnidiff_jax.serving.sound import FORMATS, PCM_RATE, read_sound

LIMITS = Limits()


def png(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def masked(width: int, height: int, box: tuple[int, int, int, int]) -> bytes:
    mask = Image.new("RGBA", (width, height), (255, 255, 255, 255))
    mask.paste((0, 0, 0, 0), box)
    return png(mask)


@st.composite
def holes(draw):
    width, height = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return width, height, (left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height)))


@hypothesis.given(holes(), st.sampled_from([8, 64]))
def test_a_hole_is_seen_whole_and_nothing_else_is_touched(drawn, size):
    width, height, box = drawn
    picture = noise(width, height)
    hole = read_hole(png(picture), masked(width, height, box), LIMITS)
    seen, part = hole.seen(size)
    assert seen.shape == (size, size, 3) and part.shape == (size, size) and part.any()
    left, top, side = hole.box
    # All of the hole lies in the square, and the square in the picture wherever it can.
    assert left <= box[0] and top <= box[1] and left + side >= box[2] and top + side >= box[3]
    assert side == max(min(width, height), box[2] - box[0], box[3] - box[1])
    filled = np.asarray(hole.filled(np.full((size, size, 3), 7, np.uint8)))
    inside = np.zeros((height, width), bool)
    inside[box[1] : box[3], box[0] : box[2]] = True
    np.testing.assert_array_equal(filled[~inside], np.asarray(picture)[~inside])
    assert (filled[inside] == 7).all()
    # A pixel of the model's picture is drawn anew just where it covers a pixel of the hole, or of its repeated edge.
    if side > min(width, height):
        return
    edges = np.arange(size + 1) * side / size
    for axis, at, low, high in ((1, top, box[1], box[3]), (0, left, box[0], box[2])):
        first, last = np.floor(edges[:-1] + 1e-9).astype(int) + at, np.ceil(edges[1:] - 1e-9).astype(int) + at
        covers = (np.minimum(last, high) - np.maximum(first, low)) > 0
        np.testing.assert_array_equal(part.any(axis=axis), covers)


def test_the_way_up_the_alpha_and_every_other_pixel_are_kept():
    picture = noise(6, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # seen, it is turned a quarter to the right
    hole = read_hole(png(picture, exif=exif), masked(4, 6, (0, 0, 2, 2)), LIMITS)
    np.testing.assert_array_equal(hole.picture, np.rot90(np.asarray(picture), -1))
    clear = picture.convert("RGBA")
    clear.putalpha(Image.fromarray(np.where(np.arange(24).reshape(4, 6) < 5, 0, 130).astype(np.uint8)))
    hole = read_hole(png(clear), None, LIMITS)
    filled = np.asarray(hole.filled(np.zeros((8, 8, 3), np.uint8)))
    assert hole.edit.sum() == 5 and (filled[hole.edit] == (0, 0, 0, 255)).all()
    np.testing.assert_array_equal(filled[~hole.edit], np.asarray(clear)[~hole.edit])
    for form in ("png", "webp"):
        again = Image.open(io.BytesIO(file_of(hole.filled(np.zeros((8, 8, 3), np.uint8)), form))).convert("RGBA")
        np.testing.assert_array_equal(np.asarray(again)[~hole.edit], np.asarray(clear)[~hole.edit])


@pytest.mark.parametrize(
    ("image", "mask", "told"),
    [
        (noise(4, 4), None, "mask is missing"),
        (noise(4, 4), masked(5, 4, (0, 0, 1, 1)), "mask is 5x4, the image is 4x4"),
        (noise(4, 4), png(noise(4, 4)), "no alpha channel"),
        (noise(4, 4), png(noise(4, 4).convert("RGBA")), "no pixel of alpha 0"),
        (noise(4, 4).convert("L").convert("I;16"), masked(4, 4, (0, 0, 1, 1)), "mode I;16"),
        (noise(4, 4), b"no picture", "mask"),
    ],
)
def test_a_hole_that_cannot_be_is_told(image, mask, told):
    with pytest.raises(UserError, match=told):
        read_hole(png(image), mask, LIMITS)


def test_sound_comes_back_in_every_form():
    wave = Waveform((0.5 * np.sin(np.arange(16_000) * 0.2)).astype(np.float32), 16_000)
    for form, (_, encode) in FORMATS.items():
        content = encode(wave)
        if form in ("pcm", "pcm16"):
            assert len(content) == 2 * PCM_RATE
            continue
        heard = read_sound(content, form, LIMITS)
        assert heard.seconds == pytest.approx(1, abs=0.1) and np.abs(heard.samples).max() == pytest.approx(0.5, abs=0.1)
    short = dataclasses.replace(LIMITS, seconds=1)
    with pytest.raises(UserError, match="over the limit of 1 s"):
        read_sound(FORMATS["wav"][1](Waveform(np.tile(wave.samples, 2), 16_000)), "(file)", short)


def test_what_a_browser_records_is_heard():
    av = pytest.importorskip("av")
    buffer, rate = io.BytesIO(), 48_000
    container = av.open(buffer, "w", format="webm")
    stream = container.add_stream("libopus", rate=rate)
    stream.layout = "stereo"
    samples = (0.5 * np.sin(np.arange(rate) * 0.05)).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(np.stack([samples, samples]), format="fltp", layout="stereo")
    frame.rate = rate
    for packet in (*stream.encode(frame), *stream.encode(None)):
        container.mux(packet)
    container.close()
    heard = read_sound(buffer.getvalue(), "(file)", LIMITS)
    assert heard.rate == rate and heard.seconds == pytest.approx(1, abs=0.05)
    with pytest.raises(UserError, match="not readable WebM"):
        read_sound(buffer.getvalue()[:300], "(file)", LIMITS)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://other.example/a.png", "URLs are not fetched"),
        ("http://files.example/a.png", "URLs are not fetched"),
        ("https://files.example:8443/a.png", "URLs are not fetched"),
        ("https://user@files.example/a.png", "URLs are not fetched"),
        ("file:///etc/passwd", "URLs are not fetched"),
        ("https://[::1", "is no URL"),
        ("https://files.example/a b", "percent-encoded"),
        ("https://files.example/a.png", "private network"),
    ],
)
def test_no_url_leads_to_where_it_should_not(monkeypatch, url, told):
    asked = []

    def look_up(host, *rest, **options):
        asked.append(host)
        return [(0, 0, 0, "", (address, 443)) for address in ("93.184.216.34", "10.0.0.7")]

    monkeypatch.setattr(remote.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(remote.socket, "create_connection", lambda *_: pytest.fail("somebody was asked"))
    with pytest.raises(Failure, match=told):
        Trusted(("files.example",)).fetch(url, "url", 100)
    assert asked == (["files.example"] if told == "private network" else [])
    with pytest.raises(Failure, match="send a data: URL"):
        Trusted().fetch("https://files.example/a.png", "url", 100)


class Answer:
    """A connection that gives one answer, whatever it is asked."""

    def __init__(self, content: bytes):
        self._content = content

    def makefile(self, *_):
        return io.BytesIO(self._content)

    def sendall(self, *_):
        pass

    def close(self):
        pass


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", None),
        (b"HTTP/1.1 302 Found\r\nLocation: https://10.0.0.7/\r\n\r\n", "answered 302"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 200, "over the limit of 100 bytes"),
        (b"no http", "cannot be read"),
    ],
)
def test_of_a_trusted_host_the_file_is_read_and_nothing_followed(monkeypatch, answer, told):
    monkeypatch.setattr(remote, "_public", lambda host, param: "93.184.216.34")
    monkeypatch.setattr(remote._Pinned, "connect", lambda self: setattr(self, "sock", Answer(answer)))
    if told is None:
        assert Trusted(("files.example",)).fetch("https://files.example/a", "url", 100) == b"hello"
        return
    with pytest.raises(Failure, match=told):
        Trusted(("files.example",)).fetch("https://files.example/a", "url", 100)


def test_data_urls():
    assert data_of("data:image/png;base64,aGk=", "url") == b"hi" and data_of("https://x", "url") is None
    for bad in ("data:image/png,hi", "data:image/png;base64,a", "data:;base64,aGk=", "data:image/png;base64,aGk=\n!"):
        with pytest.raises(Failure):
            data_of(bad, "url")


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": []}, "tools"),
        ({"temprature": 1}, "temprature"),
        ({"n": 0}, "n"),
        ({"seed": True}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"stop": "x"}, "stop"),
        ({"modalities": ["video"]}, "modalities[0]"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio.voice"),
        ({"stream_options": {"include": 1}}, "stream_options.include"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "messages[0].content[0]"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x", "detail": 1}}]}
                ]
            },
            "messages[0].content[0].image_url.detail",
        ),
        ({"extra_body": {"seed": -1}}, "seed"),
        ({"user": "a", "extra_body": {"user": "b"}}, "user"),
    ],
)
def test_what_is_not_heeded_is_refused_by_its_name(fields, param):
    with pytest.raises(Failure) as caught:
        checked(ChatRequest, {"model": "nano", "messages": [USER], **fields}, strict=True)
    assert caught.value.status == 400 and caught.value.param == param and param in str(caught.value)


def test_a_list_of_a_form_is_refused_by_its_name():
    with pytest.raises(Failure) as caught:
        checked(TranscriptionRequest, {"model": "nano", "timestamp_granularities[]": "word"}, strict=False)
    assert caught.value.param == "timestamp_granularities[]"


def test_what_is_launched_is_there():
    """Flags, probes, ports and times of the files in `experiments/launch`."""
    folder = Path(launch.__file__).parent
    texts = {name: (folder / name).read_text() for name in ("serve.service", "serve.dockerfile", "serve-nginx.conf")}
    deployment, _ = yaml.safe_load_all((folder / "serve.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    begun = re.search(r"omnidiff serve (.*)", texts["serve.service"])[1]
    known = {holder.name for holder in vars(serve).values() if isinstance(holder, absl_flags.FlagHolder)}
    for line in (begun, *container["args"], *re.findall(r'"(--\w+)=', texts["serve.dockerfile"])):
        assert {word.partition("=")[0].removeprefix("--") for word in line.split()} <= known, line
    paths = document(LIMITS, "nano")["paths"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] in paths
    drain = float(re.search(r"--drain=(\d+)", begun)[1])
    assert float(re.search(r"TimeoutStopSec=(\d+)", texts["serve.service"])[1]) > drain
    assert pod["terminationGracePeriodSeconds"] > drain + 10
    assert f"client_max_body_size {LIMITS.body >> 20}m;" in texts["serve-nginx.conf"]
    assert float(re.search(r"proxy_read_timeout (\d+)s", texts["serve-nginx.conf"])[1]) > LIMITS.patience
    assert serve.KEY in texts["serve.dockerfile"] and container["env"][0]["name"] == serve.KEY


def test_settings_are_heeded_flat_and_nested():
    body = checked(ChatRequest, {"model": "m", "messages": [USER], "steps": 4, "extra_body": {"top_k": 2}}, strict=True)
    assert (body.steps, body.top_k) == (4, 2)
    form = checked(TranscriptionRequest, {"model": "m", "steps": "4", "stream": "true"}, strict=False)
    assert (form.steps, form.stream) == (4, True)


@pytest.mark.parametrize("before", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["first", "later"])
@pytest.mark.parametrize(
    "piece", [b"", b"GET / HTTP/1.1\r\nX: ", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"]
)
def test_a_connection_that_brings_no_request_is_closed(before, piece):
    """However often a byte comes; one whose headers are there waits for as long as what answers it."""

    async def app(scope, receive, send):
        while scope["method"] == "POST" and (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def talk() -> bool:
        config = uvicorn.Config(app, port=0, lifespan="off", http=functools.partial(Connection, head=0.15), ws="none")
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext
        served = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname()[:2])
        if before:
            writer.write(before)
            await reader.readuntil(b"\r\n\r\n")
        writer.write(piece)
        closed = False
        for _ in range(8):
            await asyncio.sleep(0.05)
            closed = closed or reader.at_eof()
            if piece.endswith(b" ") and not closed:
                writer.write(b"a")
        writer.close()
        server.force_exit = server.should_exit = True
        await served
        return closed

    idle = bool(before) and not piece  # what waits for another request has uvicorn's own five seconds
    assert asyncio.run(talk()) == (not piece.startswith(b"POST") and not idle)


def test_lanes_halve():
    # A step's cost is that of its canvases: what fits 64 positions, as most requests of nano do, waits for no 96.
    assert lane_lengths(176, 32) == [64, 96, 192] and lane_lengths(40, 32) == [64]
    assert lane_lengths(3072, 32) == [64, 96, 192, 384, 768, 1536, 3072]


def test_of_a_text_only_the_finished_part_is_said():
    """Letters 0-25, a space 26, and 27 for half of a letter; 30 ends the turn, 31 is the mask."""

    def decode(ids):
        return "".join("abcdefghijklmnopqrstuvwxyz "[i] if i < 27 else "\N{REPLACEMENT CHARACTER}" for i in ids)

    vocabulary = types.SimpleNamespace(
        mask=31, im_end=30, text=types.SimpleNamespace(contains=lambda ids: np.asarray(ids) < 30)
    )
    text = types.SimpleNamespace(decode=decode)
    codecs = types.SimpleNamespace(layout=types.SimpleNamespace(vocabulary=vocabulary, text=text))

    def told(*steps, steady=True):
        prefix = Prefix(codecs, steady)
        return [prefix.grown(np.array(step)) for step in steps] + [prefix.rest("ab c")]

    assert told([31, 1, 31, 31, 31], [0, 1, 26, 31, 31], [0, 1, 26, 2, 30]) == ["", "ab", " c", ""]
    assert told([0, 1, 27, 31]) == ["ab", " c"]
    assert told([0, 1, 26, 2], steady=False) == ["", "ab c"]
