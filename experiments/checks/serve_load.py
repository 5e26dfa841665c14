"""Many clients at once against a server of its own: every answer is the one given alone, nothing is lost.

    omnidiff serve_load --seconds=300                      64 clients of mixed tasks
    omnidiff serve_load --requests=10000 --leaving=0.5     half of them leave before they are answered
    omnidiff serve_load --workdir=DIR --rows=16 --quantize=int8
    omnidiff serve_load --seconds=60 --each=2 --table      a row of each table in docs/serving.md, in five minutes

It asks each of its requests alone first, twice, with OpenAI's client; then the clients ask them all. They go on for
some turns, and after each the same requests go through the model without a server, from files to files, for as long:
whatever else the machine does, both have their part of it. In the end it prints the requests a second of both, the
processor's seconds that a request costs the server, its clients and the model alone, latencies, refusals (429, each
asked again), the server's memory, and what its gauges say; it fails if an answer differs, a slot is lost, or memory
grows.
"""

import asyncio
import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from experiments.checks.mixed_requests import KINDS, Ask, answered_by, asked_of, requests_of
from experiments.common import Command
from experiments.named_model import model_flags, model_named, quantize_flag
from omnidiff_jax.answering.load import load
from omnidiff_jax.answering.model import Model
from omnidiff_jax.errors import UserError

COMMAND = Command("serve_load", __doc__)
WORKDIR, MODEL = model_flags(COMMAND)
QUANTIZE = quantize_flag(COMMAND)
CLIENTS = COMMAND.integer("clients", "that ask at the same time", 64, minimum=1)
SECONDS = COMMAND.number("seconds", "that they go on, all turns together", 300.0)
REQUESTS = COMMAND.integer("requests", "after which they end, in place of seconds", minimum=1)
LEAVING = COMMAND.number("leaving", "share of requests whose client leaves within half a second", 0.0)
TURNS = COMMAND.integer("turns", "of the clients, each followed by the model without a server", 5, minimum=1)
ROWS = COMMAND.integer("rows", "of the server", 8, minimum=1)
SEED = COMMAND.integer("seed", "of who asks what, and who leaves", 0)
EACH = COMMAND.integer("each", "different requests of every task", 6, minimum=1)
JSON = COMMAND.switch("json", "end with one line of JSON")
TABLE = COMMAND.switch("table", "end with a row of each table in docs/serving.md")
_NAME = "loaded"
_TIMES = 4  # that each is asked without a server, at least
# Of a turn, until as many requests are under way in every lane as will be.
_BEGINNING = 0.25
_GROWTH = 64, 0.1  # MB, and share of what there was, the larger


def run() -> None:
    what = model_named(WORKDIR.value, MODEL.value)
    requests = [request for kind in KINDS for request in requests_of(kind, EACH.value or 1)]
    model = load(what, rows=ROWS.value or 1, quantize=QUANTIZE.value or "")
    command = [sys.executable, "-m", "omnidiff_jax.cli", "serve", f"--model={what}", f"--rows={ROWS.value}"]
    command += [f"--quantize={QUANTIZE.value}"] if QUANTIZE.value else []
    options = ["--port=0", f"--name={_NAME}", f"--warm={','.join(KINDS)}"]
    begun = time.perf_counter()
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        try:
            told = asyncio.run(_load(_url(process), requests, process.pid, begun, model))
            process.send_signal(signal.SIGTERM)
            told["status"] = process.wait(600)
        finally:
            process.kill()
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
    alone = {f"{kind}, s": told["alone_p50_seconds"][kind] for kind in KINDS}
    many = {f"{kind} p50, p99, s": "{}, {}".format(*told["p50_p99_seconds"].get(kind, "--")) for kind in KINDS}
    rates = {"a second": told["per_second"], "without a server": told["without_server_per_second"]}
    rates["share of it"] = "{} ({} to {})".format(*told["share_of_it_median_least_most"])
    rates["processor, s: server, without"] = "{server}, {without_server}".format(**told["processor_seconds_a_request"])
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


async def _load(url: str, requests: list[dict[str, Any]], pid: int, started: float, model: Model) -> dict[str, Any]:
    """Asks a server that was `started`, first one by one, then with all clients and without it in turns."""
    from openai import AsyncOpenAI

    while not _is_ready(url):
        await asyncio.sleep(0.2)
    ready = time.perf_counter() - started
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600) as client:
        asks = [_told(asked_of(_NAME, request)) for request in requests]
        alone = [await ask(client) for ask in asks]
        lonely: dict[str, list[float]] = collections.defaultdict(list)
        for request, ask in zip(requests, asks, strict=True):
            begun = time.perf_counter()
            await ask(client)
            lonely[request["task"]].append(time.perf_counter() - begun)
        by_model = _ByModel(model, requests)
        clients = _Clients(client, [request["task"] for request in requests], asks, alone, pid)
        before, first = _memory(pid), _gauges(url)
        for turn in range(TURNS.value or 1):
            by_model.turn(await clients.turn(turn))
            rates = f"{clients.rates[-1]:.2f} a second served, {by_model.rates[-1]:.2f} by the model alone"
            print(f"serve_load: turn {turn + 1}: {rates}", file=sys.stderr, flush=True)
    await asyncio.sleep(2)
    gauges, counts, turns = _gauges(url), clients.counts, (clients.rates, by_model.rates)
    shares = np.divide(*turns)
    slots = {name: f"omnidiff_engine_{name}_total" for name in ("busy_slots", "slots")}
    grown = {name: gauges[key] - first[key] for name, key in slots.items()}
    return {
        "ready_after_seconds": round(ready, 1),
        "alone_p50_seconds": {kind: round(float(np.median(x)), 3) for kind, x in lonely.items()},
        "clients": CLIENTS.value,
        "seconds": round(clients.seconds, 1),
        **{name: counts[name] for name in ("asked", "answered", "left", "differing")},
        "errors": dict(clients.errors),
        "per_second": round(float(np.median(clients.rates)), 2),
        "without_server_per_second": round(float(np.median(by_model.rates)), 2),
        "turns_per_second": [np.round(x, 2).tolist() for x in turns],
        "share_of_it_median_least_most": np.round([np.median(shares), shares.min(), shares.max()], 2).tolist(),
        "processor_seconds_a_request": {
            "server": round(clients.server / max(counts["answered"], 1), 4),
            "clients": round(clients.own / max(counts["answered"], 1), 4),
            "without_server": round(by_model.processor / by_model.answered, 4),
        },
        "p50_p99_seconds": {
            kind: np.round(np.percentile(x, (50, 99)), 2).tolist() for kind, x in clients.latencies.items()
        },
        "occupancy": round(grown["busy_slots"] / grown["slots"], 3),
        "cancellations": _sum(gauges, "omnidiff_cancellations_total"),
        "under_way": _sum(gauges, "omnidiff_requests{"),
        "megabytes_before_after_peak": [before, _memory(pid), _memory(pid, "VmHWM:")],
    }


