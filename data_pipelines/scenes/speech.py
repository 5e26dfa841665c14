"""Speech of the Scenes world, by espeak-ng (the pip package `espeakng-loader`) through ctypes.

Everything heard is spoken by one of many voices, everything answered by one fixed voice. The engine keeps state
from one utterance to the next (phase of the pitch flutter, noise), so that a sentence would depend on what was said
before it; it is therefore loaded afresh for each utterance (about 1 ms), which also makes `say` indifferent to
forks. A lock makes it safe for threads.
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

import espeakng_loader
import numpy as np

from data_pipelines.scenes.scene import generator
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.features import resample
from omnidiff_jax.records import Waveform

RATE = 16000
GRID = 1280  # samples of one speech code: 80 ms at 16 kHz
VOICE_COUNT = 1024
_SILENCE = 0.01  # of full scale

_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1
_LONGEST_DATA_PATH = 140  # the engine's buffer for the path has 160 characters
_WPM, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_LOCK = threading.Lock()

# Of espeak-ng's English accents and variants, those that pocketsphinx understands well: Scots, Caribbean and the
# novelty variants are out.
ACCENTS = ("gmw/en-US", "gmw/en-US-nyc", "gmw/en", "gmw/en-GB-x-rp")
VARIANTS = ("", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5")


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


ANSWER_VOICE = Voice("gmw/en-US", pitch=45, range=20, rate=185)


def heard_voice(index: int) -> Voice:
    """Voice number `index` modulo VOICE_COUNT; no two of those are equal."""
    index %= VOICE_COUNT
    rng = generator("voice", index)
    accent, variant = index % len(ACCENTS), index // len(ACCENTS) % len(VARIANTS)
    pairs = len(ACCENTS) * len(VARIANTS)
    return Voice(
        ACCENTS[accent],
        VARIANTS[variant],
        pitch=35 + index // pairs * 30 // (VOICE_COUNT // pairs),  # voices of one accent and variant differ here
        range=int(rng.integers(30, 71)),
        rate=int(rng.integers(170, 221)),
        volume=int(rng.integers(70, 111)),
    )


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


def _synthesize(text: str, voice: Voice) -> np.ndarray:
    """float32 [n] at RATE, from a freshly loaded engine, without the silence at both ends."""
    chunks: list[bytes] = []

    @_CALLBACK
    def collect(samples, count, events):
        if count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    with _LOCK:
        library = ctypes.CDLL(espeakng_loader.get_library_path())
        try:
            rate = library.espeak_Initialize(_SYNCHRONOUS, 0, _data_path().encode(), _DONT_EXIT)
            if rate <= 0:
                raise UserError(f"espeak-ng found no voices in {_data_path()}; reinstall espeakng-loader")
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breath noise; the engine seeds it with the clock
            library.espeak_SetSynthCallback(collect)
            if library.espeak_SetVoiceByName(voice.name.encode()):
                raise UserError(f"espeak-ng has no voice {voice.name!r}")
            library.espeak_SetParameter(_WPM, voice.rate, 0)
            library.espeak_SetParameter(_VOLUME, voice.volume, 0)
            library.espeak_SetParameter(_PITCH, voice.pitch, 0)
            library.espeak_SetParameter(_RANGE, voice.range, 0)
            data = text.encode()
            library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 1, 0, _UTF8, None, None)
            library.espeak_Terminate()
        finally:
            _ctypes.dlclose(library._handle)
    samples = np.frombuffer(b"".join(chunks), np.int16).astype(np.float32) / 32768.0
    wave = np.clip(resample(samples, rate, RATE), -1.0, 1.0) if samples.size else samples
    loud = np.flatnonzero(np.abs(wave) > _SILENCE)
    return wave[loud[0] : loud[-1] + 1] if loud.size else wave[:0]


@functools.lru_cache(maxsize=4096)
def _word(word: str) -> np.ndarray:
    """One word in the answering voice, padded with silence to whole speech codes."""
    wave = _synthesize(word, ANSWER_VOICE)
    padded = np.zeros(-(-len(wave) // GRID) * GRID, np.float32)
    padded[: len(wave)] = wave
    padded.setflags(write=False)
    return padded


def say(text: str, voice: Voice) -> Waveform:
    """The text spoken: mono float32 at 16 kHz, the same samples for the same arguments.

    In `ANSWER_VOICE` each word is spoken alone and starts on a multiple of 80 ms, so that the speech codes of a
    word do not depend on its neighbours. Other voices speak the whole text at once, without silence at the ends.
    """
    if voice == ANSWER_VOICE:
        words = [_word(word) for word in text.replace(",", " ").replace(".", " ").split()]
        return Waveform(np.concatenate(words) if words else np.zeros(0, np.float32), RATE)
    return Waveform(_synthesize(text, voice), RATE)
