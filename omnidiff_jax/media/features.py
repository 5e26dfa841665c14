"""Acoustic features in numpy: resampling, Kaldi filter banks with stacking and normalisation (what the speech encoder
hears), Whisper log-mel (the speech tokenizer), and the vocoder's mel with Griffin-Lim as its inverse.

Everything is time-major, float32, and vectorised over time: these functions run for every utterance on the data path.
"""

import dataclasses
import functools
import math
import os
import re
from collections.abc import Iterable

import librosa
import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from omnidiff_jax.config import Count, NonNegative, Positive, Share
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import check_file

LOG_FLOOR = float(np.finfo(np.float32).eps)
_PCM_SCALE = 32768.0  # Kaldi's features are defined on 16-bit samples


# ---- resampling ---------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def _sinc_filter(up: int, down: int, lowpass_width: int, rolloff: float) -> tuple[np.ndarray, int]:
    """Low-pass at the rate `up` times the input's: taps, and how many leading outputs precede time 0."""
    cutoff = min(up, down) * rolloff
    reach = math.ceil(lowpass_width * up * down / cutoff)
    lead = -(-reach // down)  # the filter's centre must fall on an output sample
    t = np.arange(-lead * down, reach + 1) * (cutoff / (up * down))
    t = np.clip(t, -lowpass_width, lowpass_width)
    taps = np.sinc(t) * np.cos(t * (np.pi / 2 / lowpass_width)) ** 2 * (cutoff / down)
    return taps.astype(np.float32), lead


def resample(
    samples: np.ndarray, source_rate: int, target_rate: int, lowpass_width: int = 6, rolloff: float = 0.99
) -> np.ndarray:
    """Windowed-sinc resampling; the defaults are torchaudio's (`sinc_interp_hann`), which the released code uses.

    Args:
        samples: float32 [n].
        source_rate, target_rate: Hz, any positive integers.
        lowpass_width: zero crossings of the filter on either side.
        rolloff: cut-off as a share of the lower Nyquist frequency.

    Returns:
        float32 [ceil(n * target_rate / source_rate)].
    """
    if source_rate == target_rate:
        return np.asarray(samples, np.float32)
    if source_rate <= 0 or target_rate <= 0:
        raise UserError(f"cannot resample from {source_rate} Hz to {target_rate} Hz; rates are positive")
    divisor = math.gcd(source_rate, target_rate)
    up, down = target_rate // divisor, source_rate // divisor
    taps, lead = _sinc_filter(up, down, lowpass_width, rolloff)
    length = -(-len(samples) * up // down)
    return _upsample_filter_decimate(taps, np.asarray(samples, np.float32), up, down, lead, length)


def _upsample_filter_decimate(
    taps: np.ndarray, samples: np.ndarray, up: int, down: int, lead: int, length: int
) -> np.ndarray:
    """Outputs `lead` to `lead + length` of `scipy.signal.upfirdn`, bit for bit: importing that takes seconds.

    Output m is the sum over k, from the oldest sample, of taps[m * down % up + k * up] * samples[m * down // up - k].
    """
    reach, rows = -(-len(taps) // up), -(-length // up)
    newest, phase = np.divmod(np.arange(lead, lead + rows * up).reshape(rows, up) * down, up)
    weights = np.pad(taps, (0, reach * up - len(taps))).reshape(reach, up)[:, phase[:1]]
    # Zeros stand before and behind the signal, where the filter reaches over its ends.
    behind = max(int(newest.max(initial=0)) + 1 - len(samples), 0)
    padded = np.pad(samples, (reach - 1, behind))
    out = np.zeros((rows, up), np.float32)
    for k in reversed(range(reach)):
        out += weights[k] * padded[reach - 1 - k :].take(newest)
    return out.reshape(-1)[:length]


# ---- Kaldi filter banks, stacking, normalisation -----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FbankConfig:
    """Kaldi's `compute-fbank-feats`; the defaults are SenseVoice's front-end.

    Attributes:
        rate: of the waveform, Hz.
        num_mels: filters.
        window, shift: length of a frame and distance between frames, in samples.
        low_hz: lower edge of the first filter; the upper edge of the last is rate / 2.
        preemphasis: share of the previous sample that is subtracted.
        stack, hop: low frame rate: `stack` frames are joined into one, every `hop` frames.
    """

    rate: Count = 16000
    num_mels: Count = 80
    window: Count = 400
    shift: Count = 160
    low_hz: NonNegative = 20.0
    preemphasis: Share = 0.97
    stack: Count = 7
    hop: Count = 6

    def __post_init__(self) -> None:
        if self.low_hz >= self.rate / 2:
            raise ValueError(f"low_hz = {self.low_hz} must be below half of rate = {self.rate}")

    @property
    def width(self) -> int:
        """Width of a stacked frame."""
        return self.num_mels * self.stack


def num_frames(samples: int, config: FbankConfig = FbankConfig()) -> int:
    """Frames of `fbank`: 1 + (N - window) // shift, and one for anything shorter than a window."""
    return 1 + max(samples - config.window, 0) // config.shift


def num_stacked(frames: int, config: FbankConfig = FbankConfig()) -> int:
    """Frames after `stack_frames`: ceil(T / hop)."""
    return -(-frames // config.hop)


@functools.lru_cache(maxsize=8)
def kaldi_filters(num_mels: int, bins: int, rate: int, low_hz: float) -> np.ndarray:
    """float32 [bins, num_mels]: triangles that are straight on the mel scale; the Nyquist bin weighs nothing."""

    def mel(hz: np.ndarray | float) -> np.ndarray:
        return 1127.0 * np.log1p(np.asarray(hz) / 700.0)

    edges = np.linspace(mel(low_hz), mel(rate / 2), num_mels + 2)
    at = mel(np.arange(bins - 1) * (rate / 2 / (bins - 1)))[:, None]
    rise = (at - edges[None, :-2]) / (edges[1:-1] - edges[:-2])[None]
    fall = (edges[None, 2:] - at) / (edges[2:] - edges[1:-1])[None]
    weights = np.maximum(np.minimum(rise, fall), 0.0)
    return np.pad(weights, ((0, 1), (0, 0))).astype(np.float32)


def fbank(samples: np.ndarray, config: FbankConfig = FbankConfig(), noise: np.ndarray | None = None) -> np.ndarray:
    """Log mel filter-bank energies as Kaldi computes them (hamming, power, no energy column).

    Args:
        samples: float32 [n] in [-1, 1], n >= 2; shorter than a window, the window shrinks to n.
        config: see `FbankConfig`.
        noise: dither to add, [frames, window] in 16-bit units (Kaldi draws N(0, 1)); None adds none.

    Returns:
        float32 [num_frames(n), num_mels]; silence is log(2 ** -23).

    Raises:
        UserError: fewer than two samples.
    """
    if len(samples) < 2:
        raise UserError(f"audio of {len(samples)} samples has no spectrum; at least 2 are needed")
    window = min(config.window, len(samples))
    frames = sliding_window_view(np.asarray(samples, np.float32), window)[:: config.shift] * np.float32(_PCM_SCALE)
    if noise is not None:
        frames += noise
    frames -= frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    frames -= np.float32(config.preemphasis) * before
    frames *= np.hamming(window).astype(np.float32)[None]
    size = 1 << (window - 1).bit_length()
    spectrum = np.fft.rfft(frames, size)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    energies = power @ kaldi_filters(config.num_mels, size // 2 + 1, config.rate, config.low_hz)
    return np.log(np.maximum(energies, LOG_FLOOR))


def stack_frames(frames: np.ndarray, config: FbankConfig = FbankConfig()) -> np.ndarray:
    """Joins `stack` neighbouring frames every `hop` (low frame rate), oldest first, the ends repeated.

    [T, M] -> [ceil(T / hop), stack * M]; the first row is centred on the first frame.
    """
    index = stacked_rows(len(frames), config)
    return frames[index].reshape(len(index), -1)


def stacked_rows(frames: int, config: FbankConfig = FbankConfig()) -> np.ndarray:
    """Which of `frames` frames each stacked one is made of: int [ceil(T / hop), stack]."""
    starts = np.arange(num_stacked(frames, config)) * config.hop - (config.stack - 1) // 2
    return np.clip(starts[:, None] + np.arange(config.stack)[None], 0, frames - 1)


def normalise(features: np.ndarray, shift: npt.ArrayLike, scale: npt.ArrayLike) -> np.ndarray:
    """Cepstral mean and variance normalisation: (features + shift) * scale, along the last axis."""
    return (features + np.asarray(shift, np.float32)[None]) * np.asarray(scale, np.float32)[None]


def estimate_cmvn(features: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Shift (-mean) and scale (1 / standard deviation) over all frames of several utterances [n, D]."""
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for frames in features:
        frames = np.asarray(frames, np.float64)
        count += len(frames)
        total = total + frames.sum(axis=0)
        squares = squares + np.square(frames).sum(axis=0)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - np.square(mean), 1e-6))
    return (-mean).astype(np.float32), (1.0 / deviation).astype(np.float32)


def read_cmvn(path: str | os.PathLike[str]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Shift and scale from Kaldi's text form (`am.mvn`: an <AddShift> and a <Rescale> vector).

    Raises:
        UserError: the file is missing or does not hold the two vectors, of one length.
    """
    check_file(path, "CMVN file", 2**24)
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()
    found = [re.search(rf"<{name}>.*?\[([^\]]*)\]", text, re.DOTALL) for name in ("AddShift", "Rescale")]
    try:
        shift, scale = (tuple(float(value) for value in match[1].split()) for match in found if match)
    except ValueError as error:
        raise UserError(f"CMVN file {path} must hold <AddShift> and <Rescale> vectors in brackets ({error})") from error
    if len(shift) != len(scale):
        raise UserError(f"CMVN file {path} has {len(shift)} shifts but {len(scale)} scales; they must be as many")
    return shift, scale


# ---- Slaney mel: Whisper's log-mel, the vocoder's mel and its inverse --------------------------------------------


@functools.lru_cache(maxsize=8)
def slaney_filters(rate: int, n_fft: int, num_mels: int, low_hz: float, high_hz: float) -> np.ndarray:
    """float32 [n_fft / 2 + 1, num_mels]: triangles of unit area on Slaney's mel scale (librosa's default)."""
    # Linear below 1 kHz (200/3 Hz a mel), logarithmic above (27 mels for a factor of 6.4).
    knee, step = 15.0, math.log(6.4) / 27.0

    def to_mel(hz: float) -> float:
        return hz * 3 / 200 if hz < 1000 else knee + math.log(hz / 1000.0) / step

    mels = np.linspace(to_mel(low_hz), to_mel(high_hz), num_mels + 2)
    edges = np.where(mels < knee, mels * 200 / 3, 1000.0 * np.exp(step * (mels - knee)))
    at = np.linspace(0.0, rate / 2, n_fft // 2 + 1)[:, None]
    rise = (at - edges[None, :-2]) / (edges[1:-1] - edges[:-2])[None]
    fall = (edges[None, 2:] - at) / (edges[2:] - edges[1:-1])[None]
    weights = np.maximum(np.minimum(rise, fall), 0.0) * (2.0 / (edges[2:] - edges[:-2]))[None]
    return weights.astype(np.float32)


def _hann(length: int) -> np.ndarray:
    """The periodic Hann window, float32 [length]."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


def _power_frames(padded: np.ndarray, n_fft: int, hop: int) -> np.ndarray:
    """Power spectra [T, n_fft / 2 + 1] of periodic-Hann windows."""
    spectrum = np.fft.rfft(sliding_window_view(padded, n_fft)[::hop] * _hann(n_fft)[None])
    return np.square(spectrum.real) + np.square(spectrum.imag)


def whisper_log_mel(samples: np.ndarray, num_mels: int = 128, n_fft: int = 400, hop: int = 160) -> np.ndarray:
    """Whisper's log-mel of 16 kHz audio: log10, within 8 of this utterance's loudest value, shifted and scaled.

    Args:
        samples: float32 [n], already padded (`models/whisper_vq.py` says to what); n a multiple of `hop`.

    Returns:
        float32 [n / hop, num_mels].
    """
    padded = np.pad(np.asarray(samples, np.float32), n_fft // 2, mode="reflect")
    power = _power_frames(padded, n_fft, hop)[:-1]
    energies = power @ slaney_filters(16000, n_fft, num_mels, 0.0, 8000.0)
    log = np.log10(np.maximum(energies, 1e-10))
    return (np.maximum(log, log.max() - 8.0) + 4.0) / 4.0


@dataclasses.dataclass(frozen=True)
class MelConfig:
    """The vocoder's mel spectrogram; the defaults are CosyVoice's (22.05 kHz).

    Attributes:
        rate: of the waveform, Hz.
        n_fft: window length, samples.
        hop: distance between frames, samples.
        num_mels: filters.
        low_hz, high_hz: edges of the filter bank.
        floor: smallest energy whose logarithm is taken.
    """

    rate: Count = 22050
    n_fft: Count = 1024
    hop: Count = 256
    num_mels: Count = 80
    low_hz: NonNegative = 0.0
    high_hz: Positive = 8000.0
    floor: Positive = 1e-5

    def __post_init__(self) -> None:
        if not self.low_hz < self.high_hz <= self.rate / 2:
            raise ValueError(
                f"low_hz = {self.low_hz} < high_hz = {self.high_hz} <= half of rate = {self.rate} must hold"
            )
        if self.hop > self.n_fft:
            raise ValueError(f"hop = {self.hop} must not exceed n_fft = {self.n_fft}")

    @property
    def filters(self) -> np.ndarray:
        """[n_fft / 2 + 1, num_mels]."""
        return slaney_filters(self.rate, self.n_fft, self.num_mels, self.low_hz, self.high_hz)


def log_mel(samples: np.ndarray, config: MelConfig = MelConfig()) -> np.ndarray:
    """Log mel magnitudes, the target of the flow decoder: float32 [n] -> [n // hop, num_mels]."""
    if len(samples) < config.hop:
        raise UserError(f"audio of {len(samples)} samples is shorter than one mel frame ({config.hop})")
    padded = np.pad(np.asarray(samples, np.float32), (config.n_fft - config.hop) // 2, mode="reflect")
    magnitude = np.sqrt(_power_frames(padded, config.n_fft, config.hop) + 1e-9)
    return np.log(np.maximum(magnitude @ config.filters, config.floor))


def griffin_lim(mel: np.ndarray, config: MelConfig = MelConfig(), iterations: int = 32) -> np.ndarray:
    """A waveform whose `log_mel` is near `mel`: [T, num_mels] -> float32 [T * hop] in [-1, 1], deterministic."""
    magnitude = np.maximum(np.exp(np.asarray(mel, np.float32)) @ _unmix(config), 1e-6)
    wave = librosa.griffinlim(
        magnitude.T,
        n_iter=iterations,
        hop_length=config.hop,
        n_fft=config.n_fft,
        center=False,
        init="random",
        random_state=0,
    )
    # Without centring there are (n_fft - hop) / 2 samples at either end that `log_mel` had padded.
    edge = (config.n_fft - config.hop) // 2
    return np.clip(wave[edge : edge + len(mel) * config.hop], -1.0, 1.0)


@functools.lru_cache(maxsize=8)
def _unmix(config: MelConfig) -> np.ndarray:
    """Least-squares inverse of the filter bank, [num_mels, n_fft / 2 + 1]."""
    return np.linalg.pinv(config.filters).astype(np.float32)