def _told(ask: Ask) -> Ask:
    """A model that fails at a request (422) fails alike each time."""
    from openai import UnprocessableEntityError

    async def answered(client: Any) -> Any:
        try:
            return await ask(client)
        except UnprocessableEntityError as error:
            return str(error)

    return answered


class _Clients:
    """All clients, and what came of it.

    Attributes:
        rates: answers a second of each turn, while all of them ask.
        latencies: seconds, by task.
        server, own: the processor's seconds of the server and of its clients.
    """

    def __init__(self, client: Any, kinds: list[str], asks: list[Ask], alone: list[Any], pid: int):
        self._client, self._kinds, self._asks, self._alone, self._pid = client, kinds, asks, alone, pid
        self._rng = random.Random(SEED.value)
        self.rates: list[float] = []
        self.latencies: dict[str, list[float]] = collections.defaultdict(list)
        self.errors: collections.Counter[str] = collections.Counter()
        self.counts: collections.Counter[str] = collections.Counter()
        self.seconds = self.server = self.own = 0.0

    async def turn(self, number: int) -> float:
        """One turn of them, to the last answer; its seconds."""
        share = (number + 1) / (TURNS.value or 1)
        lasting = (SECONDS.value or 0) / (TURNS.value or 1)
        begun, server, own = time.perf_counter(), _processor(self._pid), time.process_time()
        answered: list[float] = []

        def more() -> bool:
            if REQUESTS.value:
                return self.counts["asked"] < REQUESTS.value * share
            return time.perf_counter() - begun < lasting

        async def one_client() -> float:
            while more():
                await self._ask(answered)
            return time.perf_counter()

        ends = await asyncio.gather(*(one_client() for _ in range(CLIENTS.value or 1)))
        last = min(ends) if REQUESTS.value else begun + lasting
        first = begun + _BEGINNING * (last - begun)
        self.rates.append(sum(first < at <= last for at in answered) / (last - first))
        lasted = time.perf_counter() - begun
        self.seconds += lasted
        self.server += _processor(self._pid) - server
        self.own += time.process_time() - own
        return lasted

    async def _ask(self, answered: list[float]) -> None:
        from openai import APIStatusError

        self.counts["asked"] += 1
        number, leaves = self._rng.randrange(len(self._asks)), self._rng.random() < (LEAVING.value or 0)
        started = time.perf_counter()
        try:
            patience = self._rng.uniform(0, 0.5) if leaves else None
            answer = await asyncio.wait_for(self._asks[number](self._client), patience)
        except TimeoutError:
            self.counts["left"] += 1
        except APIStatusError as error:
            self.errors[str(error.status_code)] += 1
            await asyncio.sleep(float(error.response.headers.get("retry-after", 0)))
        except Exception as error:
            self.errors[type(error).__name__] += 1
        else:
            answered.append(time.perf_counter())
            self.counts["answered"] += 1
            self.counts["differing"] += answer != self._alone[number]
            self.latencies[self._kinds[number]].append(answered[-1] - started)


class _ByModel:
    """The same requests without a server.

    Attributes:
        rates: answers a second of each turn.
        answered: requests.
        processor: its seconds.
    """

    def __init__(self, model: Model, requests: list[dict[str, Any]]):
        """Compiles its programs."""
        self._model, self._requests = model, requests
        self._least = max((ROWS.value or 1) // (EACH.value or 1) + 1, _TIMES)  # more than there are slots: streamed
        self.rates: list[float] = []
        self.answered, self.processor = 0, 0.0
        for _ in range(2):
            self._latest = self._rate(self._least)

    def turn(self, lasting: float) -> None:
        """Requests for about as many seconds, all there from the first."""
        times = max(self._least, round(lasting * self._latest / len(self._requests)))
        begun = time.process_time()
        self._latest = self._rate(times)
        self.rates.append(self._latest)
        self.answered += times * len(self._requests)
        self.processor += time.process_time() - begun

    def _rate(self, times: int) -> float:
        begun = time.perf_counter()
        answered_by(self._model, self._requests * times)
        return times * len(self._requests) / (time.perf_counter() - begun)


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


def _processor(pid: int) -> float:
    """The processor's seconds that a process took; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int, row: str = "VmRSS:") -> int:
    """Resident MB of a process, or the most there were; 0 where the system does not say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int(status.partition(row)[2].split()[0]) // 1000


if __name__ == "__main__":
    COMMAND.main(run)
