"""The engine of espeak-ng (the pip package `espeakng-loader`) through ctypes: text to sound, text to phonemes.

The engine keeps state from one utterance to the next (phase of the pitch flutter, noise), so that a sentence would
depend on what was said before it; it is therefore loaded afresh for each utterance (about 1 ms), which also makes it
indifferent to forks. A lock makes it safe for threads.
"""

import _ctypes
import atexit
import ctypes
import dataclasses
import functools
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import espeakng_loader
import numpy as np

from omnidiff_jax.errors import UserError
from omnidiff_jax.media.features import resample

RATE = 16000
_SILENCE = 0.01  # of full scale

_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1
_IPA = 2
_LONGEST_DATA_PATH = 140  # the engine's buffer for the path has 160 characters
_WPM, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_LOCK = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Voice:
    """A speaker.

    Attributes:
      accent: espeak-ng voice file, e.g. "gmw/en-US".
      variant: espeak-ng voice variant, e.g. "m3" or "f2", or "".
      pitch: 0 to 99, 50 is the variant's own.
      range: liveliness of the pitch, 0 to 99.
      rate: words a minute.
      volume: 0 to 200, 100 is normal.
    """

    accent: str
    variant: str = ""
    pitch: int = 50
    range: int = 50
    rate: int = 195
    volume: int = 100

    @property
    def name(self) -> str:
        return f"{self.accent}+{self.variant}" if self.variant else self.accent


@functools.lru_cache(maxsize=1)
def _data_path() -> str:
    """Where the engine's data is, through a temporary link where the path is longer than the engine takes."""
    path = espeakng_loader.get_data_path()
    if len(path) <= _LONGEST_DATA_PATH:
        return path
    folder = tempfile.mkdtemp(prefix="espeak-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    link = os.path.join(folder, "espeak-ng-data")
    os.symlink(path, link)
    return link


@contextmanager
def _engine(voice: str) -> Iterator[tuple[Any, int]]:
    """The engine, freshly loaded, with a voice set; and its rate in Hz."""
    with _LOCK:
        library = ctypes.CDLL(espeakng_loader.get_library_path())
        try:
            rate = library.espeak_Initialize(_SYNCHRONOUS, 0, _data_path().encode(), _DONT_EXIT)
            if rate <= 0:
                raise UserError(f"espeak-ng found no voices in {_data_path()}; reinstall espeakng-loader")
            if library.espeak_SetVoiceByName(voice.encode()):
                raise UserError(f"espeak-ng has no voice {voice!r}")
            yield library, rate
            library.espeak_Terminate()
        finally:
            _ctypes.dlclose(library._handle)


def synthesize(text: str, voice: Voice, seed: int = 1) -> np.ndarray:
    """The text spoken, without the silence at both ends.

    Args:
        text: any text.
        voice: that speaks.
        seed: of the breath noise, which the engine would seed with the clock.

    Returns:
        float32 [n] at RATE, in [-1, 1].

    Raises:
        UserError: there is no such voice.
    """
    chunks: list[bytes] = []

    @_CALLBACK
    def collect(samples, count, events):
        if count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    with _engine(voice.name) as (library, rate):
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        library.espeak_SetSynthCallback(collect)
        for parameter, value in (
            (_WPM, voice.rate),
            (_VOLUME, voice.volume),
            (_PITCH, voice.pitch),
            (_RANGE, voice.range),
        ):
            library.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 1, 0, _UTF8, None, None)
    samples = np.frombuffer(b"".join(chunks), np.int16).astype(np.float32) / 32768.0
    wave = np.clip(resample(samples, rate, RATE), -1.0, 1.0) if samples.size else samples
    loud = np.flatnonzero(np.abs(wave) > _SILENCE)
    return wave[loud[0] : loud[-1] + 1] if loud.size else wave[:0]


def phonemes(pieces: Sequence[str], voice: str) -> list[str]:
    """IPA with stress marks of each piece of text, such as "ɹˈɛd"; punctuation is not kept.

    Args:
        pieces: of text, clauses of a sentence for instance.
        voice: espeak-ng voice file, such as "gmw/en-US".

    Raises:
        UserError: there is no such voice.
    """
    with _engine(voice) as (library, _):
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        return [_phonemes(library, piece) for piece in pieces]


def _phonemes(library: Any, text: str) -> str:
    place = ctypes.c_char_p(text.encode())
    spelt = []
    while place.value is not None:  # a clause at a time
        spelt.append((library.espeak_TextToPhonemes(ctypes.byref(place), _UTF8, _IPA) or b"").decode())
    return " ".join(" ".join(spelt).split())
