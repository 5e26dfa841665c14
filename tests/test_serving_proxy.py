"""`experiments/launch/serve-nginx.conf` in a real nginx, over TLS with a certificate of its own, before a server."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import time
import types
from pathlib import Path

import pytest

import omnidiff_jax
from experiments import launch

for needed in ("starlette", "uvicorn"):
    pytest.importorskip(needed)

from served import MODEL, STEPS, said, serving, settle  # noqa: E402

NGINX, OPENSSL = shutil.which("nginx"), shutil.which("openssl")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not NGINX or not OPENSSL, reason="no nginx or no openssl on PATH"),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def server():
    with serving(omnidiff_jax.load(MODEL, rows=2)) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(server, tmp_path_factory):
    """nginx with the file as it stands, but for its name, its ports and where the certificate and the server are."""
    folder, plain, secret = tmp_path_factory.mktemp("nginx"), free_port(), free_port()
    certificate, key = folder / "fullchain.pem", folder / "privkey.pem"
    made = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run([OPENSSL, *made.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    text = (Path(launch.__file__).parent / "serve-nginx.conf").read_text()
    for there, here in {
        "listen 80;": f"listen 127.0.0.1:{plain};",
        "listen 443 ": f"listen 127.0.0.1:{secret} ",
        "/etc/letsencrypt/live/HOST": str(folder),
        "server_name HOST": "server_name localhost",
        "http://127.0.0.1:8000": server.url,
    }.items():
        assert there in text
        text = text.replace(there, here)
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = f"pid {folder}/pid; events {{}} http {{ access_log off; {temporary}\n{text}\n}}"
    (folder / "nginx.conf").write_text(whole)
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    with subprocess.Popen([*command, "-g", "daemon off;"]) as process:
        try:
            trusting = ssl.create_default_context(cafile=str(certificate))
            for _ in range(200):
                try:
                    socket.create_connection(("127.0.0.1", secret)).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield types.SimpleNamespace(
                plain=lambda: http.client.HTTPConnection("localhost", plain, timeout=60),
                secret=lambda: http.client.HTTPSConnection("localhost", secret, timeout=120, context=trusting),
            )
        finally:
            process.terminate()


def asked(connection, method: str, path: str, body: bytes | None = None) -> http.client.HTTPResponse:
    connection.request(method, path, body, {"Content-Type": "application/json"})
    return connection.getresponse()


def streamed(connection) -> http.client.HTTPResponse:
    settings = {**STEPS["settings"], "stop": "never"}
    body = {"model": MODEL, "messages": said("hello"), "max_tokens": 150, "stream": True, "settings": settings}
    body["stream_options"] = {"include_canvas": True}
    return asked(connection, "POST", "/v1/chat/completions", json.dumps(body).encode())


def canvas(answer: http.client.HTTPResponse) -> int:
    """The step of the next canvas."""
    for line in iter(answer.readline, b""):
        if found := re.match(rb'data: .*"canvas".*"step": ?(\d+)', line):
            return int(found[1])
    raise AssertionError("the stream has ended")


def test_a_stream_is_not_held_back(server, proxy):
    answer = streamed(proxy.secret())
    assert answer.status == 200 and answer.getheader("content-type").startswith("text/event-stream")
    assert answer.getheader("strict-transport-security")
    for step in range(1, 11):
        assert canvas(answer) == step
    assert server.service.scheduler.open == 1  # it goes on
    assert answer.read().endswith(b"data: [DONE]\n\n")


def test_who_leaves_the_proxy_frees_the_slot(server, proxy):
    before = settle(server)
    connection = proxy.secret()
    canvas(streamed(connection))
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    after = settle(server)
    name = "omnidiff_cancellations_total"
    assert sum(value - before.get(key, 0) for key, value in after.items() if key.startswith(name)) == 1


def test_what_it_lets_in(proxy):
    moved = asked(proxy.plain(), "GET", "/v1/models")
    assert moved.status == 308 and moved.getheader("location") == "https://localhost/v1/models"
    assert asked(proxy.secret(), "GET", "/v1/models").status == 200
    assert asked(proxy.secret(), "GET", "/metrics").status == 403
    large = proxy.secret()
    large.putrequest("POST", "/v1/chat/completions")
    large.putheader("Content-Length", str(33 << 20))
    large.endheaders()
    assert large.getresponse().status == 413
    connection, statuses = proxy.secret(), [200]
    while statuses[-1] == 200 and len(statuses) < 1000:
        answer = asked(connection, "GET", "/health/live")
        answer.read()
        statuses.append(answer.status)
    assert statuses[-1] == 429 and len(statuses) > 20
