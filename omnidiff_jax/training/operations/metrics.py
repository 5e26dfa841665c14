"""Where a run's numbers go: `metrics.jsonl` and TensorBoard events."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omnidiff_jax.errors import UserError

_SECONDS_BETWEEN_FLUSHES = 10.0


class MetricsWriter:
    """Appends a JSON line and TensorBoard scalars for every logged step.

    A resumed run goes on in the same file; lines of steps that are trained again are dropped first, so that the
    file holds each step once.

    Attributes:
        dropped: the lines dropped at the start.

    Raises:
        UserError: of every method: the file cannot be written, or its disk is full.
    """

    def __init__(self, workdir: str | os.PathLike[str], resume_step: int = 0):
        self._path = Path(workdir) / "metrics.jsonl"
        with self._writing():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self.dropped = self._drop_after(resume_step)
            self._file = self._path.open("a")
        self._board = _Board(Path(workdir) / "tensorboard")

    def first(self, name: str) -> tuple[int, float] | None:
        """Step and value of the first line that has the number `name`."""
        lines = read_metrics(self._path)
        return next(((line["step"], line[name]) for line in lines if line.get(name) is not None), None)

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Drops the lines after `step` and returns them."""
        with self._writing():
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
        with self._writing():
            self._file.write(json.dumps({"step": step} | {k: _plain(v) for k, v in values.items()}) + "\n")
            self._file.flush()
        for name, value in values.items():
            for tag, number in value.items() if isinstance(value, Mapping) else [(None, value)]:
                if isinstance(number, (int, float)) and math.isfinite(number):
                    self._board.add(name if tag is None else f"{name}/{tag}", number, step)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written was said by `write`
            self._file.close()
        self._board.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write {self._path}: {error.strerror or error}; free space and start again to resume"
            ) from error


class _Board:
    """TensorBoard events. They are no reason to end a run: where they cannot be written, that is said once.

    tensorboardX's own writer has a thread, which a full disk ends with a traceback, and a queue that is full then.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        # It imports clients of object stores, which take a second that only a run has to pay.
        from tensorboardX.event_file_writer import EventsWriter

        self._writer: EventsWriter | None = None
        self._flushed = -math.inf
        with self._trying():
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"))

    def add(self, name: str, value: float, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        with self._trying():
            if self._writer is None:
                return
            self._writer.write_event(Event(summary=scalar(name, value), step=step, wall_time=time.time()))
            if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
                self._writer.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        with self._trying():
            if self._writer is not None:
                self._writer.close()

    @contextlib.contextmanager
    def _trying(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            print(f"no more TensorBoard events in {self._folder}: {error.strerror or error}", file=sys.stderr)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All whole lines of a `metrics.jsonl`; a last line cut short by a kill is left out."""
    lines = []
    for line in Path(path).read_text().splitlines():
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(found, dict):
            lines.append(found)
    return lines


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
