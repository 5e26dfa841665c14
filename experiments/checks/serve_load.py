"""Many clients at once against a server of its own: every answer is the one given alone, nothing is lost.

    omnidiff serve_load --seconds=300                      64 clients of mixed tasks
    omnidiff serve_load --requests=10000 --leaving=0.5     half of them leave before they are answered
    omnidiff serve_load --workdir=DIR --rows=16 --quantize=int8
    omnidiff serve_load --seconds=20 --each=2 --table      a row of each table in docs/serving.md, in three minutes

It asks each of its requests alone first, twice, with OpenAI's client; then the clients ask them all in turn. In the end
it prints requests a second, beside those of the same requests through the model without a server, latencies, refusals
(429, each asked again), the server's memory, and what its gauges say; it fails if an answer differs, a slot is lost, or
memory grows.
"""

import asyncio
import base64
import collections
import json
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import Command
from experiments.named_model import model_flags, model_named, quantize_flag
from omnidiff_jax.answering.load import load
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.audio import wav_bytes
from omnidiff_jax.media.image import png_bytes
from omnidiff_jax.records import Waveform

COMMAND = Command("serve_load", __doc__)
WORKDIR, MODEL = model_flags(COMMAND)
QUANTIZE = quantize_flag(COMMAND)
CLIENTS = COMMAND.integer("clients", "that ask at the same time", 64, minimum=1)
SECONDS = COMMAND.number("seconds", "that they go on", 300.0)
REQUESTS = COMMAND.integer("requests", "after which they end, in place of seconds", minimum=1)
LEAVING = COMMAND.number("leaving", "share of requests whose client leaves within half a second", 0.0)
ROWS = COMMAND.integer("rows", "of the server", 8, minimum=1)
SEED = COMMAND.integer("seed", "of who asks what, and who leaves", 0)
EACH = COMMAND.integer("each", "different requests of every task", 6, minimum=1)
JSON = COMMAND.switch("json", "end with one line of JSON")
TABLE = COMMAND.switch("table", "end with a row of each table in docs/serving.md")
_NAME = "loaded"
_KINDS = ("t2i", "vqa", "asr", "tts", "inpainting")
_TIMES = 4  # that each is asked without a server, at least
_GROWTH = 64, 0.1  # MB, and share of what there was, the larger

Ask = Callable[[Any], Awaitable[Any]]


def run() -> None:
    what = model_named(WORKDIR.value, MODEL.value)
    asked = [(kind, request) for kind in _KINDS for request in _requests(kind)]
    command = [sys.executable, "-m", "omnidiff_jax.cli", "serve", f"--model={what}", f"--rows={ROWS.value}"]
    command += [f"--quantize={QUANTIZE.value}"] if QUANTIZE.value else []
    options = ["--port=0", f"--name={_NAME}", f"--warm={','.join(_KINDS)}"]
    begun = time.perf_counter()
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        try:
            told = asyncio.run(_load(_url(process), asked, process.pid, begun))
            process.send_signal(signal.SIGTERM)
            told["status"] = process.wait(600)
        finally:
            process.kill()
    print(f"serve_load: {json.dumps(told)}", file=sys.stderr, flush=True)  # the rest takes a while
    told["without_server_per_second"] = round(_by_the_model(what, asked), 2)
    told["share_of_it"] = round(told["per_second"] / told["without_server_per_second"], 3)
    print(json.dumps(told) if JSON.value else "\n".join(f"{name}: {value}" for name, value in told.items()))
    if TABLE.value:
        print(_tables(f"{what} {QUANTIZE.value or ''}".strip(), told))
    before, after, _ = told["megabytes_before_after_peak"]
    grown = after - before > max(_GROWTH[0], _GROWTH[1] * before)
    if told["differing"] or told["under_way"] or told["status"] or set(told["errors"]) - {"429"} or grown:
        raise UserError("answers differed, requests were lost or failed, or memory grew; the figures above say which")


