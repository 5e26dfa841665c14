"""Audio files: everything that can be wrong with one is found, and named, before or while it is decoded."""

import dataclasses
import io
import os
import struct
from pathlib import PurePath
from typing import BinaryIO, Literal

import numpy as np
import soundfile

from omnidiff_jax.errors import UserError
from omnidiff_jax.files import write_bytes, written
from omnidiff_jax.media.mp3 import SAMPLES_PER_FRAME, indexed
from omnidiff_jax.media.opened import AnyMedium, Opened, opened
from omnidiff_jax.media.speech import ChannelMix
from omnidiff_jax.records import Medium, Waveform

FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")
_WHAT = "audio file"
_BLOCK = 1 << 16
# Writers that stream leave the length of the data chunk at a value near the top of its range.
_UNKNOWN_LENGTH = 0x7FFF0000
# Lossy codecs and float files overshoot full scale a little; far beyond it they were never scaled to [-1, 1].
_OVERSHOOT = 4.0
# Encoders announce a frame or two more than a decoder gives back (common-voice/cv-dataset#31).
_MP3_SLACK = 4 * SAMPLES_PER_FRAME
# Seconds by which the marks of a segment may overshoot its recording.
_END_SLACK = 0.1


@dataclasses.dataclass(frozen=True)
class AudioLimits:
    """What `read_audio` accepts; checked on the header, before anything is decoded."""

    max_bytes: int = 256 * 2**20
    max_recording_bytes: int = 4 * 2**30
    max_seconds: float = 600.0
    min_rate: int = 8_000
    max_rate: int = 192_000
    max_channels: int = 32


def read_audio(
    medium: AnyMedium,
    channels: Literal["mean", "first"] = "mean",
    limits: AudioLimits = AudioLimits(),
) -> Waveform:
    """Reads wav, flac, ogg or mp3, of any sample width, at the file's own rate.

    Args:
        medium: a path, or a part of a file, of memory, or of a recording.
        channels: how several channels become one: "mean" is what the speech encoder hears, "first" what the
            speech tokenizer does (released code).
        limits: sizes, rates and lengths that are accepted; of a longer recording, only the part that is meant counts.

    Returns:
        float32 samples in [-1, 1] (overshoot is clipped), mono.

    Raises:
        UserError: the file is missing, empty, not audio, cut short, without samples, over a limit, holds NaN, infinite
            or unscaled samples, channels that cancel each other out in their mean, or not the seconds that are meant.
    """
    start, end = (medium.start, medium.end) if isinstance(medium, Medium) else (0.0, None)
    whole = not start and end is None
    with opened(medium, _WHAT, limits.max_bytes if whole else limits.max_recording_bytes) as source:
        name = source.name
        raw = _checked(source)
        try:
            # A descriptor, not a name: libsndfile would trust the name's ending over the content.
            place = raw.fileno() if raw is source.file and not isinstance(raw, io.BytesIO) else raw
            with soundfile.SoundFile(place, closefd=False) as sound:
                _check_header(name, sound, limits)
                first, expected = _span(name, sound, start, end)
                seconds, rate = expected / sound.samplerate, sound.samplerate
                if seconds > limits.max_seconds:
                    raise UserError(
                        f"{_WHAT} {name} is {seconds:.1f} s long, over the limit of {limits.max_seconds:g} s; cut it"
                    )
                if first:
                    sound.seek(first)
                mix = ChannelMix(sound.channels) if channels == "mean" and sound.channels > 1 else None
                samples = _decode(sound, mix, expected)
                slack = _MP3_SLACK if sound.format == "MP3" else 0
        except OSError as error:
            raise UserError(f"{_WHAT} {name} cannot be read ({error.strerror}); check its permissions") from error
        except soundfile.LibsndfileError as error:
            reason = str(error.error_string).strip().rstrip(".")
            raise UserError(
                f"{_WHAT} {name} is not readable audio ({reason}); give a whole wav, flac, ogg, mp3"
            ) from error
    if len(samples) < expected - slack or not len(samples):
        raise UserError(f"{_WHAT} {name} is cut short: {len(samples)} of {expected} samples; copy or export it again")
    samples = _check_samples(name, samples)
    try:
        if mix is not None:
            mix.check()
    except UserError as error:
        raise UserError(f"{_WHAT} {name}: its {error}") from error
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


