"""Packing: several samples in one row of L tokens and T speech frames, none of them cut.

`best_fit` keeps a bounded number of open rows and puts each sample into the fullest one that still takes it; when
none does, the fullest is emitted, or the oldest where `patience` for it is used up. `released` is the released code's
greedy rule: one open row, emitted when the next sample does not fit, its padding counted as part of the last sample
(segment and positions continue through it).
"""

import dataclasses
from collections.abc import Sequence
from typing import Generic, TypeVar

from omnidiff_jax.config import Count, Natural, check_fields
from omnidiff_jax.errors import UserError
from omnidiff_jax.speech_frames import SpeechLayout

T = TypeVar("T")
STRATEGIES = ("best_fit", "released")
# Efficiency is that of endless patience to 0.05 points over the mixes tried; half as much costs 0.1.
_PATIENCE = 16


@dataclasses.dataclass(frozen=True)
class PackingConfig:
    """The shape of a packed row.

    Attributes:
        length: tokens L of a row.
        frames: speech frames T of a row, query slots included; 0 = no speech, `ModelInputs.speech` is None.
        samples: most samples S in a row.
        open_rows: rows kept open by `best_fit`; more of them waste fewer tokens and delay samples longer.
        strategy: "best_fit" or "released".
        speech: how wide a speech frame is and what opens every utterance.
    """

    length: Count = 3072
    frames: Natural = 1536
    samples: Count = 96
    open_rows: Count = 24
    strategy: str = "best_fit"
    speech: SpeechLayout = SpeechLayout()

    def __post_init__(self):
        if self.strategy not in STRATEGIES:
            raise UserError(f"packing strategy = {self.strategy!r} must be one of {STRATEGIES}")
        check_fields(self, "config.data")

    @property
    def rows_held(self) -> int:
        """How many rows the strategy keeps open."""
        return 1 if self.strategy == "released" else self.open_rows

    @property
    def patience(self) -> int:
        """How many rows may be emitted before one that was opened earlier: it then goes out, however full.

        A row that no sample fits into would wait for ever. Rows whose patience ends together go out one with each row
        that is emitted, so none waits for more than `patience + 2 * rows_held`.
        """
        return _PATIENCE * self.rows_held


class OpenRow(Generic[T]):
    """A row being filled: its items, what they use, and how many rows were emitted since it was opened."""

    __slots__ = ("frames", "items", "tokens", "waited")

    def __init__(self, waited: int = 0) -> None:
        self.items: list[T] = []
        self.tokens = 0
        self.frames = 0
        self.waited = waited


class Packer(Generic[T]):
    """Assigns items to rows by their sizes. Deterministic: the same items in the same order give the same rows.

    The state is `open`, the rows being filled, oldest first; `resume` with their items and what they waited restores
    it exactly.
    """

    def __init__(self, config: PackingConfig):
        self._config = config
        self.open: list[OpenRow[T]] = []

    def fits(self, tokens: int, frames: int) -> bool:
        """Whether an empty row takes an item of these sizes."""
        return tokens <= self._config.length and frames <= self._config.frames

    def add(self, item: T, tokens: int, frames: int) -> list[list[T]]:
        """Places one item that `fits`; returns the rows (lists of items) completed by it, usually none."""
        config = self._config
        best, most = None, -1
        for row in self.open:
            if most < row.tokens <= config.length - tokens and row.frames + frames <= config.frames:
                best, most = row, row.tokens
        done: list[list[T]] = []
        if best is None:
            if len(self.open) == config.rows_held:
                late = self.open[0].waited >= config.patience
                done.append(self._close(self.open[0] if late else max(self.open, key=lambda row: row.tokens)))
            best = OpenRow()
            self.open.append(best)
        best.items.append(item)
        best.tokens += tokens
        best.frames += frames
        if len(best.items) == config.samples:
            done.append(self._close(best))
            # Rows that are full of small samples need no room, so nothing else would send a late one out.
            if self.open and self.open[0].waited >= config.patience:
                done.append(self._close(self.open[0]))
        return done

    def resume(self, rows: Sequence[Sequence[tuple[T, int, int]]], waited: Sequence[int]) -> None:
        """Restores open rows.

        Args:
            rows: items with sizes, (item, tokens, frames), oldest row first.
            waited: how long each row has.
        """
        self.open = []
        for items, rows_since in zip(rows, waited, strict=True):
            row: OpenRow[T] = OpenRow(rows_since)
            for item, tokens, frames in items:
                row.items.append(item)
                row.tokens += tokens
                row.frames += frames
            self.open.append(row)

    def _close(self, row: OpenRow[T]) -> list[T]:
        self.open.remove(row)
        for other in self.open:
            other.waited += 1
        return row.items
