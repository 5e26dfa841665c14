"""What one process of a run did, with times."""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import jax


class HostLog:
    """`workdir/logs/host-NNN.log`: what this process did, with times; appended to at every start.

    Attributes:
        path: the file.
        file: it, open at its end.
    """

    def __init__(self, workdir: str | os.PathLike[str]):
        self.path = Path(workdir) / "logs" / f"host-{jax.process_index():03d}.log"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("a")
        devices = jax.local_devices()
        self.write(
            f"start: process {jax.process_index()} of {jax.process_count()}, pid {os.getpid()}, {len(devices)} of "
            f"{jax.device_count()} devices ({devices[0].device_kind}), jax {jax.__version__}"
        )

    def write(self, text: str) -> None:
        # A full disk ends the run where its numbers are written, not here.
        with contextlib.suppress(OSError):
            self.file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n")
            self.file.flush()

    def __enter__(self) -> "HostLog":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.write("end" if error is None else f"end: {type(error).__name__}: {error}")
        with contextlib.suppress(OSError):
            self.file.close()
