"""What happens to a step that went wrong: a loss or gradient that is not finite, or a loss that jumps."""

import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Any, Literal

from omnidiff_jax.config import Count, Positive
from omnidiff_jax.errors import UserError

_FEWEST = 16  # losses before which nothing counts as a jump


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """Policies by name. "skip": parameters stay as they were and the run goes on; "abort": the run stops; "rewind":
    back to the newest checkpoint, and on with the data that comes after the bad batch.

    Attributes:
        nonfinite: for a loss or gradient that is not finite; such a step never changes the parameters.
        spike: for a loss above the mean of recent ones by `sigmas` standard deviations; "report" only says so.
        sigmas: see `spike`.
        window: losses of the stage that count as recent.
        max_in_row: skipped steps in a row after which the run stops.
        max_rewinds: rewinds of one start after which the run stops.
    """

    nonfinite: Literal["skip", "abort", "rewind"] = "skip"
    spike: Literal["off", "report", "skip", "abort", "rewind"] = "report"
    sigmas: Positive = 8.0
    window: Count = 128
    max_in_row: Count = 5
    max_rewinds: Count = 3


class Rewind(Exception):
    """The run goes back to its newest checkpoint."""


class Guard:
    """Judges steps by the losses before them; its state is part of a checkpoint, so that a resumed run judges alike."""

    def __init__(self, config: GuardConfig):
        self._config = config
        self._stage = ""
        self._losses: list[tuple[int, float]] = []
        self._skipped = 0
        self._rewinds = 0

    def limit(self, step: int, stage: str) -> float:
        """The loss above which `step` (from 1) is a jump; infinite while too little is known.

        Losses up to `step` - 2 count: the one before is still being computed when this step is dispatched.
        """
        known = [loss for at, loss in self._losses if at <= step - 2][-self._config.window :]
        if stage != self._stage or len(known) < min(_FEWEST, self._config.window):
            return math.inf
        return statistics.fmean(known) + self._config.sigmas * max(statistics.pstdev(known), 1e-3)

    @property
    def limits_on_device(self) -> bool:
        """Whether the step itself must refuse a jump, because afterwards is too late."""
        return self._config.spike == "skip"

    def judge(self, step: int, stage: str, loss: float, finite: bool, limit: float, who: Callable[[], str]) -> str:
        """Decides on a finished step and remembers its loss.

        Args:
            limit: what `limit` said of it.
            who: names its samples; called where they must be named.

        Returns:
            "" for a good step, else what is wrong with it, in words.

        Raises:
            UserError: the policy is to stop.
            Rewind: the policy is to go back.
        """
        jumped = finite and loss > limit and self._config.spike != "off"
        if finite and not jumped:
            if stage != self._stage:
                self._stage, self._losses = stage, []
            self._losses = [*self._losses[-self._config.window - 1 :], (step, loss)]
            self._skipped = 0
            return ""
        policy = self._config.spike if jumped else self._config.nonfinite
        what = f"loss {loss:.4g} jumped over {limit:.4g}" if jumped else "loss or gradient is not finite"
        if policy == "report":
            self._losses = [*self._losses[-self._config.window - 1 :], (step, loss)]
            return f"{what} (step kept)"
        if policy == "rewind":
            self._rewinds += 1
            if self._rewinds <= self._config.max_rewinds:
                raise Rewind(f"step {step}: {what}; batch: {who()}")
            raise UserError(f"step {step}: {what} after {self._rewinds - 1} rewinds; batch: {who()}; {_REMEDY}")
        self._skipped += 1
        if policy == "abort":
            raise UserError(f"step {step}: {what}; batch: {who()}; {_REMEDY}")
        if self._skipped >= self._config.max_in_row:
            cause = "jumped in loss" if jumped else "were not finite"
            raise UserError(
                f"{self._skipped} steps in a row {cause}, the last at step {step}; batch: {who()}; {_REMEDY}"
            )
        return f"{what} (parameters kept)"

    def get_state(self) -> dict[str, Any]:
        """JSON."""
        return {"stage": self._stage, "losses": [list(pair) for pair in self._losses], "skipped": self._skipped}

    def set_state(self, state: dict[str, Any]) -> None:
        self._stage, self._skipped = state["stage"], state["skipped"]
        self._losses = [(int(step), float(loss)) for step, loss in state["losses"]]


_REMEDY = "lower the learning rate or look at these samples"
