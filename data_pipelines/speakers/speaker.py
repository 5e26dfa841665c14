"""Text to speech with many voices: what an opened speaker does."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from omnidiff_jax.records import Waveform, stable_id


@dataclasses.dataclass(frozen=True)
class Line:
    """What is to be said once.

    Attributes:
        text: any text.
        voice: of those that ask, 0 .. `Speaker.voices` - 1; None = the one that answers.
        seed: 0 = as the voice speaks; another one says the same otherwise.
    """

    text: str
    voice: int | None
    seed: int = 0


class Speaker(Protocol):
    """An opened speaker: many voices that ask, and one that answers.

    Attributes:
        name: engine and version, or a digest of its files.
        licence: of what it says.
        voices: number of those that ask; no two are alike.
    """

    name: str
    licence: str
    voices: int

    def say(self, lines: Sequence[Line]) -> list[Waveform]:
        """Each line spoken, whatever lines are beside it: the same samples in every process."""

    def described(self, voice: int | None) -> str:
        """A voice in words, for people."""


def drawn(low: float, high: float, *parts: object) -> float:
    """A number from `low` to `high` that depends only on `parts`."""
    return low + (high - low) * stable_id(*parts) / 2**32


def pace(seed: int) -> float:
    """How fast a further attempt speaks, as a share of the voice's own speed: slower words are better understood."""
    return drawn(0.82, 0.97, "pace", seed) if seed else 1.0
