"""Whether there is speech in a waveform that can be heard at all: a model answers silence as fluently as speech."""

import numpy as np

from omnidiff_jax.errors import UserError, notice
from omnidiff_jax.records import Waveform

WINDOW_SECONDS = 0.025
# Sixteen steps of 16-bit samples, -66 dB: noise of converters stays below, the quietest speech above.
_SILENCE = 2.0**-11
# Of the mean's energy to that of the loudest channel: 32 channels of which one speaks are at 1e-3.
_CANCELLED = 1e-4
# The narrowest speech is cut at 4 kHz, what the encoder hears reaches to 8 kHz.
WIDE_BAND_RATE = 16_000


def check_length(wave: Waveform) -> None:
    """Refuses what is shorter than the window that features are made of.

    Raises:
        UserError: less than 25 ms.
    """
    if wave.seconds < WINDOW_SECONDS:
        raise UserError(
            f"audio of {len(wave.samples)} samples ({wave.seconds * 1000:.3g} ms) is shorter than one window of "
            f"{WINDOW_SECONDS * 1000:g} ms; give a longer recording"
        )


def check_heard(wave: Waveform) -> None:
    """Refuses a waveform in which nothing can be heard, and says once that speech of a telephone lacks its upper half.

    Args:
        wave: float32 [n], what a user says.

    Raises:
        UserError: less than one window, samples that are not finite, or silence: nothing, a constant, or a peak (about
            the mean) below -66 dB of full scale.
    """
    check_length(wave)
    peak = float(np.abs(wave.samples - wave.samples.mean(dtype=np.float64)).max())
    if not np.isfinite(peak):
        raise UserError("audio holds NaN or infinite samples; export it again")
    if peak < _SILENCE:
        decibels = "" if peak < 2.0**-24 else f", {20 * np.log10(peak):.0f} dB"
        raise UserError(f"no speech heard (peak {peak:.2g} of full scale{decibels}); record it again, or louder")
    if wave.rate < WIDE_BAND_RATE:
        notice(
            f"audio at {wave.rate} Hz holds nothing above {wave.rate / 2000:g} kHz, where consonants differ most; "
            f"answers are better from {WIDE_BAND_RATE} Hz on"
        )


class ChannelMix:
    """The mean of channels, block by block, and whether anything is left of them in it."""

    def __init__(self, channels: int):
        """Begins a recording of `channels` channels."""
        # Of each channel, and last of their mean: how many samples, their sum and the sum of their squares.
        self._count, self._sums, self._squares = 0, np.zeros(channels + 1), np.zeros(channels + 1)

    def __call__(self, block: np.ndarray) -> np.ndarray:
        """float [n, channels] -> their mean, [n]."""
        mean = block.mean(axis=1)
        both = np.concatenate([block, mean[:, None]], axis=1).astype(np.float64)
        self._count += len(block)
        self._sums += both.sum(axis=0)
        self._squares += np.square(both).sum(axis=0)
        return mean

    def check(self) -> None:
        """Refuses channels whose mean is silent although they are not.

        Raises:
            UserError: the channels cancel each other out.
        """
        *channels, mixed = self._squares - np.square(self._sums) / max(self._count, 1)
        if len(channels) > 1 and self._count * _SILENCE**2 < max(channels) and mixed < _CANCELLED * max(channels):
            raise UserError(
                f"{len(channels)} channels cancel each other out when they are mixed (one is another upside down); "
                "give one of them"
            )
