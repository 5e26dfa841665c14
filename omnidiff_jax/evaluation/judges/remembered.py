"""What a judge found once is not computed again: an exam shows it every true answer and every given one twice."""

import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np

from omnidiff_jax.records import Waveform

Shown = TypeVar("Shown")
Found = TypeVar("Found")


class Remembered(Generic[Shown, Found]):
    """A function of lists that is called with what is new only."""

    def __init__(self, judged: Callable[[list[Shown]], Sequence[Found]], key: Callable[[Shown], Hashable]):
        """Args:
        judged: things -> what is found of each, no matter which others there are.
        key: equal for equal things.
        """
        self._judged, self._key = judged, key
        self._found: dict[Hashable, Found] = {}

    def __call__(self, shown: Sequence[Shown]) -> list[Found]:
        """What is found of each, in their order."""
        keys = [self._key(thing) for thing in shown]
        new = {key: thing for key, thing in zip(keys, shown, strict=True) if key not in self._found}
        if new:
            self._found.update(zip(new, self._judged(list(new.values())), strict=True))
        return [self._found[key] for key in keys]


def of_picture(picture: np.ndarray) -> Hashable:
    """Key of uint8 [H, W, 3]."""
    return picture.shape, hashlib.blake2b(np.ascontiguousarray(picture).tobytes(), digest_size=16).digest()


def of_speech(speech: Waveform) -> Hashable:
    """Key of samples and rate."""
    return speech.rate, hashlib.blake2b(np.ascontiguousarray(speech.samples).tobytes(), digest_size=16).digest()