def _tables(name: str, told: dict[str, Any]) -> str:
    """One row of each table, under its head: memory and latency of who asks alone, and of many at once."""
    first, _, peak = told["megabytes_before_after_peak"]
    alone = {f"{kind}, s": told["alone_p50_seconds"][kind] for kind in _KINDS}
    many = {f"{kind} p50, p99, s": "{}, {}".format(*told["p50_p99_seconds"].get(kind, "--")) for kind in _KINDS}
    rates = {"a second": told["per_second"], "without a server": told["without_server_per_second"]}
    rows = {
        "alone": {"model": name, "ready, s": told["ready_after_seconds"], "MB": first, **alone},
        "many": {"model": name, "clients": told["clients"], **rates, "429": told["errors"].get("429", 0), **many}
        | {"peak MB": peak},
    }
    lines = [(list(row), ["---"] * len(row), list(row.values())) for row in rows.values()]
    return "\n\n".join("\n".join(f"| {' | '.join(map(str, cells))} |" for cells in table) for table in lines)


def _url(process: subprocess.Popen[str]) -> str:
    """Where the server listens, as it says on stderr."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "http://127" in line:
            return line.split()[-1]
    raise UserError(f"the server did not start: {' '.join(lines)}")


async def _load(url: str, asked: list[tuple[str, dict[str, Any]]], pid: int, started: float) -> dict[str, Any]:
    """Asks a server that was `started`, first one by one, then with all clients."""
    from openai import APIStatusError, AsyncOpenAI, UnprocessableEntityError

    while not _is_ready(url):
        await asyncio.sleep(0.2)
    ready = time.perf_counter() - started
    rng = random.Random(SEED.value)
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600) as client:

        def told(ask: Ask) -> Ask:
            """A model that fails at a request (422) fails alike each time."""

            async def answered(client: Any) -> Any:
                try:
                    return await ask(client)
                except UnprocessableEntityError as error:
                    return str(error)

            return answered

        asks = [told(_ask(kind, request)) for kind, request in asked]
        alone = [await ask(client) for ask in asks]
        lonely: dict[str, list[float]] = collections.defaultdict(list)
        for (kind, _), ask in zip(asked, asks, strict=True):
            begun = time.perf_counter()
            await ask(client)
            lonely[kind].append(time.perf_counter() - begun)
        before, begun = _memory(pid), time.perf_counter()
        latencies: dict[str, list[float]] = collections.defaultdict(list)
        errors: collections.Counter[str] = collections.Counter()
        counts: collections.Counter[str] = collections.Counter()

        def more() -> bool:
            if REQUESTS.value:
                return counts["asked"] < REQUESTS.value
            return time.perf_counter() - begun < (SECONDS.value or 0)

        async def one_client() -> None:
            while more():
                counts["asked"] += 1
                number, leaves = rng.randrange(len(asks)), rng.random() < (LEAVING.value or 0)
                started = time.perf_counter()
                try:
                    answer = await asyncio.wait_for(asks[number](client), rng.uniform(0, 0.5) if leaves else None)
                except TimeoutError:
                    counts["left"] += 1
                except APIStatusError as error:
                    errors[str(error.status_code)] += 1
                    await asyncio.sleep(float(error.response.headers.get("retry-after", 0)))
                except Exception as error:
                    errors[type(error).__name__] += 1
                else:
                    counts["answered"] += 1
                    counts["differing"] += answer != alone[number]
                    latencies[asked[number][0]].append(time.perf_counter() - started)

        await asyncio.gather(*(one_client() for _ in range(CLIENTS.value or 1)))
        seconds = time.perf_counter() - begun
    await asyncio.sleep(2)
    gauges = _gauges(url)
    return {
        "ready_after_seconds": round(ready, 1),
        "alone_p50_seconds": {kind: round(float(np.median(x)), 3) for kind, x in lonely.items()},
        "clients": CLIENTS.value,
        "seconds": round(seconds, 1),
        **{name: counts[name] for name in ("asked", "answered", "left", "differing")},
        "errors": dict(errors),
        "per_second": round(counts["answered"] / seconds, 2),
        "p50_p99_seconds": {kind: np.round(np.percentile(x, (50, 99)), 2).tolist() for kind, x in latencies.items()},
        "occupancy": round(gauges["omnidiff_engine_busy_slots_total"] / gauges["omnidiff_engine_slots_total"], 3),
        "cancellations": _sum(gauges, "omnidiff_cancellations_total"),
        "under_way": _sum(gauges, "omnidiff_requests{"),
        "megabytes_before_after_peak": [before, _memory(pid), _memory(pid, "VmHWM:")],
    }


def _requests(kind: str) -> list[dict[str, Any]]:
    """Requests of a task as `Model.answer_many` takes them, always the same."""
    rng = np.random.default_rng(_KINDS.index(kind))
    made = []
    for number in range(EACH.value or 1):
        size, colour = ("small", "large")[number % 2], ("red", "blue", "green")[number % 3]
        request: dict[str, Any] = {"task": kind, "seed": number, "text": f"{size} {colour} circle top left"}
        if kind == "vqa":
            request["text"] = "what colour is the circle"
        if kind in ("vqa", "inpainting"):
            request["image"] = np.kron(rng.integers(0, 256, (4, 4, 3), np.uint8), np.ones((16, 16, 1), np.uint8))
        if kind == "asr":
            del request["text"]
            request["audio"] = Waveform((0.1 * rng.standard_normal(16_000)).astype(np.float32), 16_000)
        if kind == "inpainting":
            request["hole"] = (0, 0, 32, 32)
        made.append(request)
    return made


def _ask(kind: str, request: dict[str, Any]) -> Ask:
    """The same request to a server; gives what can be compared."""
    seed = {"seed": request["seed"]}

    async def draw(client: Any) -> Any:
        drawn = await client.images.generate(model=_NAME, prompt=request["text"], extra_body=seed)
        return drawn.data[0].b64_json

    async def edit(client: Any) -> Any:
        left, top, right, bottom = request["hole"]
        alpha = np.full(request["image"].shape[:2], 255, np.uint8)
        alpha[top:bottom, left:right] = 0
        image = ("a.png", _layered(request["image"], alpha))
        drawn = await client.images.edit(model=_NAME, image=image, prompt=request["text"], extra_body=seed)
        return drawn.data[0].b64_json

    async def look(client: Any) -> Any:
        url = "data:image/png;base64," + base64.b64encode(png_bytes(request["image"])).decode()
        content = [{"type": "text", "text": request["text"]}, {"type": "image_url", "image_url": {"url": url}}]
        messages = [{"role": "user", "content": content}]
        answer = await client.chat.completions.create(model=_NAME, messages=messages, **seed)
        return answer.choices[0].message.content

    async def hear(client: Any) -> Any:
        file = ("a.wav", wav_bytes(request["audio"]))
        return (await client.audio.transcriptions.create(model=_NAME, file=file, extra_body=seed)).text

    async def speak(client: Any) -> Any:
        spoken = await client.audio.speech.create(
            model=_NAME, voice="default", input=request["text"], response_format="wav", extra_body=seed
        )
        return spoken.content

    return {"t2i": draw, "inpainting": edit, "vqa": look, "asr": hear, "tts": speak}[kind]


def _layered(picture: np.ndarray, alpha: np.ndarray) -> bytes:
    from omnidiff_jax.serving.pictures import file_of, with_alpha

    return file_of(with_alpha(picture, alpha), "png")


def _by_the_model(what: str, asked: list[tuple[str, dict[str, Any]]]) -> float:
    """Requests a second without a server, their programs compiled."""
    model = load(what, rows=ROWS.value or 1, quantize=QUANTIZE.value or "")
    requests = [request for _, request in asked]
    times = max((ROWS.value or 1) // (EACH.value or 1) + 1, _TIMES)  # more than there are slots: they are streamed
    for _ in range(2):  # the second is compiled
        begun = time.perf_counter()
        model.answer_many(requests * times)
        seconds = time.perf_counter() - begun
        rate = len(requests) * times / seconds
    return rate


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health/ready") as answer:
            return answer.status == 200
    except OSError:
        return False


def _gauges(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def _sum(gauges: dict[str, float], name: str) -> float:
    return sum(value for known, value in gauges.items() if known.startswith(name))


def _memory(pid: int, row: str = "VmRSS:") -> int:
    """Resident MB of a process, or the most there were; 0 where the system does not say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int(status.partition(row)[2].split()[0]) // 1000


if __name__ == "__main__":
    COMMAND.main(run)
