"""Requests that are nearly right, by the thousand: none may bring a server down or be answered with its fault.

    omnidiff serve_fuzz --requests=100000
    omnidiff serve_fuzz --requests=40000 --first=60000    the rest, where an earlier run ended
    omnidiff serve_fuzz --requests=10000 --whole=1 --leaving=0.5     nothing damaged, half of the clients leave
    omnidiff serve_fuzz --only=4711 --seed=0     one of them again, with what it was told

All of `omnidiff serve` but the model itself is asked (`scripted.py`), in this process and without sockets: bodies of
other values, fields and shapes, bytes changed, forms torn, media damaged, lines that nobody writes (`malformed.py`),
some clients gone before they are answered; then cases that schemathesis makes of `/openapi.json`, where there is one.
It fails if an exception gets out, a status is 500 or above, an answer breaks off or has another shape than the schema
says, requests are left under way, or threads, open files or memory grow.
"""

import asyncio
import collections
import dataclasses
import gc
import json
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from experiments.checks.malformed import MODEL, malformed, sent, whole_requests
from experiments.checks.scripted import Got, Sent, ask, scripted_service
from experiments.common import Command
from omnidiff_jax.answering.load import load
from omnidiff_jax.errors import UserError
from omnidiff_jax.serving.app import application
from omnidiff_jax.serving.limits import Limits
from omnidiff_jax.serving.service import Service

COMMAND = Command("serve_fuzz", __doc__)
REQUESTS = COMMAND.integer("requests", "in all", 100_000, minimum=1)
SCHEMA = COMMAND.number("schema", "share of them that schemathesis makes, where it is installed", 0.05)
LEAVING = COMMAND.number("leaving", "share of the others whose client is gone within a hundredth of a second", 0.02)
WHOLE = COMMAND.number("whole", "share of the others that is in order, and must be answered", 0.02)
SEED = COMMAND.integer("seed", "of all of it", 0)
FIRST = COMMAND.integer("first", "number of the first of them", 0, minimum=0)
ONLY = COMMAND.integer("only", "number of one request to send again, in place of all", minimum=0)
JSON = COMMAND.switch("json", "end with one line of JSON")
KEY = "fuzzed"
LIMITS = Limits(
    body=2**18, pixels=2**16, seconds=2, characters=4096, answers=4, queue=64, lanes=8, patience=600, upload=5
)
_AT_ONCE = 8
_SHOWN = 20
_DRAWN = 25  # of one seed of schemathesis
_LONGEST = 3600  # seconds: a machine may stand still
_GROWTH = 64  # MB, after the first tenth
_CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


def run() -> None:
    service = scripted_service(load(MODEL, rows=4), MODEL, LIMITS, key=KEY)
    try:
        if ONLY.value is not None:
            _again(service, ONLY.value)
            return
        by_schema = round((REQUESTS.value or 1) * (SCHEMA.value or 0)) if _schemathesis() else 0
        numbers = range(FIRST.value or 0, (FIRST.value or 0) + (REQUESTS.value or 1) - by_schema)
        told = fuzz(service, numbers, SEED.value or 0, LEAVING.value or 0, WHOLE.value or 0)
        told |= {"by_schema": check_schema(service, by_schema, SEED.value or 0)}
    finally:
        service.scheduler.close(30)
    print(json.dumps(told) if JSON.value else "\n".join(f"{name}: {value}" for name, value in told.items()))
    grown = told["megabytes"][-1] - told["megabytes"][0]
    if told["wrong"] or told["by_schema"]["wrong"] or told["under_way"] or told["left_open"] or grown > _GROWTH:
        raise UserError(
            "requests went wrong, or something grew; the figures above say which (--only=NUMBER repeats one)"
        )


