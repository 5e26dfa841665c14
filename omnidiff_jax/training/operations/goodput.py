"""Where a run's time goes: every second of every start belongs to one phase, and steps done twice count as lost."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

# `step` is the host waiting for the device; `data_wait` the device waiting for data.
PHASES = ("startup", "restore", "compile", "data_wait", "step", "save", "held_out", "other")
_SECONDS_BETWEEN_WRITES = 5.0


class Goodput:
    """A clock that stands in one phase at a time, added up over all starts of a run in `workdir/goodput.json`.

    Goodput is the time of steps that were kept, divided by all time. Seconds between the file's last update (every few
    seconds) and a kill are not seen.
    """

    def __init__(self, workdir: str | os.PathLike[str], began: float | None = None, keep: bool = True):
        """Starts in phase `startup`.

        Args:
            began: `time.perf_counter()` at which the start began; now by default.
            keep: whether this process reads and writes the file.
        """
        self._path = Path(workdir) / "goodput.json"
        self._keep = keep
        self._mark = time.perf_counter() if began is None else began
        self._written = -_SECONDS_BETWEEN_WRITES
        self._phase = "startup"
        self.facts: dict[str, Any] = {}
        total = self._read() if keep else {}
        self._seconds = {name: float(total.get("seconds", {}).get(name, 0.0)) for name in PHASES}
        lost = total.get("lost", {})
        self._lost_steps, self._lost_seconds = int(lost.get("steps", 0)), float(lost.get("seconds", 0.0))
        self._starts = int(total.get("starts", 0)) + 1
        self._saves, self._restores = int(total.get("saves", 0)), int(total.get("restores", 0))

    def __enter__(self) -> "Goodput":
        return self

    def __exit__(self, *_: object) -> None:
        self.enter("other")
        self.write()

    def enter(self, phase: str) -> float:
        """Leaves the current phase for `phase`; returns the seconds since the last change."""
        now = time.perf_counter()
        elapsed = now - self._mark
        self._seconds[self._phase] += elapsed
        self._mark, self._phase = now, phase
        if now - self._written > _SECONDS_BETWEEN_WRITES:
            self.write()
        return elapsed

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Stands in `name` for the duration of a `with`, then in the phase before."""
        before = self._phase
        self.enter(name)
        try:
            yield
        finally:
            self.enter(before)
            self._saves += name == "save"
            self._restores += name == "restore"

    def move(self, seconds: float, source: str, target: str) -> None:
        """Books seconds that were counted under `source` under `target`."""
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    def lose(self, steps: int, seconds: float) -> None:
        """Notes steps that were done and are done again, or thrown away."""
        self._lost_steps += steps
        self._lost_seconds += seconds

    def summary(self) -> dict[str, Any]:
        """What `goodput.json` holds."""
        wall = sum(self._seconds.values())
        productive = max(self._seconds["step"] - self._lost_seconds, 0.0)
        return {
            "goodput": productive / wall if wall else 0.0,
            "wall_seconds": wall,
            "productive_seconds": productive,
            "seconds": dict(self._seconds),
            "lost": {"steps": self._lost_steps, "seconds": self._lost_seconds},
            "starts": self._starts,
            "saves": self._saves,
            "restores": self._restores,
        } | self.facts

    def line(self) -> str:
        """The summary in one line for a terminal."""
        total = self.summary()
        parts = ", ".join(f"{name} {total['seconds'][name]:.1f} s" for name in PHASES if total["seconds"][name] >= 0.05)
        lost = f", {self._lost_steps} steps lost ({self._lost_seconds:.1f} s)" if self._lost_steps else ""
        share, wall = f"{total['goodput']:.1%}", f"{total['wall_seconds']:.0f} s"
        return f"goodput {share} of {wall} in {self._starts} starts: {parts}{lost}"

    def write(self) -> None:
        """Brings `goodput.json` up to date."""
        self._written = time.perf_counter()
        if not self._keep:
            return
        # Accounts are no reason to end a run; where the disk is full, its metrics are.
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(json.dumps(self.summary(), indent=2) + "\n")
            temporary.replace(self._path)

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text())
            numbers = [found[name] for name in ("starts", "saves", "restores")]
            numbers += [*found["seconds"].values(), *found["lost"].values()]
            if all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
                return found
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        print(f"{self._path} does not hold the accounts of a run; they begin anew", file=sys.stderr)
        return {}


def process_age() -> float:
    """Seconds since this process was started, so that imports are accounted for; 0 where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK"), 0.0)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


class Compilations:
    """Counts programs that XLA is asked for (from the cache on disk too) while a `with` lasts."""

    def __init__(self):
        self.count = 0
        self.seconds = 0.0

    def __enter__(self) -> "Compilations":
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._note)

    def _note(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.count += 1
            self.seconds += duration_secs
