"""Recordings that clients send, and speech in the forms that they ask for."""

import io
from collections.abc import Callable

import numpy as np
import soundfile

from omnidiff_jax.errors import UserError
from omnidiff_jax.media.audio import AudioLimits, read_audio, wav_bytes
from omnidiff_jax.media.features import resample
from omnidiff_jax.records import Medium, Waveform
from omnidiff_jax.serving.limits import Limits

# What a Matroska file, WebM among them, begins with.
_EBML = b"\x1a\x45\xdf\xa3"
# OpenAI's raw samples: 16 bits, mono.
PCM_RATE = 24_000
_OPUS_RATE = 48_000


def read_sound(content: bytes, name: str, limits: Limits) -> Waveform:
    """A recording: wav, flac, ogg, opus, mp3, or WebM as browsers record it.

    Raises:
        UserError: anything else, a damaged one, or one over the limits.
    """
    if content[:4] == _EBML:
        return _read_webm(content, name, limits.seconds)
    return read_audio(
        Medium(name, content=content), limits=AudioLimits(max_bytes=limits.body, max_seconds=limits.seconds)
    )


def _read_webm(content: bytes, name: str, most: float) -> Waveform:
    # Of the extra alone: a server whose clients send WebM.
    import av

    parts, length = [], 0
    try:
        # The format is named: a playlist, say, would make it open other files.
        with av.open(io.BytesIO(content), "r", format="matroska") as container:
            if not container.streams.audio:
                raise UserError(f"{name} holds no sound; record it anew")
            stream = container.streams.audio[0]
            rate = int(stream.rate or _OPUS_RATE)
            mono = av.AudioResampler(format="flt", layout="mono", rate=rate)
            for frame in container.decode(stream):
                for piece in mono.resample(frame):
                    parts.append(piece.to_ndarray().reshape(-1))
                    length += len(parts[-1])
                if length > most * rate:
                    raise UserError(f"{name} is longer than the limit of {most:g} s; cut it")
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"{name} is not readable WebM ({error}); record it anew, or send wav") from error
    samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if not len(samples) or not np.isfinite(samples).all():
        raise UserError(f"{name} holds no usable samples; record it anew")
    return Waveform(np.clip(samples, -1, 1).astype(np.float32), rate)


def _pcm(wave: Waveform) -> bytes:
    samples = resample(wave.samples, wave.rate, PCM_RATE)
    return np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def _coded(kind: str, subtype: str, rate: int | None = None) -> Callable[[Waveform], bytes]:
    def encode(wave: Waveform) -> bytes:
        to = rate or wave.rate
        buffer = io.BytesIO()
        samples = np.clip(resample(wave.samples, wave.rate, to), -1, 1)
        soundfile.write(buffer, samples, to, format=kind, subtype=subtype)
        return buffer.getvalue()

    return encode


# Form -> media type, and how a waveform is written in it.
FORMATS: dict[str, tuple[str, Callable[[Waveform], bytes]]] = {
    "wav": ("audio/wav", wav_bytes),
    "flac": ("audio/flac", _coded("FLAC", "PCM_16")),
    "mp3": ("audio/mpeg", _coded("MP3", "MPEG_LAYER_III")),
    "opus": ("audio/ogg", _coded("OGG", "OPUS", _OPUS_RATE)),
    "pcm": ("audio/pcm", _pcm),
}
FORMATS["pcm16"] = FORMATS["pcm"]
