"""How far something is and how long it will take: a bar on a terminal, elsewhere a line now and then."""

import collections
import math
import sys
import time
from typing import Any

_WINDOW = 64  # intervals between updates
_FEWEST = 2
_SECONDS = 1.0  # of counted work before a guess is shown


class Progress:
    """Counts towards `total`.

        with Progress(4600, label="step") as progress:
            for step in range(4600):
                progress.update(step + 1, "loss 0.31")

    prints `step 120/4600  loss 0.31  12 min left`. The estimate is the rate of the last updates; time before the first
    one (start-up, compilation) is not in it, nor intervals that `update` is told not to count.
    """

    def __init__(
        self,
        total: int,
        initial: int = 0,
        label: str = "step",
        seconds_between_lines: float = 20.0,
        afterwards: float = 0.0,
    ):
        """Begins at `initial` of `total` units of work, each called `label`.

        Args:
            afterwards: what follows this work, in its units; the time until all is done is then said too.
        """
        self._afterwards = afterwards
        self._total, self._label, self._every = total, label, seconds_between_lines
        self._done, self._at = initial, 0.0
        self._intervals: collections.deque[tuple[float, int]] = collections.deque(maxlen=_WINDOW)
        self._said = time.monotonic()
        self._bar: Any = None
        if sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            form = "{desc} {n_fmt}/{total_fmt} |{bar}| {percentage:.0f}%{postfix}"
            self._bar = tqdm(total=total, initial=initial, desc=label, bar_format=form, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, done: int, text: str = "", counted: bool = True) -> None:
        """`done` units are done now.

        Args:
            text: what else to show.
            counted: whether the time since the last update is like what is to come; a save or a compilation is not.
        """
        now = time.monotonic()
        if done > self._done:
            if self._at and counted:
                self._intervals.append((now - self._at, done - self._done))
            self._at = now
        elif done < self._done:
            self._at = now
        self._done = done
        shown = "  ".join(part for part in (text, self.left()) if part)
        if self._bar is not None:
            self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(done - self._bar.n)
        elif now - self._said > self._every or (done >= self._total and self._said < math.inf):
            self._said = now if done < self._total else math.inf  # the end is said once
            self._print(f"{self._label} {done}/{self._total}  {shown}".rstrip())

    def left(self) -> str:
        """The time that is left in words, such as "12 min left"; "" while it is not known, and at the end."""
        seconds, units = (sum(values) for values in zip(*self._intervals, strict=True)) if self._intervals else (0, 0)
        if len(self._intervals) < _FEWEST or seconds < _SECONDS or self._done >= self._total:
            return ""
        each = seconds / units
        told = f"{duration(each * (self._total - self._done))} left"
        if not self._afterwards:
            return told
        return f"{told}, {duration(each * (self._total - self._done + self._afterwards))} until all is done"

    def say(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            self._print(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _print(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A time in two units at most: "40 s", "12 min", "3 h 05 min", "2 d 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"
