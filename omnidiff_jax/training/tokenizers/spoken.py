"""What a world gives to the programs of speech: utterances by number, and who understands them."""

import dataclasses
from collections.abc import Callable

import numpy as np

from omnidiff_jax.records import Waveform

Utterances = Callable[[int], tuple[Waveform, str]]
"""Index -> an utterance and its words; a pure function."""

Judge = Callable[[Waveform, str], tuple[int, int]]
"""(speech, its text) -> how many words are wrong, and how many there are."""


@dataclasses.dataclass(frozen=True)
class Spoken:
    """Speech of a world.

    Attributes:
        training: utterances 0, 1, … to learn from.
        held_out: those that are never learned.
        judge: who says how many words are understood; None = nobody.
    """

    training: Utterances
    held_out: Utterances
    judge: Judge | None = None


def joined(utterances: Utterances, count: int) -> Utterances:
    """`count` utterances of one rate, one after the other, as one: 0 .. `count` - 1 are number 0."""

    def utterance(index: int) -> tuple[Waveform, str]:
        waves, texts = zip(*(utterances(count * index + i) for i in range(count)), strict=True)
        return Waveform(np.concatenate([wave.samples for wave in waves]), waves[0].rate), " ".join(texts)

    return utterance
