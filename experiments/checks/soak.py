"""Kills a run again and again, and compares it with one that nothing interrupted.

    omnidiff soak --workdir=DIR                  two processes, 20 kills at random steps: the same losses, bit for bit
    omnidiff soak --workdir=DIR --move=2,1,4     two processes, then one, then four: same samples, losses within 1e-5
    omnidiff soak --workdir=DIR --bucket=URL     the interrupted run and its data lie in a bucket (or an emulated one)

Both runs are real ones of `omnidiff train`, started and killed (SIGKILL, all processes at once) on this machine.
Compared is every line of metrics.jsonl: losses, losses per task, and the fingerprint of samples and masks. Leaves
soak.json.
"""

import json
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from experiments.common import Command
from experiments.launch import local
from experiments.programs import READERS
from omnidiff_jax.buckets import Bucket
from omnidiff_jax.data.building import build_sets
from omnidiff_jax.data.storage import MANIFEST
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import path
from omnidiff_jax.runs.config import run_config
from omnidiff_jax.training.operations.metrics import read_metrics
from omnidiff_jax.training.workdir import mirror_folder

COMMAND = Command("soak", __doc__)
CONFIG = COMMAND.config("experiments/configs/soak.py")
WORKDIR = COMMAND.string("workdir", "folder of the runs", required=True)
KILLS = COMMAND.integer("kills", "how often the run is killed", 20, minimum=0)
PROCESSES = COMMAND.integer("processes", "of the run", 2, minimum=1)
MOVE = COMMAND.string("move", "instead of kills: numbers of processes the run moves through, such as 2,1,4")
BUCKET = COMMAND.string("bucket", "gs://… or s3://… for the interrupted run and its data, in place of DIR")
SEED = COMMAND.integer("seed", "of the steps at which it is killed", 0)
JSON = COMMAND.switch("json", "end with one line of JSON")


def run() -> None:
    config, root = run_config(CONFIG.value), path(str(WORKDIR.value))
    if (root / "whole").exists() or (root / "soaked").exists():
        raise UserError(f"{root} holds the runs of an earlier soak; remove it or name another folder")
    moves = _numbers(MOVE.value)
    build_sets(config.sources, READERS, config.tokenizers, root / "data")
    for name in ("whole", "soaked"):
        (root / name).mkdir(parents=True)
        (root / name / "data").symlink_to((root / "data").absolute())
    if BUCKET.value:
        _fill(Bucket(BUCKET.value), root / "data")
    total = sum(stage.steps for stage in config.plan)
    began = time.perf_counter()
    whole = moves[0] if moves else PROCESSES.value or 2
    _finish(_start(root / "whole", whole))
    say(f"uninterrupted: {total} steps, {whole} processes, {time.perf_counter() - began:.0f} s")
    lost = _move(root / "soaked", moves, total) if moves else _kill(root / "soaked", total)
    if BUCKET.value:
        for name in ("metrics.jsonl", "goodput.json"):
            (root / "soaked" / name).write_bytes(Bucket(f"{BUCKET.value}/soaked").read(name) or b"")
    result = compare(root / "whole", root / "soaked") | {"seconds": time.perf_counter() - began} | lost
    result["goodput"] = json.loads((root / "soaked" / "goodput.json").read_text())
    (root / "soak.json").write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"{result['steps']} steps, {result['interruptions']} interruptions; bit for bit the same: "
        f"{result['identical']}; same samples and masks: {result['same_samples']}; "
        f"largest relative difference of a loss {result['largest_difference']:.2e}"
    )
    if JSON.value:
        print(json.dumps(result))
    bound = 1e-5 if moves else 0.0
    if not result["same_samples"] or result["largest_difference"] > bound or not (moves or result["identical"]):
        raise UserError(f"{root / 'soaked'} differs from the run that nothing interrupted; see soak.json")


def _fill(bucket: Bucket, folder: Path) -> None:
    """Puts the data sets into an empty place of a bucket."""
    if bucket.list():
        raise UserError(f"{bucket.url} holds something already; name an empty place")
    for part in sorted(folder.iterdir()):
        bucket.put_folder(part, f"data/{part.name}", MANIFEST)