def _check_header(name: str, sound: soundfile.SoundFile, limits: AudioLimits) -> None:
    if sound.format not in FORMATS:
        raise UserError(f"{_WHAT} {name} is {sound.format}; convert it to wav, flac, ogg or mp3")
    if not limits.min_rate <= sound.samplerate <= limits.max_rate:
        raise UserError(
            f"{_WHAT} {name} has {sound.samplerate} samples per second, outside {limits.min_rate}-{limits.max_rate}; "
            "resample it"
        )
    if sound.channels > limits.max_channels:
        raise UserError(f"{_WHAT} {name} has {sound.channels} channels, over {limits.max_channels}; mix it down")
    if sound.frames <= 0:
        raise UserError(f"{_WHAT} {name} has 0 samples; record or export it again")


def _span(name: str, sound: soundfile.SoundFile, start: float, end: float | None) -> tuple[int, int]:
    """First sample and number of samples of the seconds `start` to `end`.

    Raises:
        UserError: they are none, or the recording ends before them.
    """
    length, rate = sound.frames, sound.samplerate
    last = length / rate if end is None else end
    if not 0 <= start < last or last > length / rate + _END_SLACK or not start < length / rate:
        raise UserError(
            f"{_WHAT} {name} is {length / rate:.2f} s long, seconds {start:g} to {last:g} are asked for; correct them"
        )
    first = round(start * rate)
    return first, max(min(round(last * rate), length) - first, 1)


def _checked(source: Opened) -> BinaryIO:
    """The file after a look at what libsndfile would believe: a wav's length; an mp3's is counted."""
    raw = source.file
    head = raw.read(12)
    raw.seek(0)
    if head[:4] == b"RIFF":
        _check_wav_length(source)
    elif head[:3] == b"ID3" or head[:1] == b"\xff":
        raw = indexed(raw)
    raw.seek(0)
    # Seeking what Python has buffered leaves the descriptor where it is.
    if raw is source.file and not isinstance(raw, io.BytesIO):
        os.lseek(raw.fileno(), 0, os.SEEK_SET)
    return raw


def _decode(sound: soundfile.SoundFile, mix: ChannelMix | None, length: int) -> np.ndarray:
    """float32 [n], mixed down block by block (or the first channel), never more than `length` samples."""
    mono = np.empty(length, np.float32)
    filled = 0
    while filled < len(mono):
        block = sound.read(min(_BLOCK, len(mono) - filled), dtype="float32", always_2d=True)
        if not len(block):
            break
        mono[filled : filled + len(block)] = block[:, 0] if mix is None else mix(block)
        filled += len(block)
    return mono[:filled]


def _check_samples(name: str, samples: np.ndarray) -> np.ndarray:
    finite = np.isfinite(samples)
    if not finite.all():
        first = int(np.argmin(finite))
        raise UserError(
            f"{_WHAT} {name} holds {np.count_nonzero(~finite)} NaN or infinite samples, the first at {first}; "
            "export it again"
        )
    peak = float(np.abs(samples).max())
    if peak > _OVERSHOOT:
        raise UserError(f"{_WHAT} {name} peaks at {peak:.4g}, where samples lie in [-1, 1]; scale it down")
    return np.clip(samples, -1.0, 1.0)


def _check_wav_length(source: Opened) -> None:
    """Refuses a wav whose data chunk promises more than the file holds: libsndfile reads such a file silently."""
    raw, size, offset = source.file, source.size, 12
    raw.seek(offset)
    while len(header := raw.read(8)) == 8:
        name, length = struct.unpack("<4sI", header)
        offset += 8
        if name == b"data":
            if length < _UNKNOWN_LENGTH and offset + length > size:
                raise UserError(
                    f"{_WHAT} {source.name} is cut short: {size - offset} of {length} bytes of sound; "
                    "copy or export it again"
                )
            return
        offset += length + length % 2
        raw.seek(offset)
