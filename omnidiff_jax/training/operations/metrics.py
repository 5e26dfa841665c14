"""Where a run's numbers go: `metrics.jsonl`, TensorBoard events, and the progress line."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorboardX
from tqdm import tqdm


class MetricsWriter:
    """Appends a JSON line and TensorBoard scalars for every logged step.

    A resumed run goes on in the same file; lines of steps that are trained again are dropped first, so that the
    file holds each step once.

    Attributes:
        dropped: the lines dropped at the start.
    """

    def __init__(self, workdir: str | os.PathLike[str], resume_step: int = 0):
        self._path = Path(workdir) / "metrics.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.dropped = self._drop_after(resume_step)
        self._file = self._path.open("a")
        self._board = tensorboardX.SummaryWriter(str(Path(workdir) / "tensorboard"), flush_secs=10)

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Drops the lines after `step` and returns them."""
        self._file.close()
        dropped = self._drop_after(step)
        self._file = self._path.open("a")
        return dropped

    def _drop_after(self, step: int) -> list[dict[str, Any]]:
        lines = read_metrics(self._path) if self._path.exists() else []
        kept = [line for line in lines if line.get("step", 0) <= step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(self._path)
        return lines[len(kept) :]

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs `values` (numbers, strings, and dicts of numbers) for `step`; a NaN is written as null."""
        self._file.write(json.dumps({"step": step} | {k: _plain(v) for k, v in values.items()}) + "\n")
        self._file.flush()
        for name, value in values.items():
            for tag, number in value.items() if isinstance(value, Mapping) else [(None, value)]:
                if isinstance(number, (int, float)) and math.isfinite(number):
                    self._board.add_scalar(name if tag is None else f"{name}/{tag}", number, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All whole lines of a `metrics.jsonl`; a last line cut short by a kill is left out."""
    lines = []
    for line in Path(path).read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Progress:
    """A progress bar on a terminal; elsewhere (logs, CI) a line now and then."""

    def __init__(self, total: int, initial: int = 0, seconds_between_lines: float = 20.0):
        self._bar = tqdm(total=total, initial=initial, disable=not sys.stderr.isatty(), dynamic_ncols=True)
        self._total = total
        self._every = seconds_between_lines
        self._last = time.monotonic()

    def update(self, step: int, text: str) -> None:
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(step - self._bar.n)
        if self._bar.disable and (time.monotonic() - self._last > self._every or step == self._total):
            self._last = time.monotonic()
            print(f"step {step}/{self._total}  {text}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()