def _kill(folder: Path, total: int) -> dict[str, Any]:
    """Kills the run at random steps, then lets it finish."""
    draw = random.Random(SEED.value)
    kills = KILLS.value or 0
    at: list[int] = []
    reached = 0
    for number in range(kills):
        # Anywhere in what is left, so that every kill meets a run under way, and the last ones are not crowded.
        aim = reached + draw.randint(1, max(1, 2 * (total - reached - 2) // (kills - number + 1)))
        processes = _start(folder, PROCESSES.value or 2)
        _reach(folder, processes, min(aim, total - 2))
        time.sleep(draw.uniform(0.0, 0.3))  # any moment: between steps, in one, or while saving
        local.end(processes, signal.SIGKILL)
        local.wait(processes)
        reached = max(reached, _last(folder))
        at.append(reached)
        say(f"kill {number + 1}/{kills} after step {reached}")
    _finish(_start(folder, PROCESSES.value or 2))
    return {"interruptions": kills, "killed_after": at, "processes": [PROCESSES.value]}


def _move(folder: Path, moves: list[int], total: int) -> dict[str, Any]:
    """Runs on each number of processes for an equal share, killed in between."""
    for number, count in enumerate(moves[:-1], start=1):
        processes = _start(folder, count)
        _reach(folder, processes, number * total // len(moves))
        local.end(processes, signal.SIGKILL)
        local.wait(processes)
        say(f"{count} processes, killed after step {_last(folder)}")
    _finish(_start(folder, moves[-1]))
    return {"interruptions": len(moves) - 1, "processes": moves}


def compare(one: Path, other: Path) -> dict[str, Any]:
    """Two runs, line by line."""
    lines = [read_metrics(folder / "metrics.jsonl") for folder in (one, other)]
    timeless = [[{k: v for k, v in line.items() if "second" not in k and k != "mfu"} for line in run] for run in lines]
    names = ("loss", "fingerprint", "held_out_loss")
    steps, prints, held_out = ([[line[name] for line in run if name in line] for run in lines] for name in names)
    pairs = [*zip(*steps, strict=False), *zip(*held_out, strict=False)]
    return {
        "steps": min(map(len, steps)),
        "identical": timeless[0] == timeless[1],
        "same_samples": len(lines[0]) == len(lines[1]) and prints[0] == prints[1],
        "largest_difference": max(abs(a - b) / abs(a) for a, b in pairs),
    }


def _start(folder: Path, processes: int) -> list:
    words = [word for word in sys.argv[1:] if word.startswith(("--config", "--noconfig"))]
    workdir: str | Path = folder
    if BUCKET.value and folder.name == "soaked":
        workdir = f"{BUCKET.value}/soaked"
        words += ["--config.data.set=encoded", f"--config.data.folder={BUCKET.value}/data"]
    command = [sys.executable, "-m", "experiments.train", f"--config={CONFIG.default}", *words, f"--workdir={workdir}"]
    with open(folder / "output.log", "a") as output:
        return local.start(command, processes, output=output)


def _finish(processes: list) -> None:
    status = local.wait(processes)
    if status:
        raise UserError(f"a run ended with status {status}; see output.log beside its metrics")


def _reach(folder: Path, processes: list, step: int) -> None:
    while _last(folder) < step:
        if any(process.poll() is not None for process in processes):
            _finish(processes)
            raise UserError(f"the run ended before step {step} could be aimed at; use more config.total_steps")
        time.sleep(0.02)


def _last(folder: Path) -> int:
    here = mirror_folder(f"{BUCKET.value}/soaked") if BUCKET.value and folder.name == "soaked" else folder
    file = here / "metrics.jsonl"
    lines = read_metrics(file) if file.exists() else []
    return lines[-1]["step"] if lines else 0


def _numbers(text: str | None) -> list[int]:
    parts = text.split(",") if text else []
    if not all(part.isdigit() and int(part) > 0 for part in parts) or len(parts) == 1:
        raise UserError(f"--move={text}; give at least two numbers of processes, such as 2,1,4")
    return [int(part) for part in parts]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    COMMAND.main(run)
