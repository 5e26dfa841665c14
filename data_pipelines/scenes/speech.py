"""Voices of the Scenes world, spoken by espeak-ng (`speakers/espeak_engine.py`).

Everything heard is spoken by one of many voices, everything answered by one fixed voice.
"""

import functools

import numpy as np

from data_pipelines.scenes.scene import generator
from data_pipelines.speakers.espeak_engine import RATE, Voice, synthesize
from omnidiff_jax.records import Waveform

GRID = 1280  # samples of one speech code: 80 ms at 16 kHz
VOICE_COUNT = 1024

# Of espeak-ng's English accents and variants, those that pocketsphinx understands well: Scots, Caribbean and the
# novelty variants are out.
ACCENTS = ("gmw/en-US", "gmw/en-US-nyc", "gmw/en", "gmw/en-GB-x-rp")
VARIANTS = ("", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5")


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


@functools.lru_cache(maxsize=4096)
def _word(word: str) -> np.ndarray:
    """One word in the answering voice, padded with silence to whole speech codes."""
    wave = synthesize(word, ANSWER_VOICE)
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
    return Waveform(synthesize(text, voice), RATE)