def fuzz(service: Service, asked: range, seed: int, leaving: float, in_order: float = 0.0) -> dict[str, Any]:
    """Sends damaged requests, by their numbers, to a scripted service, and others, some at once; tells what came."""
    app = application(service)
    statuses: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    megabytes: list[int] = []
    numbers = iter(asked)
    begun = time.perf_counter()

    def tell(number: int) -> None:
        done = number - asked.start
        if done and done % max(len(asked) // 10, 1) == 0:
            megabytes.append(_memory())
        if done and done % max(len(asked) // 100, 1) == 0:
            sums = collections.Counter[str]()
            for name, times in statuses.items():
                sums[name.split()[-1]] += times
            counts = " ".join(f"{status}:{times}" for status, times in sorted(sums.items()))
            after = time.perf_counter() - begun
            print(
                f"{done} of {len(asked)} ({number}), {after:.0f} s, {_memory()} MB, {counts}",
                file=sys.stderr,
                flush=True,
            )

    async def one_client() -> None:
        for number in numbers:
            kind, request = malformed(number, KEY, seed, in_order)
            rng = random.Random(f"{seed}/{number}/leaves")
            leaves = rng.uniform(0, 0.01) if rng.random() < leaving else None
            fault, status = await _judged(app, request, leaves)
            if kind == "whole" and leaves is None and status not in (200, 429):
                fault = fault or f"a request in order to {request.path} got {status}"
            kind = kind if leaves is None else "left"
            statuses[f"{kind} {status}"] += 1
            if fault and len(wrong) < _SHOWN:
                wrong.append(f"{number}: {fault}")
                print(f"wrong: {wrong[-1]}", file=sys.stderr, flush=True)
            tell(number)

    async def all_of_them() -> list[int]:
        for whole in whole_requests():  # compiled, imported, opened
            got = await ask(app, with_key(sent(whole)))
            if got.status != 200:
                raise UserError(f"a request in order to {whole.path} got {got.status}: {got.body[:300]!r}")
        before = [threading.active_count(), _open_files()]
        await asyncio.gather(*(one_client() for _ in range(_AT_ONCE)))
        for _ in range(500):
            if not service.scheduler.open:
                break
            await asyncio.sleep(0.02)
        tasks = len(asyncio.all_tasks()) - 1
        after = [threading.active_count(), _open_files()]
        return [tasks, *(max(now - then, 0) for now, then in zip(after, before, strict=True))]

    tasks, threads, files = asyncio.run(all_of_them())
    gc.collect()
    seconds = time.perf_counter() - begun
    kinds = collections.Counter[str]()
    for name, times in statuses.items():
        kinds[name.split()[0]] += times
    return {
        "requests": len(asked),
        "seconds": round(seconds, 1),
        "kinds": dict(sorted(kinds.items())),
        "statuses": dict(sorted(statuses.items())),
        "wrong": wrong,
        "under_way": service.scheduler.open,
        # Threads of the loop's pool come with the load, up to as many as it may have.
        "left_open": {
            name: n for name, n in (("tasks", tasks), ("threads", max(threads - 32, 0)), ("files", files)) if n
        },
        "megabytes": [*megabytes, _memory()],
    }


async def _judged(app: ASGIApp, request: Sent, leaves: float | None) -> tuple[str, int]:
    """What is wrong with how a request was answered, "" where nothing is; and its status."""
    try:
        got = await asyncio.wait_for(ask(app, request, leaves), _LONGEST)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}", 0
    return _fault(request, got, gone=leaves is not None or request.cut), got.status


def _fault(request: Sent, got: Got, *, gone: bool) -> str:
    where = f"{request.method[:20]} {request.path[:80]!r} got {got.status}"
    if not got.whole:
        return "" if gone else f"{where}, broken off"
    if got.status >= 500:
        return f"{where}: {got.body[:300]!r}"
    kind = got.headers.get("content-type", "")
    if kind == "text/event-stream; charset=utf-8" or kind == "text/event-stream":
        return f"{where}: {got.body[-300:]!r}" if b"server_error" in got.body else ""
    if got.status >= 400 and request.method != "HEAD":
        try:
            error = json.loads(got.body)["error"]
        except (ValueError, KeyError, TypeError):
            return f"{where}: {got.body[:300]!r} is no error of OpenAI's"
        if set(error) != {"message", "type", "param", "code"} or not error["message"]:
            return f"{where}: {error}"
    return ""


def check_schema(service: Service, count: int, seed: int) -> dict[str, Any]:
    """Cases of schemathesis over every operation, in order and not; its checks of what came back."""
    if not count:
        return {"requests": 0, "wrong": []}
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from schemathesis.checks import CHECKS, load_all_checks

    load_all_checks()
    app = application(service)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    chosen = [CHECKS.get_one(name) for name in _CHECKS]
    operations = [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr]
    posted = [operation for operation in operations if operation.method.upper() == "POST"]
    sent, unmade, wrong = collections.Counter[str](), collections.Counter[str](), list[str]()
    options = settings(
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=tuple(HealthCheck),
        max_examples=1,
    )
    for operation in operations:
        share = round(count * 0.96 / len(posted)) if operation in posted else max(round(count * 0.04 / 7), 1)
        # Of what takes no body there is no wrong one.
        modes = tuple(schemathesis.GenerationMode) if operation in posted else (schemathesis.GenerationMode.POSITIVE,)
        for mode in modes:

            def check(case: Any) -> None:
                sent[f"{case.method.upper()} {case.path}"] += 1
                try:
                    case.call_and_validate(checks=chosen, headers={"Authorization": f"Bearer {KEY}"})
                except Exception as error:
                    if len(wrong) < _SHOWN:
                        wrong.append(f"{case.method.upper()} {case.path}: {error}"[:1500])

            made = operation.as_strategy(generation_mode=mode)
            wanted = max(share // len(modes), 1)
            for first in range(0, wanted, _DRAWN):
                drawn = settings(options, max_examples=min(_DRAWN, wanted - first))
                try:
                    seeded(seed + first)(drawn(given(case=made)(check)))()
                except ValueError as error:  # schemathesis stumbles over some of its own forms; `check` raises nothing
                    unmade[f"{operation.label}: {str(error).splitlines()[0]}"] += 1
    for name in (f"{operation.method.upper()} {operation.path}" for operation in operations):
        if not sent[name]:
            wrong.append(f"{name}: schemathesis made no case of it")
    told = {"requests": sum(sent.values()), "sent": dict(sent), "unmade": dict(unmade), "wrong": wrong}
    return told | {"under_way": service.scheduler.open}


def _again(service: Service, number: int) -> None:
    kind, request = malformed(number, KEY, SEED.value or 0, WHOLE.value or 0)
    got = asyncio.run(ask(application(service), request))
    print(f"{kind}: {request.method} {request.path!r} {request.headers}\n{b''.join(request.pieces)[:4000]!r}")
    print(f"{got.status} {got.headers}\n{got.body[:2000]!r}")


def with_key(request: Sent) -> Sent:
    """The request with the key of the server that is fuzzed."""
    return dataclasses.replace(request, headers=((b"authorization", b"Bearer " + KEY.encode()), *request.headers))


def _schemathesis() -> bool:
    try:
        import schemathesis  # noqa: F401
    except ModuleNotFoundError:
        print("serve_fuzz: schemathesis is not installed; its share is made here", file=sys.stderr)
        return False
    return True


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0


def _memory() -> int:
    """Resident MB of this process; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(status.partition("VmRSS:")[2].split()[0]) // 1000


if __name__ == "__main__":
    COMMAND.main(run)
