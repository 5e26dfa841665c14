"""Proves what `omnidiff convert` promises, on a synthetic bfloat16 checkpoint with every tensor of the released 7B.

Random data is written, copied, converted to Orbax, converted back and compared byte for byte; all of it is removed at
the end. Fails if a conversion's peak memory exceeds the largest file by more than 2 GiB, or takes over twice the copy's
time. Needs three times the checkpoint's size of disk: fewer layers need less.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np

from experiments.common import Command
from omnidiff_jax.conversion.components import COMPONENTS, OmniParts
from omnidiff_jax.conversion.rules import torch_shapes
from omnidiff_jax.conversion.sources import open_released
from omnidiff_jax.conversion.tensor_files import SafetensorsWriter
from omnidiff_jax.conversion.to_released import SHARD
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.adapter import AdapterConfig
from omnidiff_jax.models.backbone import BackboneConfig
from omnidiff_jax.models.sanm import SpeechEncoderConfig

BF16 = np.dtype(ml_dtypes.bfloat16)
ALLOWANCE, SLOWDOWN = 2 << 30, 2.0

COMMAND = Command("check_7b", __doc__)
LAYERS = COMMAND.integer("layers", "of the backbone", BackboneConfig().layers, minimum=1)
FOLDER = COMMAND.string("folder", "where to write (default: the folder for temporary files)")
JSON = COMMAND.switch("json", "end with one line of JSON")


def run() -> None:
    parts = OmniParts(
        dataclasses.replace(BackboneConfig(), layers=int(LAYERS.value or 1)), SpeechEncoderConfig(), AdapterConfig()
    )
    component = COMPONENTS["omni"]
    shapes = torch_shapes(component.rules(parts), component.abstract(parts))
    size = sum(prod(shape) * BF16.itemsize for shape in shapes.values())
    home = Path(tempfile.mkdtemp(dir=FOLDER.value, prefix="omnidiff-check-"))
    try:
        free = shutil.disk_usage(home).free
        if free < 3.1 * size:
            raise UserError(
                f"{home.parent} has {free / 1e9:.0f} GB free, the check needs {3.1 * size / 1e9:.0f} GB; "
                "give --folder=DIR on a larger disk, or fewer --layers"
            )
        report = _check(home, component.released_json(parts), shapes, size)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    if JSON.value:
        print(json.dumps(report))
    failures = [name for name, value in report.items() if value is False]
    if failures:
        raise UserError(f"the conversion does not hold: {', '.join(failures)}")


def _check(home: Path, config: dict, shapes: dict[str, tuple[int, ...]], size: int) -> dict[str, object]:
    largest = _write(home / "released", config, shapes)
    print(f"{len(shapes)} tensors, {size / 1e9:.2f} GB, largest file {largest / 2**30:.2f} GiB")
    report: dict[str, object] = {"tensors": len(shapes), "bytes": size, "largest_file": largest}
    copy_seconds, _ = _timed(["cp", "-r", "--reflink=never", home / "released", home / "copy"])
    shutil.rmtree(home / "copy")
    report["copy_seconds"] = copy_seconds
    print(f"copy: {copy_seconds:.1f} s, {size / 1e6 / copy_seconds:.0f} MB/s")
    convert = [sys.executable, "-m", "experiments.convert"]
    for name, forms, source, target in (
        ("to_orbax", ["--from=released", "--to=orbax"], "released", "orbax"),
        ("to_released", ["--from=orbax", "--to=released"], "orbax", "back"),
    ):
        seconds, peak = _timed([*convert, *forms, home / source, home / target])
        report |= {
            f"{name}_seconds": seconds,
            f"{name}_peak_bytes": peak,
            f"{name}_within_memory": peak <= largest + ALLOWANCE,
            f"{name}_within_twice_the_copy": seconds <= SLOWDOWN * copy_seconds,
        }
        print(f"{name}: {seconds:.1f} s ({seconds / copy_seconds:.2f} x the copy), peak {peak / 2**30:.2f} GiB")
    report["round_trip_is_identical"] = _identical(home / "released", home / "back")
    print(f"round trip identical: {report['round_trip_is_identical']}")
    return report


def _timed(command: list[str | Path]) -> tuple[float, int]:
    """Seconds until it is done and on the disk, and the largest resident memory of the process, bytes."""
    os.sync()
    started = time.monotonic()
    process = subprocess.Popen([str(word) for word in command])
    _, status, usage = os.wait4(process.pid, 0)
    os.sync()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{Path(command[0]).name} ended with status {process.returncode}")
    return time.monotonic() - started, usage.ru_maxrss * 1024


def _write(folder: Path, config: dict, shapes: dict[str, tuple[int, ...]]) -> int:
    """A checkpoint of random finite numbers, in files as the hub splits them; returns the largest file's size."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    # Sign and a small exponent: no NaN. Tensors are windows of one pool, each at a place of its own.
    pool = np.random.default_rng(0).integers(0, 1 << 16, 48 << 20, np.uint16) & 0xBFFF
    groups: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        if groups[-1] and held + prod(shape) * 2 > SHARD:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += prod(shape) * 2
    weight_map: dict[str, str] = {}
    for number, names in enumerate(groups):
        file = f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        writer = SafetensorsWriter(folder / file, [(n, BF16, shapes[n]) for n in names], {"format": "pt"})
        for name in names:
            start, count, done = zlib.crc32(name.encode()) % (len(pool) // 2), prod(shapes[name]), 0
            while done < count:
                piece = pool[start : start + count - done]
                writer.write(name, piece, done * 2)
                done, start = done + len(piece), (start + 7919) % (len(pool) // 2)
        writer.close()
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return max(path.stat().st_size for path in folder.glob("*.safetensors"))


def _identical(first: Path, second: Path) -> bool:
    with open_released(first) as a, open_released(second) as b:
        if a.owner != b.owner or a.shapes != b.shapes:
            return False
        for name, shape in a.shapes.items():
            rows = max((64 << 20) // max(prod(shape[1:]) * 2, 1), 1)
            for start in range(0, shape[0], rows):
                span = (start, min(start + rows, shape[0]))
                if a.dtype(name) != b.dtype(name) or a.read(name, *span).tobytes() != b.read(name, *span).tobytes():
                    return False
    return True


if __name__ == "__main__":
    COMMAND.main(run)
