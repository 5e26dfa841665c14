"""Media as users hold them: paths, bytes, arrays and PIL pictures to what the model takes, and answers to save."""

import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from omnidiff_jax.errors import UserError
from omnidiff_jax.media.audio import read_audio, wav_bytes, write_wav
from omnidiff_jax.media.image import read_image, to_rgb
from omnidiff_jax.media.speech import ChannelMix
from omnidiff_jax.records import Waveform

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Audio:
    """Speech of an answer.

    Attributes:
        samples: float32 [n], in [-1, 1].
        rate: samples per second, Hz.
    """

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes 16-bit wav, whole or not at all."""
        write_wav(path, Waveform(self.samples, self.rate))

    def wav(self) -> bytes:
        """A 16-bit wav file in memory."""
        return wav_bytes(Waveform(self.samples, self.rate))


def to_image(value: Any) -> np.ndarray:
    """uint8 [H, W, 3] of a path, a file's bytes, a PIL image, or an array.

    Args:
        value: an array is uint8 [H, W] (grey), [H, W, 3] or [H, W, 4] (laid on white), or float in [0, 1].

    Raises:
        UserError: something else, or a file that cannot be used.
    """
    if isinstance(value, str | os.PathLike):
        return read_image(value)
    if isinstance(value, bytes | bytearray):
        return _through_a_file(bytes(value), read_image, "an image in memory")
    if isinstance(value, Image.Image):
        return _from_pil(value)
    array = np.asarray(value)
    if array.dtype.kind == "f" and array.size and np.isfinite(array).all() and 0 <= array.min() and array.max() <= 1:
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise UserError(
            f"an image of {array.dtype} {list(array.shape)} cannot be used; give a path, bytes, a PIL image, or an "
            "array uint8 [H, W, 3]"
        )
    if not array.size:
        raise UserError(f"an image of shape {list(array.shape)} has no pixels")
    return _from_pil(Image.fromarray(array))


def to_audio(value: Any) -> Waveform:
    """A waveform of a path, a file's bytes, `Audio`, `Waveform` or (samples, rate); several channels are averaged.

    Raises:
        UserError: something else, or a file that cannot be used.
    """
    if isinstance(value, str | os.PathLike):
        return read_audio(value)
    if isinstance(value, bytes | bytearray):
        return _through_a_file(bytes(value), read_audio, "audio in memory")
    if isinstance(value, Audio):
        return Waveform(value.samples, value.rate)
    if isinstance(value, Waveform):
        return value
    if isinstance(value, tuple) and len(value) == 2:
        samples, rate = np.asarray(value[0]), value[1]
        if samples.dtype.kind in "iu":
            samples = samples / np.float32(np.iinfo(samples.dtype).max)
        if samples.ndim == 2:
            samples = samples if samples.shape[0] > samples.shape[1] else samples.T
            mix = ChannelMix(samples.shape[1])
            samples = mix(samples)
            mix.check()
        if samples.ndim == 1 and len(samples) and np.isfinite(samples).all() and isinstance(rate, int) and rate > 0:
            return Waveform(np.clip(samples, -1, 1).astype(np.float32), rate)
    raise UserError(
        f"audio of type {type(value).__name__} cannot be used; give a path, bytes, or (samples float32 [n], rate in Hz)"
    )


def to_hole(value: Any, size: int) -> np.ndarray:
    """bool [size, size] of a box (left, top, right, bottom) in pixels of the model's picture, or of an array.

    Raises:
        UserError: not a box inside the picture, or an array of another shape.
    """
    array = np.asarray(value)
    if array.shape == (size, size):
        return array.astype(bool)
    if array.shape != (4,) or array.dtype.kind not in "iu":
        raise UserError(
            f"hole = {value} must be four whole numbers (left, top, right, bottom) or bool [{size}, {size}]"
        )
    left, top, right, bottom = (int(edge) for edge in array)
    if not (0 <= left < right <= size and 0 <= top < bottom <= size):
        raise UserError(f"hole = {value} must be a box inside the model's picture of {size} x {size} pixels")
    hole = np.zeros((size, size), bool)
    hole[top:bottom, left:right] = True
    return hole


def _from_pil(image: Image.Image) -> np.ndarray:
    try:
        return to_rgb(image, dict(getattr(image, "tag_v2", {})))
    except UserError as error:
        raise UserError(f"the image {error}") from error


def _through_a_file(content: bytes, read: Callable[[Path], T], what: str) -> T:
    """Reads bytes with all that is checked of a file; the message names no folder of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "medium"
        file.write_bytes(content)
        try:
            return read(file)
        except UserError as error:
            raise UserError(str(error).replace(str(file), f"({what})")) from error
