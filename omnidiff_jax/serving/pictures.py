"""Pictures that clients send and get, and a hole in one of any size, painted by a model of one size."""

import dataclasses
import io
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from omnidiff_jax.errors import UserError
from omnidiff_jax.media.image import FORMATS, ImageLimits, read_image
from omnidiff_jax.records import Medium
from omnidiff_jax.serving.limits import Limits

# Modes of which RGB, with alpha beside it, keeps every pixel as it is seen.
_OPTIONS: dict[str, dict[str, Any]] = {"webp": {"lossless": True}, "jpeg": {"quality": 95}}
_EXACT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")


def read_picture(content: bytes, name: str, limits: Limits) -> np.ndarray:
    """uint8 [H, W, 3] of a file's bytes, upright, transparent ones laid on white.

    Raises:
        UserError: no picture, a damaged one, or one over the limits.
    """
    return read_image(Medium(name, content=content), ImageLimits(limits.body, limits.pixels))


def file_of(picture: np.ndarray | Image.Image, form: str) -> bytes:
    """A picture, uint8 [H, W, 3] or of Pillow's, as a png, jpeg or webp file; png and webp lose nothing."""
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    buffer = io.BytesIO()
    (image.convert("RGB") if form == "jpeg" else image).save(buffer, format=form.upper(), **_OPTIONS.get(form, {}))
    return buffer.getvalue()


def with_alpha(picture: np.ndarray, alpha: np.ndarray) -> Image.Image:
    """uint8 [H, W, 3] and uint8 [H, W] as one picture."""
    return Image.fromarray(np.dstack([picture, alpha]))


@dataclasses.dataclass(frozen=True)
class Hole:
    """A picture with a part to be drawn anew, and the square of it that a model sees.

    Attributes:
        picture: uint8 [H, W, 3], upright, in the user's own pixels.
        alpha: uint8 [H, W], or None where the picture has none.
        edit: bool [H, W], True where it is to be drawn.
        box: (left, top, side) of the square around the hole; it may stand out of the picture where the hole is longer
            than the picture's short side.
    """

    picture: np.ndarray
    alpha: np.ndarray | None
    edit: np.ndarray
    box: tuple[int, int, int]

    def seen(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The square as a model of `size` sees it: uint8 [size, size, 3], and bool [size, size], True in every pixel
        that the hole touches. What stands out of the picture repeats its edge."""
        left, top, side = self.box
        rows, columns = (
            np.clip(np.arange(side) + at, 0, n - 1) for at, n in zip((top, left), self.edit.shape, strict=True)
        )
        square = Image.fromarray(self.picture[rows[:, None], columns])
        edges = np.arange(size + 1) * side / size
        first, last = np.floor(edges[:-1]).astype(int), np.maximum(np.ceil(edges[1:]), 1).astype(int)
        counts = np.zeros((side + 1, side + 1), np.int64)
        counts[1:, 1:] = self.edit[rows[:, None], columns].cumsum(0).cumsum(1)
        within = counts[np.ix_(last, last)] - counts[np.ix_(first, last)]
        within += counts[np.ix_(first, first)] - counts[np.ix_(last, first)]
        return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS)), within > 0

    def filled(self, drawn: np.ndarray) -> Image.Image:
        """The user's picture with the hole filled from the model's, uint8 [size, size, 3]; every other pixel is as it
        was, bit for bit."""
        left, top, side = self.box
        large = np.asarray(Image.fromarray(drawn).resize((side, side), Image.Resampling.BICUBIC))
        out = self.picture.copy()
        rows, columns = np.nonzero(self.edit)
        out[rows, columns] = large[rows - top, columns - left]
        if self.alpha is None:
            return Image.fromarray(out)
        return with_alpha(out, np.where(self.edit, np.uint8(255), self.alpha))


def read_hole(picture: bytes, mask: bytes | None, limits: Limits) -> Hole:
    """A picture and what of it is to be drawn anew.

    Args:
        picture: a file; its own transparent pixels are the hole where there is no mask.
        mask: a file of the picture's size as it is seen, whose pixels of alpha 0 are the hole.

    Raises:
        UserError: files that cannot be used, a mask of another size or without alpha, or no hole.
    """
    image = _upright(picture, "image", limits)
    if image.mode not in _EXACT:
        raise UserError(f"image has pixels of mode {image.mode}, which cannot be given back as they are; send RGB")
    alpha = np.asarray(image.convert("RGBA"))[..., 3] if image.has_transparency_data else None
    pixels = np.array(image.convert("RGBA").convert("RGB") if alpha is not None else image.convert("RGB"))
    if mask is None:
        if alpha is None:
            raise UserError("mask is missing, and the image has no transparent pixels; send a png with alpha 0 to edit")
        edit = alpha == 0
    else:
        given = _upright(mask, "mask", limits)
        if given.size != image.size:
            raise UserError(
                f"mask is {given.width}x{given.height}, the image is {image.width}x{image.height} as it is seen; "
                "they must be of one size"
            )
        if not given.has_transparency_data:
            raise UserError("mask has no alpha channel; the hole is where alpha is 0, whatever the colour")
        edit = np.asarray(given.convert("RGBA"))[..., 3] == 0
    if not edit.any():
        raise UserError("mask has no pixel of alpha 0, so there is nothing to edit")
    return Hole(pixels, alpha, edit, _square(edit))


def _upright(content: bytes, name: str, limits: Limits) -> Image.Image:
    read_picture(content, f"({name})", limits)  # with every check, and the words of what is wrong
    with warnings.catch_warnings(action="ignore"):
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        image.load()
        return ImageOps.exif_transpose(image)


def _square(edit: np.ndarray) -> tuple[int, int, int]:
    """(left, top, side): as much of the picture as a square holds, with all of the hole in it."""
    low, high = zip(
        *((found[0], found[-1] + 1) for found in map(np.flatnonzero, (edit.any(1), edit.any(0)))), strict=True
    )
    side = max(min(edit.shape), *(int(b - a) for a, b in zip(low, high, strict=True)))
    corner = []
    for first, last, length in zip(low, high, edit.shape, strict=True):
        at = int(first + last - side) // 2
        corner.append(min(max(at, 0), length - side) if side <= length else -((side - length) // 2))
    return corner[1], corner[0], side
