"""Image files as uint8 RGB, whatever they were stored as."""

import dataclasses
import io
import os
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from omnidiff_jax.errors import UserError
from omnidiff_jax.media.paths import check_file, write_bytes

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_WHAT = "image"


@dataclasses.dataclass(frozen=True)
class ImageLimits:
    """What `read_image` accepts; checked on the header, before anything is decoded."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 64_000_000


def read_image(path: str | os.PathLike[str], limits: ImageLimits = ImageLimits()) -> np.ndarray:
    """Reads png, jpeg, webp, bmp, gif or tiff (the first frame), turned as its EXIF orientation says.

    Grey, palette, CMYK and 16-bit images become 8-bit RGB; transparent ones are laid on white.

    Returns:
        uint8 [H, W, 3].

    Raises:
        UserError: the file is missing, empty, not an image, damaged, or over a limit.
    """
    file = Path(path)
    check_file(file, _WHAT, limits.max_bytes)
    try:
        # Pillow's own warnings (size, odd tags) would come on top of the one line said here.
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > limits.max_pixels:
                raise UserError(
                    f"{_WHAT} {file} is {width}x{height}, over {limits.max_pixels / 1e6:g} million pixels; "
                    "scale it down"
                )
            image.load()
            upright = ImageOps.exif_transpose(image)
            return np.array(_to_rgb(upright))
    except UnidentifiedImageError as error:
        raise UserError(f"{_WHAT} {file} is not a readable image; give a {', '.join(FORMATS).lower()} file") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{_WHAT} {file} has too many pixels ({error}); scale it down") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, struct.error) as error:
        raise UserError(f"{_WHAT} {file} is damaged ({error}); copy or export it again") from error


def write_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Writes uint8 [H, W, 3], whole or not at all.

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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow would clip 16-bit grey at 255 instead of scaling it.
        deep = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(np.round(deep / 257.0).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed scale")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return image.convert("RGB")
