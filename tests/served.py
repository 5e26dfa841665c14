"""A served nano model for tests: in a thread of this process, and what its clients send and read."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import sys
import threading
import time
import urllib.request

import numpy as np
from PIL import Image

from omnidiff_jax.serving.limits import Limits
from omnidiff_jax.serving.server import Server

CIRCLE, SQUARE = "small red circle top left", "large blue square"
LIMITS = Limits(body=2**20, answers=4, queue=24, patience=120, upload=1)
MODEL = "nano"
# A token a step, so that there is something to see and to leave: one lane for all that is answered in text.
STEPS = {"settings": {"sampler.reveal.kind": "schedule"}}


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


def long_stream(url: str):
    """An answer of 150 steps, whose canvases are seen; the response, its first event read."""
    settings = {**STEPS["settings"], "stop": "never"}
    body = {"model": MODEL, "messages": said("hello"), "max_tokens": 150, "stream": True, "settings": settings}
    content = json.dumps(body | {"stream_options": {"include_canvas": True}}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", content, {"Content-Type": "application/json"})
    answer = urllib.request.urlopen(request, timeout=120)
    while b"event: canvas" not in answer.readline():
        pass
    return answer


if __name__ == "__main__":  # a client to be killed
    with long_stream(sys.argv[1]) as stream:
        print("seen", flush=True)
        stream.read()
        print("read", flush=True)
