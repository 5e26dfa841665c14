"""What a step tells: fetched once the next one is under way, judged, written to metrics and progress."""

import collections
import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import numpy as np

from omnidiff_jax.config import Count, NonNegative, Range
from omnidiff_jax.data.mixture import Stage, stage_at
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.flops import COUNT, peak_flops
from omnidiff_jax.progress import Progress
from omnidiff_jax.training.operations.goodput import Goodput
from omnidiff_jax.training.operations.guard import Guard, GuardConfig
from omnidiff_jax.training.operations.host_log import HostLog
from omnidiff_jax.training.operations.metrics import MetricsWriter
from omnidiff_jax.training.program import TrainProgram


@dataclasses.dataclass(frozen=True)
class OperationsConfig:
    """How a run is watched.

    Attributes:
        guard: what happens to steps that went wrong.
        hang_seconds: without a step after which all stacks are dumped; 0 = never. Compiling counts.
        hang: "report", or "abort" to end the process too, for a scheduler that starts it again.
        stall_share: warn when the device waited for data for a larger share of the last `stall_window` steps.
        stall_window: steps.
    """

    guard: GuardConfig = GuardConfig()
    hang_seconds: NonNegative = 1800.0
    hang: Literal["report", "abort"] = "report"
    stall_share: Annotated[float, Range(above=0, at_most=1)] = 0.1
    stall_window: Count = 50


@dataclasses.dataclass
class _Pending:
    step: int
    metrics: Any
    batch: Any
    waited: float
    stalled: float
    limit: float


