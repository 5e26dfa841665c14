"""Two implementations side by side in one run: each in a process of its own, steps taken in turn."""

import json
import os
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from omnidiff_jax.errors import UserError


class Side:
    """A process that does one step for each line on its stdin and answers in lines of JSON.

    What a line says is the process's own matter; training steps need nothing said.

    It prints {"ready": …} first, {"seconds": …} for each step, and {"peak_bytes": …} when stdin ends.
    """

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None):
        self.name = name
        self._process = subprocess.Popen(
            command, env=dict(env or os.environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ready = self._answer()

    def step(self, request: str = "step") -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{request}\n")
        self._process.stdin.flush()
        return self._answer()

    def finish(self) -> dict[str, Any]:
        """Ends the process; returns its last line."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        answer = self._answer()
        self._process.wait()
        return answer

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise UserError(
                f"the {self.name} side ended with status {self._process.wait()}; its last lines on stderr say why"
            )
        return json.loads(line)


def compare(sides: Sequence[Side], steps: int) -> dict[str, dict[str, Any]]:
    """Warms each side up with one step, then takes `steps` of each in turn.

    Returns:
        name -> {"step_seconds": median, "steps": seconds of each, "warm_up_seconds", "peak_bytes", "ready"}.
    """
    try:
        warm = {side.name: side.step()["seconds"] for side in sides}
        seconds: dict[str, list[float]] = {side.name: [] for side in sides}
        for _ in range(steps):
            for side in sides:
                seconds[side.name].append(side.step()["seconds"])
        return {
            side.name: {
                "step_seconds": statistics.median(seconds[side.name]),
                "steps": seconds[side.name],
                "warm_up_seconds": warm[side.name],
                **side.ready,
                **side.finish(),
            }
            for side in sides
        }
    finally:
        for side in sides:
            side.kill()
