"""The whole server but its model: clients that leave, damaged requests, canvases shown in time, a thread that died."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import threading
import time
import types

import pytest

pytest.importorskip("starlette")
pytest.importorskip("av")

import omnidiff_jax
from experiments.checks.malformed import MODEL
from experiments.checks.scripted import STEPS, ScriptedEngine, Sent, ask, scripted_service
from experiments.checks.serve_fuzz import KEY, LIMITS, check_schema, fuzz, with_key
from omnidiff_jax.serving.app import application
from omnidiff_jax.serving.scheduler import Scheduler
from omnidiff_jax.serving.server import Server

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def model():
    return omnidiff_jax.load(MODEL, rows=2)


@pytest.fixture(scope="module")
def service(model):
    made = scripted_service(model, MODEL, LIMITS, key=KEY, pause=0.001)
    yield made
    assert made.scheduler.close(10)


def posted(**fields) -> Sent:
    headers = ((b"content-type", b"application/json"),)
    return with_key(Sent("POST", CHAT, headers, (json.dumps({"model": MODEL, **fields}).encode(),)))


def gauges(text: bytes) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in text.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


async def settled(app, service) -> dict[str, float]:
    """The metrics once nothing is under way."""
    for _ in range(500):
        if not service.scheduler.open:
            break
        await asyncio.sleep(0.01)
    return gauges((await ask(app, with_key(Sent("GET", "/metrics")))).body)


def test_damaged_requests_are_told_so_and_hurt_nobody(service):
    told = fuzz(service, range(150), seed=0, leaving=0.05)
    assert not told["wrong"] and not told["under_way"] and not told["left_open"], told
    refused = sum(times for name, times in told["statuses"].items() if name.split()[1].startswith("4"))
    assert refused > 75 and len(told["kinds"]) == 6, told["kinds"]


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_clients_that_leave_at_any_time_leave_nothing_behind(service, count):
    """Every slot of every lane is free again, and whoever stays is answered as alone."""
    app, rng = application(service), random.Random(0)
    requests = [
        posted(messages=[{"role": "user", "content": "what colour is snow"}], seed=1, max_tokens=n, stream=streamed)
        for n in (4, 150)
        for streamed in (False, True)
    ]

    async def all_of_them():
        alone = [(await ask(app, request)).body for request in requests]
        before = await settled(app, service)
        turns = [(rng.randrange(4), rng.uniform(0, 0.02) if rng.random() < 0.7 else None) for _ in range(count)]
        places = asyncio.Semaphore(24)

        async def one(number, leaves):
            async with places:
                return await ask(app, requests[number], leaves)

        found = await asyncio.gather(*(one(*turn) for turn in turns))
        return alone, before, list(zip(turns, found, strict=True)), await settled(app, service)

    alone, before, found, after = asyncio.run(all_of_them())

    def said(body: bytes) -> list[str]:
        """What does not change from one answer to the next."""
        return [line.partition('"choices"')[2] for line in body.decode().split("\n\n")]

    stayed = [(number, got) for (number, leaves), got in found if leaves is None]
    assert len(stayed) > count / 5
    for number, got in stayed:
        assert got.status == 200 and said(got.body) == said(alone[number])
    name = "omnidiff_cancellations_total"
    assert sum(v - before.get(k, 0) for k, v in after.items() if k.startswith(name)) > count / 8
    assert not any(value for key, value in after.items() if key.startswith("omnidiff_requests{"))
    for lane in service.scheduler._lanes.values():
        assert not lane.tickets and not lane.engine.at_work


CANVASES = {"modalities": ["image"], "stream_options": {"include_canvas": True}}


@pytest.mark.parametrize(
    ("path", "fields", "event"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "a red circle"}], **CANVASES}, b"event: canvas"),
        ("/v1/images/generations", {"prompt": "a red circle", "partial_images": 1}, b"image_generation.partial_image"),
    ],
)
def test_a_picture_is_seen_within_two_steps_of_its_start(service, monkeypatch, path, fields, event):
    """However busy its lane is with others, whom nobody watches: its third step waits until the client has seen it."""
    app, seen, step = application(service), threading.Event(), ScriptedEngine._step

    def waiting(engine, slot):
        if slot.work.seed == 2 and slot.steps == 2:
            assert seen.wait(20)
        step(engine, slot)

    async def watching(scope, receive, send):
        async def told(message):
            if event in message.get("body", b""):
                seen.set()
            await send(message)

        await app(scope, receive, told)

    async def all_of_them():
        messages = [{"role": "user", "content": "a red circle"}]
        crowd = posted(messages=messages, modalities=["image"], seed=1, n=2)
        others = [asyncio.create_task(ask(app, crowd)) for _ in range(6)]
        await asyncio.sleep(0.01)
        got = await ask(watching, dataclasses.replace(posted(**fields, seed=2, stream=True), path=path))
        return got, await asyncio.gather(*others)

    monkeypatch.setattr(ScriptedEngine, "_step", waiting)
    got, others = asyncio.run(all_of_them())
    assert seen.is_set() and got.status == 200 and got.whole and b"error" not in got.body
    assert [other.status for other in others] == [200] * 6
    if path == CHAT:
        events = [part for part in got.body.decode().split("\n\n") if part.startswith("event: canvas")]
        steps = [json.loads(part.partition("data: ")[2])["canvas"]["step"] for part in events]
        assert steps == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    ("fields", "headers", "status", "told"),
    [
        ({"modalities": ["image"], "max_tokens": 9}, (), 400, "max_tokens"),
        ({"modalities": ["image"], "max_completion_tokens": 9}, (), 400, "max_completion_tokens"),
        ({}, ((b"content-encoding", b"gzip"),), 415, "gzip"),
    ],
)
def test_what_is_not_heeded_is_refused_by_its_name(service, fields, headers, status, told):
    request = posted(messages=[{"role": "user", "content": "red"}], **fields)
    got = asyncio.run(ask(application(service), dataclasses.replace(request, headers=(*request.headers, *headers))))
    assert got.status == status and told in json.loads(got.body)["error"]["message"]


@pytest.mark.parametrize("part", [b"bytes=5-1", b"lines=1-2", b"bytes=0-4"])
def test_of_the_page_whole_files_are_given(service, part):
    got = asyncio.run(ask(application(service), Sent("GET", "/app.js", ((b"range", part),))))
    assert got.status == 200 and b"import" in got.body


@pytest.mark.slow
def test_what_the_schema_allows_is_answered_as_it_says(service):
    pytest.importorskip("schemathesis")
    told = check_schema(service, 40, seed=0)
    assert told["requests"] >= 30 and not told["wrong"], told


def test_it_is_not_live_without_the_thread_of_its_steps(model):
    service = scripted_service(model, MODEL, LIMITS)
    app = application(service)
    assert asyncio.run(ask(app, Sent("GET", "/health/live"))).status == 200
    service.scheduler.close(1)
    assert asyncio.run(ask(app, Sent("GET", "/health/live"))).status == 503


def test_it_is_ready_once_it_is_warm(monkeypatch):
    """And live before."""
    warmed, go_on = [], threading.Event()

    def warm(self, query):
        assert go_on.wait(20)
        warmed.append(query["task"])

    monkeypatch.setattr(Scheduler, "warm", warm)
    stub = types.SimpleNamespace(generator=None, picture_size=8, query=lambda asked: asked)
    server = Server(stub, MODEL, limits=LIMITS, warm=("t2i", "asr"), drain=1)
    thread = threading.Thread(target=server.run)
    thread.start()

    def status(name: str) -> int:
        return asyncio.run(ask(application(server.service), Sent("GET", f"/health/{name}"))).status

    try:
        assert (status("live"), status("ready")) == (200, 503) and not warmed
        go_on.set()
        for _ in range(1000):
            if server.service.ready:
                break
            time.sleep(0.01)
        assert (status("live"), status("ready")) == (200, 200) and warmed == ["t2i", "asr"]
    finally:
        go_on.set()
        server.stop()
        thread.join()


def test_who_waits_too_long_is_told_and_leaves_no_slot(model):
    service = scripted_service(model, MODEL, dataclasses.replace(LIMITS, patience=1), key=KEY, pause=0.5)
    app = application(service)
    asked = {"messages": [{"role": "user", "content": "what colour is snow"}]}
    got = asyncio.run(ask(app, posted(**asked)))
    assert got.status == 504 and "no answer within 1 s" in json.loads(got.body)["error"]["message"]
    after = asyncio.run(settled(app, service))
    assert not any(value for key, value in after.items() if key.startswith("omnidiff_requests{"))
    assert service.scheduler.close(10)