class Journal:
    """Keeps one step pending, so that the device never waits for the host that reads its numbers."""

    def __init__(
        self,
        program: TrainProgram,
        stages: tuple[Stage, ...],
        config: OperationsConfig,
        goodput: Goodput,
        log: HostLog,
        writer: MetricsWriter | None,
        progress: Progress | None,
        rates: np.ndarray,
    ):
        """Args: writer and progress are None on all processes but one; rates, the learning rate of each step."""
        self._program, self._stages, self._config = program, stages, config
        self._goodput, self._log = goodput, log
        self._rejected: dict[str, int] = {}
        self._writer, self._progress, self._rates = writer, progress, rates
        self.guard = Guard(config.guard)
        self._pending: _Pending | None = None
        self._notes: dict[str, Any] = {}
        self._first_held_out: tuple[int, float] | None = None
        self._recent: collections.deque[tuple[float, float]] = collections.deque(maxlen=config.stall_window)
        self._last = time.perf_counter()
        peaks = [peak_flops(device) for device in jax.devices()]
        self._peak = sum(p for p in peaks if p is not None) if all(peaks) else None

    def device_idle(self) -> bool:
        """Whether the step dispatched last is done, so that from now on the device waits."""
        return self._pending is None or all(x.is_ready() for x in jax.tree.leaves(self._pending.metrics))

    def limit(self, step: int) -> float:
        """The loss above which `step` counts as a jump."""
        return self.guard.limit(step, self._stages[stage_at(self._stages, step - 1)].name)

    def after_dispatch(
        self, step: int, metrics: Any, batch: Any, limit: float, waited: float = 0.0, stalled: float = 0.0
    ) -> None:
        """Takes the metrics of a step just dispatched, still being computed, and works off the step before.

        Args:
            limit: what `limit` said.
            waited: seconds the host waited for the batch.
            stalled: how many of them the device had nothing to do.

        Raises:
            UserError, Rewind: the guard's decision on the step before.
        """
        before, self._pending = self._pending, _Pending(step, metrics, batch, waited, stalled, limit)
        if before is not None:
            self._work_off(before)

    def flush(self) -> None:
        """Waits for the pending step and works it off; raises as `after_dispatch` does."""
        before, self._pending = self._pending, None
        if before is not None:
            self._work_off(before)

    def note(self, **values: float) -> None:
        """Numbers for the next line, such as the seconds of a save."""
        self._notes |= values

    def measured(self, step: int, values: Mapping[str, Any], seconds: float) -> None:
        """Logs the held-out loss after `step`, a line of its own; the steps before it are worked off."""
        if self._first_held_out is None and self._writer is not None:
            self._first_held_out = self._writer.first("held_out_loss")  # of an earlier start, where this is a resume
        self._write(step, dict(values))
        loss, first = values["held_out_loss"], self._first_held_out
        since = f" ({first[1]:.4f} at step {first[0]})" if first else ""
        self.say(f"held-out loss {loss:.4f} at step {step}{since}")
        if first is None and math.isfinite(loss):
            self._first_held_out = step, loss
        self._last += seconds
        self._notes["held_out_seconds"] = seconds

    def count_rejected(self, rejected: Mapping[str, int], first: Mapping[str, str]) -> None:
        """Notes how many samples were skipped so far, by reason; a reason is said when it is first met.

        Args:
            rejected: reason -> count.
            first: reason -> what was wrong with the first such sample.
        """
        if rejected == self._rejected:
            return
        for reason in sorted(rejected.keys() - self._rejected.keys()):
            told = f", such as {first[reason]}" if reason in first else ""
            self.say(f"samples are skipped: {reason}{told} (counts are in metrics.jsonl)")
        self._rejected = dict(rejected)
        self._notes["rejected"] = self._rejected

    def say(self, text: str) -> None:
        """A line for people: on the terminal, and in this host's log."""
        self._log.write(text)
        if self._progress is not None:
            self._progress.say(text)

    def rewind(self, step: int) -> None:
        """Forgets what came after `step`; the time it took is lost."""
        self._pending = None
        dropped = self._writer.rewind(step) if self._writer is not None else []
        self._goodput.lose(steps_of(dropped), seconds_of(dropped))

    def _work_off(self, pending: _Pending) -> None:
        metrics = {k: np.asarray(v) for k, v in jax.device_get(pending.metrics).items()}
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        step, stage = pending.step, self._stages[stage_at(self._stages, pending.step - 1)].name
        finite, loss = bool(metrics.pop("finite")), float(metrics["loss"])
        metrics.pop("accepted")
        values: dict[str, Any] = {"stage": stage, "loss": loss, "learning_rate": float(self._rates[step - 1])}
        values |= self._program.report(metrics)
        if "sum/tokens" in metrics:
            tokens = float(metrics["sum/tokens"])
            values["tokens_per_second"] = tokens / seconds
            flops = self._program.flops(pending.batch, tokens)
            if flops is not None:
                self._goodput.facts |= {"flops_per_step": flops, "flops_count": COUNT, "peak_flops": self._peak}
                if self._peak:
                    values["mfu"] = self._goodput.facts["mfu"] = flops / seconds / self._peak
        values |= {"seconds": seconds, "data_wait_seconds": pending.waited, "data_stall_seconds": pending.stalled}
        values |= self._notes
        steady = not {"save_seconds", "restore_seconds", "held_out_seconds"} & self._notes.keys()
        self._notes = {}
        try:
            trouble = self.guard.judge(
                step, stage, loss, finite, pending.limit, lambda: self._program.describe(pending.batch)
            )
        except UserError as error:
            self._write(step, values | {"refused": str(error)})
            self._log.write(str(error))
            raise
        if trouble:
            who = self._program.describe(pending.batch)
            values["refused"] = who
            self.say(f"step {step}: {trouble}; batch: {who}")
        self._write(step, values)
        self._watch_stalls(step, seconds, pending.stalled)
        if self._progress is not None:
            rate = f"  {values['tokens_per_second']:.0f} tokens/s" if "tokens_per_second" in values else ""
            rate += f"  MFU {values['mfu']:.1%}" if "mfu" in values else ""
            self._progress.update(step, f"{stage}  loss {loss:.4f}{rate}", steady)

    def _write(self, step: int, values: dict[str, Any]) -> None:
        if self._writer is not None:
            self._writer.write(step, values)

    def _watch_stalls(self, step: int, seconds: float, stalled: float) -> None:
        self._recent.append((seconds, stalled))
        if len(self._recent) == self._config.stall_window:
            share = sum(s for _, s in self._recent) / max(sum(s for s, _ in self._recent), 1e-9)
            if share > self._config.stall_share:
                self.say(
                    f"step {step}: the device waited for data for {share:.0%} of the last {len(self._recent)} steps; "
                    "`omnidiff bench input` measures the loader"
                )
                self._recent.clear()


def steps_of(lines: list[dict[str, Any]]) -> int:
    """How many steps lines of `metrics.jsonl` are of; a held-out loss has a line beside its step's."""
    return len({line["step"] for line in lines})


def seconds_of(lines: list[dict[str, Any]]) -> float:
    """The time that lines of `metrics.jsonl` stand for."""
    return sum(float(line.get("seconds") or 0.0) for line in lines)
