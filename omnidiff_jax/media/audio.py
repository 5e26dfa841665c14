"""Audio files: everything that can be wrong with one is found, and named, before or while it is decoded."""

import dataclasses
import io
import os
import struct
from pathlib import Path, PurePath
from typing import Literal

import numpy as np
import soundfile

from omnidiff_jax.errors import UserError
from omnidiff_jax.fetching import local_copy
from omnidiff_jax.files import check_file, write_bytes, written
from omnidiff_jax.media.speech import ChannelMix
from omnidiff_jax.records import Waveform

FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")
_WHAT = "audio file"
_BLOCK = 1 << 16
# Writers that stream leave the length of the data chunk at a value near the top of its range.
_UNKNOWN_LENGTH = 0x7FFF0000
# Lossy codecs and float files overshoot full scale a little; far beyond it they were never scaled to [-1, 1].
_OVERSHOOT = 4.0


@dataclasses.dataclass(frozen=True)
class AudioLimits:
    """What `read_audio` accepts; checked on the header, before anything is decoded."""

    max_bytes: int = 256 * 2**20
    max_seconds: float = 600.0
    min_rate: int = 8_000
    max_rate: int = 192_000
    max_channels: int = 32


def read_audio(
    path: str | os.PathLike[str],
    channels: Literal["mean", "first"] = "mean",
    limits: AudioLimits = AudioLimits(),
) -> Waveform:
    """Reads wav, flac, ogg or mp3, of any sample width, at the file's own rate.

    Args:
        path: the file.
        channels: how several channels become one: "mean" is what the speech encoder hears, "first" what the
            speech tokenizer does (released code).
        limits: sizes, rates and lengths that are accepted.

    Returns:
        float32 samples in [-1, 1] (overshoot is clipped), mono.

    Raises:
        UserError: the file is missing, empty, not audio, cut short, without samples, over a limit, holds NaN, infinite
            or unscaled samples, or channels that cancel each other out in their mean.
    """
    file = local_copy(path)
    size = check_file(file, _WHAT, limits.max_bytes)
    _check_wav_length(file, size)
    try:
        # A descriptor, not a name: libsndfile would trust the name's ending over the content.
        with open(file, "rb") as raw, soundfile.SoundFile(raw.fileno(), closefd=False) as sound:
            _check_header(file, sound, limits)
            mix = ChannelMix(sound.channels) if channels == "mean" and sound.channels > 1 else None
            samples = _decode(sound, mix)
            expected, rate = sound.frames, sound.samplerate
    except OSError as error:
        raise UserError(f"{_WHAT} {file} cannot be read ({error.strerror}); check its permissions") from error
    except soundfile.LibsndfileError as error:
        reason = str(error.error_string).strip().rstrip(".")
        raise UserError(f"{_WHAT} {file} is not readable audio ({reason}); give a whole wav, flac, ogg, mp3") from error
    if len(samples) < expected:
        raise UserError(f"{_WHAT} {file} is cut short: {len(samples)} of {expected} samples; copy or export it again")
    samples = _check_samples(file, samples)
    try:
        if mix is not None:
            mix.check()
    except UserError as error:
        raise UserError(f"{_WHAT} {file}: its {error}") from error
    return Waveform(samples, rate)


def write_wav(path: str | os.PathLike[str], waveform: Waveform) -> None:
    """Writes 16-bit PCM, whole or not at all, here or in a bucket.

    Raises:
        UserError: a sample is not finite, a name that does not end with .wav, or the file cannot be written.
    """
    if PurePath(path).suffix.lower() != ".wav":
        raise UserError(f"{os.fspath(path)!r} must end with .wav, the form that speech is written in")
    content = wav_bytes(waveform)
    with written(path) as place:
        write_bytes(place, content)


def wav_bytes(waveform: Waveform) -> bytes:
    """A 16-bit PCM wav file in memory; samples beyond [-1, 1] are clipped."""
    if not np.isfinite(waveform.samples).all():
        raise UserError("audio to be written holds NaN or infinite samples")
    pcm = np.round(np.clip(waveform.samples, -1.0, 1.0) * 32767.0).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, waveform.rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _check_header(file: Path, sound: soundfile.SoundFile, limits: AudioLimits) -> None:
    if sound.format not in FORMATS:
        raise UserError(f"{_WHAT} {file} is {sound.format}; convert it to wav, flac, ogg or mp3")
    if not limits.min_rate <= sound.samplerate <= limits.max_rate:
        raise UserError(
            f"{_WHAT} {file} has {sound.samplerate} samples per second, outside {limits.min_rate}-{limits.max_rate}; "
            "resample it"
        )
    if sound.channels > limits.max_channels:
        raise UserError(f"{_WHAT} {file} has {sound.channels} channels, over {limits.max_channels}; mix it down")
    if sound.frames <= 0:
        raise UserError(f"{_WHAT} {file} has 0 samples; record or export it again")
    seconds = sound.frames / sound.samplerate
    if seconds > limits.max_seconds:
        raise UserError(f"{_WHAT} {file} is {seconds:.1f} s long, over the limit of {limits.max_seconds:g} s; cut it")


def _decode(sound: soundfile.SoundFile, mix: ChannelMix | None) -> np.ndarray:
    """float32 [n], mixed down block by block (or the first channel), never more than the header announced."""
    mono = np.empty(sound.frames, np.float32)
    filled = 0
    while filled < len(mono):
        block = sound.read(min(_BLOCK, len(mono) - filled), dtype="float32", always_2d=True)
        if not len(block):
            break
        mono[filled : filled + len(block)] = block[:, 0] if mix is None else mix(block)
        filled += len(block)
    return mono[:filled]


def _check_samples(file: Path, samples: np.ndarray) -> np.ndarray:
    finite = np.isfinite(samples)
    if not finite.all():
        first = int(np.argmin(finite))
        raise UserError(
            f"{_WHAT} {file} holds {np.count_nonzero(~finite)} NaN or infinite samples, the first at {first}; "
            "export it again"
        )
    peak = float(np.abs(samples).max())
    if peak > _OVERSHOOT:
        raise UserError(f"{_WHAT} {file} peaks at {peak:.4g}, where samples lie in [-1, 1]; scale it down")
    return np.clip(samples, -1.0, 1.0)


def _check_wav_length(file: Path, size: int) -> None:
    """Refuses a wav whose data chunk promises more than the file holds: libsndfile reads such a file silently."""
    with open(file, "rb") as raw:
        if raw.read(12)[:4] != b"RIFF":
            return
        offset = 12
        while len(header := raw.read(8)) == 8:
            name, length = struct.unpack("<4sI", header)
            offset += 8
            if name == b"data":
                if length < _UNKNOWN_LENGTH and offset + length > size:
                    raise UserError(
                        f"{_WHAT} {file} is cut short: {size - offset} of {length} bytes of sound; "
                        "copy or export it again"
                    )
                return
            offset += length + length % 2
            raw.seek(offset)
