"""The table of docs/scaling.md: one row for each thing that `omnidiff preflight --record` has compiled."""

import datetime
import importlib.metadata
import os
from pathlib import Path
from typing import Any

import jax

from omnidiff_jax.preflight.targets import GIB

COLUMNS = (
    "config",
    "slice",
    "sharding",
    "mesh",
    "attention, remat",
    "rows × length",
    "state GiB",
    "peak GiB of",
    "fits",
    "TFLOP a device",
    "network GB a device",
    "a step, at least",
    "MFU at most",
    "logits moved",
    "compiled in",
    "made with",
)
KEY = 4  # columns that identify a row


def record(path: str | os.PathLike[str], name: str, result: dict[str, Any]) -> None:
    """Adds a result of `preflight` to the table in a Markdown file, or replaces the row of the same first columns."""
    file = Path(path)
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    header = "| " + " | ".join(COLUMNS) + " |"
    if header not in lines:
        lines += [*([""] if lines else []), header, "|" + " --- |" * len(COLUMNS)]
    first = lines.index(header) + 2
    last = first
    while last < len(lines) and lines[last].startswith("|"):
        last += 1
    new = _row(name, result)
    rows = [row for row in lines[first:last] if _cells(row)[:KEY] != _cells(new)[:KEY]] + [new]
    lines[first:last] = sorted(rows, key=_cells)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def _row(name: str, r: dict[str, Any]) -> str:
    mesh = " ".join(f"{axis}={size}" for axis, size in r["mesh"].items())
    sent = sum(c["bytes"] for c in r["collectives"]) / 1e9 if r["collectives"] is not None else None
    logits = "?" if r["collectives"] is None or r["what"] != "train" else len(r["logits_collectives"]) or "none"
    micro = f" in {r['accumulate']}" if r["accumulate"] > 1 else ""
    if r["what"] != "train":
        words = (r["what"], r["task"], r["candidates"], r["quantize"], f"× {r['batch_size']}")
        name = f"{name}, {' '.join(filter(None, words))}"
    cells = (
        name,
        r["topology"],
        r["sharding"],
        mesh,
        f"{r['attention']}, {r['remat']}",
        f"{r['batch_size']} × {r['length']}{micro}",
        f"{r['argument_bytes_per_device'] / GIB:.2f}",
        f"{r['peak_bytes_per_device'] / GIB:.2f} of {r['device_bytes'] / GIB:.2f}",
        "yes" if r["fits"] else "no",
        f"{r['flops_per_device'] / 1e12:.{0 if r['what'] == 'train' else 2}f}",
        "?" if sent is None else f"{sent:.1f}",
        f"{r['step_seconds_estimate']:.2f} s" if r["what"] == "train" else f"{1e3 * r['step_seconds_estimate']:.1f} ms",
        f"{r['mfu_ceiling']:.0%}",
        str(logits),
        f"{r['compile_seconds']:.0f} s",
        f"{datetime.datetime.now(datetime.UTC).date()}, {_versions(r['compiled_for'])}",
    )
    return "| " + " | ".join(cells) + " |"


def _versions(compiled_for: str) -> str:
    """jax, and libtpu where it compiled."""
    if not compiled_for.startswith("v"):
        return f"jax {jax.__version__}, CPU compiler"
    return f"jax {jax.__version__}, libtpu {importlib.metadata.version('libtpu')}"
