"""Real processes killed at random moments and followed by other numbers of them: one scorecard, byte for byte."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmark_toys import mme

WORKER = Path(__file__).parent / "benchmark_worker.py"
COUNTS = {"existence": 60, "OCR": 40, "artwork": 100, "code_reasoning": 40}


def started(data, out, number, of, through=("generate",), rows=3, pause=0.03):
    told = {"data": str(data), "out": str(out), "share": [number, of], "through": through, "rows": rows, "pause": pause}
    return subprocess.Popen([sys.executable, str(WORKER), json.dumps(told)], stderr=subprocess.DEVNULL)


def lines(place):
    return sum(file.read_bytes().count(b"\n") for file in place.glob("answers.*"))


@pytest.mark.slow
def test_killed_at_random_moments_the_scorecard_is_the_same(tmp_path):
    data, rng = mme(tmp_path / "data", "table", COUNTS), random.Random(5)
    assert started(data, tmp_path / "whole", 0, 1, ("generate", "score"), rows=64, pause=0).wait() == 0
    place = tmp_path / "parts" / "benchmarks" / "mme-released"
    kills = 0
    for of in (3, 2, 1):
        before = lines(place)
        processes = [started(data, tmp_path / "parts", number, of, rows=rng.choice([1, 3, 7])) for number in range(of)]
        deadline = time.monotonic() + 300
        while lines(place) < before + 10 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 0.5))
        for process in processes:
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert kills >= 3 and 30 <= lines(place) < sum(COUNTS.values())
    for process in [started(data, tmp_path / "parts", number, 2, pause=0) for number in range(2)]:
        assert process.wait() == 0
    assert started(data, tmp_path / "parts", 0, 1, ("score",)).wait() == 0
    cards = []
    for name in ("whole", "parts"):
        content = json.loads((tmp_path / name / "benchmarks" / "mme-released" / "score.json").read_text())
        cards.append(json.dumps(content | {"seconds": 0}))
    assert cards[0] == cards[1] and json.loads(cards[0])["n"] == sum(COUNTS.values())
