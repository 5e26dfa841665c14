"""Emoji as pictures: RGBA of either style on a plain ground, uint8 [64, 64, 3].

What is looked at comes in three sizes, mirrored or not, on one of several grounds, and at places in steps of a code's
8 pixels, so that a tokenizer whose codes look at their own patch sees a thing in few ways. What is to be drawn is the
whole picture on white.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from omnidiff_jax.errors import UserError
from omnidiff_jax.fetching import local_copy
from omnidiff_jax.records import stable_id

SIZE = 64  # pixels of a picture, per side
STEP = 8  # pixels between places
SIZES = (48, 56, 64)
GROUNDS = (
    (255, 255, 255),
    (24, 24, 32),
    (200, 224, 248),
    (248, 236, 204),
    (208, 236, 208),
)
_TEST = 8  # one rendering in this many is never learned
_LARGEST = 1 << 20  # bytes of a file


@dataclasses.dataclass(frozen=True)
class Rendering:
    """How a thing is shown.

    Attributes:
        size: pixels per side, of SIZES.
        down, across: steps of 8 pixels from the top left corner.
        mirrored: whether left and right are changed.
        ground: number of its colour in GROUNDS.
    """

    size: int = SIZE
    down: int = 0
    across: int = 0
    mirrored: bool = False
    ground: int = 0

    def held_out(self, name: str) -> bool:
        """Whether this rendering of a picture is kept for tests; the one that is drawn never is."""
        key = (self.size, self.down, self.across, int(self.mirrored), self.ground)
        return self != DRAWN and stable_id("commons rendering", name, *key) % _TEST == 0


DRAWN = Rendering()


def draw_rendering(rng: np.random.Generator, name: str, held_out: bool) -> Rendering:
    """A rendering of a picture, of those that are kept for tests or of the others."""
    while True:
        size = SIZES[rng.integers(len(SIZES))]
        down, across = (int(place) for place in rng.integers((SIZE - size) // STEP + 1, size=2))
        rendering = Rendering(size, down, across, bool(rng.random() < 0.5), int(rng.integers(len(GROUNDS))))
        if rendering.held_out(name) == held_out:
            return rendering


def picture_file(folder: Path, style: str, name: str) -> Path:
    return folder / style / "pictures" / name


def picture(folder: Path, style: str, name: str, rendering: Rendering = DRAWN) -> np.ndarray:
    """A picture, uint8 [64, 64, 3].

    Args:
        folder: that has `STYLE/pictures/NAME`.
        style: whose drawing it is.
        name: of the file.
        rendering: how it is shown.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    shown = _scaled(str(picture_file(folder, style, name)), rendering.size)
    if rendering.mirrored:
        shown = shown[:, ::-1]
    drawn = np.empty((SIZE, SIZE, 3), np.float32)
    drawn[:] = GROUNDS[rendering.ground]
    top, left = STEP * rendering.down, STEP * rendering.across
    place = drawn[top : top + rendering.size, left : left + rendering.size]
    place *= 1.0 - shown[..., 3:]
    place += shown[..., :3]
    return np.clip(np.round(drawn), 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=4096)
def _scaled(file: str, size: int) -> np.ndarray:
    """float32 [size, size, 4]: colours times their cover, 0 .. 255, and the cover, 0 .. 1."""
    place = local_copy(file)
    try:
        if place.stat().st_size > _LARGEST:
            raise ValueError(f"over {_LARGEST} bytes")
        with Image.open(place, formats=("PNG",)) as image:
            if max(image.size) > 4 * SIZE:
                raise ValueError(f"{image.size[0]} x {image.size[1]} pixels")
            # Pillow weighs colours with their cover when it scales RGBA.
            layered = image.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
    except FileNotFoundError as error:
        style = Path(file).parts[-3]
        how = f"get it by `omnidiff data fetch commons DIR --part={style}`"
        raise UserError(f"picture {file} is missing; {how}") from error
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"picture {file} cannot be read ({error}); fetch it again") from error
    found = np.asarray(layered, np.float32)
    cover = found[..., 3:] / 255.0
    scaled = np.concatenate([found[..., :3] * cover, cover], axis=-1)
    scaled.setflags(write=False)
    return scaled
