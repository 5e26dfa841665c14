"""Image files as uint8 RGB, whatever they were stored as."""

import dataclasses
import io
import os
import struct
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from omnidiff_jax.errors import UserError
from omnidiff_jax.files import write_bytes
from omnidiff_jax.media.opened import AnyMedium, Opened, opened

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_WHAT = "image"
# Tags of TIFF, and what they say (TIFF 6.0).
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _UNSIGNED = 0, 1


@dataclasses.dataclass(frozen=True)
class ImageLimits:
    """What `read_image` accepts; checked on the header, before anything is decoded."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 64_000_000


def read_image(medium: AnyMedium, limits: ImageLimits = ImageLimits()) -> np.ndarray:
    """Reads png, jpeg, webp, bmp, gif or tiff (the first frame), turned as its EXIF orientation says.

    Grey, palette, CMYK and deep images become 8-bit RGB (`to_rgb`); transparent ones are laid on white.

    Returns:
        uint8 [H, W, 3].

    Raises:
        UserError: the file is missing, empty, not an image, damaged, over a limit, or of pixels without a known scale.
    """
    with opened(medium, _WHAT, limits.max_bytes) as source:
        return _decode(source, limits)


def _decode(source: Opened, limits: ImageLimits) -> np.ndarray:
    file = source.name
    try:
        # Pillow's own warnings (size, odd tags) would come on top of the one line said here.
        with warnings.catch_warnings(action="ignore"), Image.open(source.file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > limits.max_pixels:
                raise UserError(f"is {width}x{height}, over {limits.max_pixels / 1e6:g} million pixels; scale it down")
            image.load()
            tags = dict(getattr(image, "tag_v2", {}))
            ImageOps.exif_transpose(image, in_place=True)  # a large picture is held as few times as can be
            return to_rgb(image, tags)
    except UserError as error:
        raise UserError(f"{_WHAT} {file} {error}") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{_WHAT} {file} is not a readable image; give a {', '.join(FORMATS).lower()} file") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{_WHAT} {file} has too many pixels ({error}); scale it down") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, struct.error) as error:
        raise UserError(f"{_WHAT} {file} is damaged ({error}); copy or export it again") from error


def write_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Writes uint8 [H, W, 3], whole or not at all; missing folders are made.

    Raises:
        UserError: the file cannot be written.
    """
    write_bytes(path, png_bytes(image))


def png_bytes(image: np.ndarray) -> bytes:
    """A png file in memory from uint8 [H, W, 3]."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"an image is uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def to_rgb(image: Image.Image, tags: Mapping[int, Any] | None = None) -> np.ndarray:
    """Pixels of any mode as uint8 [H, W, 3], transparent ones laid on white.

    Args:
        image: upright, in memory.
        tags: of the TIFF file that it is from: how deep its pixels are, signed or not, and whether 0 is white.

    Raises:
        UserError: pixels whose black and white nobody can tell: floating-point, signed, or 32 bits that use little of
            their range; or a mode that is no colour. The message begins with a verb: the caller names the image.
    """
    if image.mode == "F":
        raise UserError("has floating-point pixels (mode F), which have no agreed scale; export it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = _scaled(np.asarray(image), image.mode, dict(tags or {}))
        return np.repeat(grey[..., None], 3, axis=2)
    try:
        if image.has_transparency_data:
            layered = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except ValueError as error:
        raise UserError(f"has pixels of mode {image.mode} ({error}); export it as RGB") from error


def _scaled(pixels: np.ndarray, mode: str, tags: dict[int, Any]) -> np.ndarray:
    """Deep grey as uint8; Pillow would clip it at 255."""
    (bits, *_), (kind, *_) = tags.get(_BITS, (16 if mode != "I" else 32,)), tags.get(_SAMPLE_FORMAT, (None,))
    if mode == "I" and kind != _UNSIGNED:
        signed = "signed" if tags else "32-bit"
        raise UserError(f"has {signed} pixels (mode I), whose black is unknown; export it with 8 or 16 bits")
    if mode == "I":
        pixels = pixels.astype(np.uint32)  # Pillow keeps them in signed ones
        if pixels.max(initial=0) < 1 << 24:
            raise UserError(
                f"has 32-bit pixels (mode I) of which none is over {int(pixels.max(initial=0))}, 1/256 of their "
                "range: its scale is unclear; export it with 8 or 16 bits"
            )
    grey = np.round(pixels.astype(np.float64) * (255 / (2**bits - 1))).astype(np.uint8)
    return 255 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey


def is_plain(image: np.ndarray, contrast: int = 40) -> bool:
    """Whether a picture, uint8 [H, W, 3], is of one colour: no channel spreads over more than `contrast` levels, one
    pixel in a hundred at either end left out."""
    low, high = np.percentile(image.reshape(-1, image.shape[-1]), (1, 99), axis=0)
    return bool((high - low <= contrast).all())
