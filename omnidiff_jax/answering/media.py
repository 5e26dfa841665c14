"""Media as users hold them: paths, files, bytes, arrays and PIL pictures to what the model takes; answers to save."""

import base64
import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from omnidiff_jax.answering.asked import location, shown, whole
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.audio import AudioLimits, read_audio, wav_bytes, write_wav
from omnidiff_jax.media.image import read_image, to_rgb
from omnidiff_jax.media.speech import ChannelMix
from omnidiff_jax.records import Waveform

T = TypeVar("T")
_LIMITS = AudioLimits()
# PCM of integers: what each takes for silence.
_SILENCE = {"uint8": 128, "int8": 0, "int16": 0, "int32": 0}
# Resampling overshoots full scale; beyond this samples were never scaled to it.
_OVERSHOOT = 1.25
_SPEECH = "(samples, rate in Hz), the samples floats in [-1, 1] or PCM uint8, int8, int16 or int32"


@dataclasses.dataclass(frozen=True)
class Audio:
    """Speech of an answer.

    Attributes:
        samples: float32 [n], in [-1, 1].
        rate: samples per second, Hz.
    """

    samples: np.ndarray
    rate: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", _rate(self.rate))

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes 16-bit wav, whole or not at all, here or in a bucket (`gs://…`, `s3://…`); missing folders are made.

        Raises:
            UserError: a name that does not end with .wav, or a place that cannot be written.
        """
        write_wav(location(path, "path"), Waveform(self.samples, self.rate))

    def wav(self) -> bytes:
        """A 16-bit wav file in memory."""
        return wav_bytes(Waveform(self.samples, self.rate))

    def _repr_html_(self) -> str:
        """A player, in notebooks."""
        return f'<audio controls src="data:audio/wav;base64,{base64.b64encode(self.wav()).decode()}"></audio>'


def to_image(value: Any) -> np.ndarray:
    """uint8 [H, W, 3] of a path, an open file, a file's bytes, a PIL image, or an array.

    Args:
        value: an array is uint8 [H, W] (grey), [H, W, 3] or [H, W, 4] (laid on white), or float in [0, 1].

    Raises:
        UserError: something else, or a file that cannot be used.
    """
    if isinstance(value, str | os.PathLike):
        return read_image(value)
    if isinstance(value, Image.Image):
        return _from_pil(value)
    content = _content(value, "an image")
    if content is not None:
        return _through_a_file(content, read_image, "an image in memory")
    array = _array(value, "an image")
    if array.dtype.kind == "f" and array.size and np.isfinite(array).all() and 0 <= array.min() and array.max() <= 1:
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        what = f"{array.dtype} {list(array.shape)}" if array.dtype != object else f"type {type(value).__name__}"
        raise UserError(
            f"an image of {what} cannot be used; give a path, an open file, bytes, a PIL image, or an array uint8 "
            "[H, W, 3]"
        )
    if not array.size:
        raise UserError(f"an image of shape {list(array.shape)} has no pixels")
    return _from_pil(Image.fromarray(array))


def to_audio(value: Any) -> Waveform:
    """A waveform of a path, an open file, a file's bytes, `Audio`, `Waveform` or (samples, rate).

    Args:
        value: samples are floats in [-1, 1] or PCM (uint8, int8, int16, int32), [n] or with channels, which are
            averaged.

    Raises:
        UserError: something else, or a file that cannot be used.
    """
    if isinstance(value, str | os.PathLike):
        return read_audio(value)
    content = _content(value, "audio")
    if content is not None:
        return _through_a_file(content, read_audio, "audio in memory")
    if isinstance(value, Audio | Waveform):
        value = value.samples, value.rate
    if not isinstance(value, tuple) or len(value) != 2:
        raise UserError(
            f"audio of type {type(value).__name__} cannot be used; give a path, an open file, bytes, or {_SPEECH}"
        )
    samples = _array(value[0], "audio")
    if samples.ndim not in (1, 2) or not samples.size:
        raise UserError(f"audio samples of shape {list(samples.shape)} cannot be used; give [n] or [n, channels]")
    return Waveform(_mono(_scaled(samples)), _rate(value[1]))


def _rate(value: Any) -> int:
    return whole(value, "the rate of audio in Hz", _LIMITS.min_rate, _LIMITS.max_rate)


def _scaled(samples: np.ndarray) -> np.ndarray:
    """float32 samples in [-1, 1] of any shape."""
    silence = _SILENCE.get(samples.dtype.name)
    if silence is not None:
        return ((samples.astype(np.float64) - silence) / 2.0 ** (8 * samples.dtype.itemsize - 1)).astype(np.float32)
    if samples.dtype.kind != "f":
        raise UserError(f"audio samples of {samples.dtype} have no known scale; give {_SPEECH}")
    if not np.isfinite(samples).all():
        raise UserError("audio holds NaN or infinite samples; export it again")
    peak = float(np.abs(samples).max())
    if peak > _OVERSHOOT:
        raise UserError(f"audio peaks at {peak:.4g}, where samples lie in [-1, 1]; scale it down")
    return np.clip(samples, -1, 1).astype(np.float32)


def _mono(samples: np.ndarray) -> np.ndarray:
    """[n] of samples [n], [n, channels] or [channels, n]."""
    if samples.ndim == 1:
        return samples
    samples = samples if samples.shape[0] > samples.shape[1] else samples.T
    if samples.shape[1] > _LIMITS.max_channels:
        raise UserError(f"audio has {samples.shape[1]} channels, over {_LIMITS.max_channels}; mix it down")
    mix = ChannelMix(samples.shape[1])
    mean = mix(samples)
    mix.check()
    return mean


def to_hole(value: Any, size: int) -> np.ndarray:
    """bool [size, size] of a box (left, top, right, bottom) in pixels of the model's picture, or of an array.

    Raises:
        UserError: not a box inside the picture, or an array of another shape.
    """
    array = _array(value, "hole")
    if array.shape == (size, size):
        return array.astype(bool)
    if array.shape != (4,) or array.dtype.kind not in "iu":
        raise UserError(
            f"hole = {shown(value)} must be four whole numbers (left, top, right, bottom) or bool [{size}, {size}]"
        )
    left, top, right, bottom = (int(edge) for edge in array)
    if not (0 <= left < right <= size and 0 <= top < bottom <= size):
        raise UserError(f"hole = {value} must be a box inside the model's picture of {size} x {size} pixels")
    hole = np.zeros((size, size), bool)
    hole[top:bottom, left:right] = True
    return hole


def _from_pil(image: Image.Image) -> np.ndarray:
    if 0 in image.size:
        raise UserError(f"an image of {image.width}x{image.height} has no pixels")
    try:
        return to_rgb(image, dict(getattr(image, "tag_v2", {})))
    except UserError as error:
        raise UserError(f"the image {error}") from error
    except (OSError, ValueError, SyntaxError) as error:  # pictures are read from their files when they are needed
        raise UserError(f"the image cannot be read ({error}); open it again, or give its path") from error


def _content(value: Any, what: str) -> bytes | None:
    """What a file holds that is given as bytes or open, from its beginning; None for what is neither."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not callable(getattr(value, "read", None)):
        return None
    try:
        if value.seekable():
            value.seek(0)
        content = value.read()
    except (AttributeError, OSError, ValueError) as error:
        raise UserError(
            f"{what} cannot be read from {shown(value)} ({error}); give an open file, or its path"
        ) from error
    if not isinstance(content, bytes):
        raise UserError(f"{what} was opened as text; open its file with mode 'rb'")
    return content


def _array(value: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).partition(". ")[0]
        raise UserError(
            f"{what} of type {type(value).__name__} is no array ({reason}); give rows of one length"
        ) from error


def _through_a_file(content: bytes, read: Callable[[Path], T], what: str) -> T:
    """Reads bytes with all that is checked of a file; the message names no folder of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "medium"
        file.write_bytes(content)
        try:
            return read(file)
        except UserError as error:
            raise UserError(str(error).replace(str(file), f"({what})")) from error
