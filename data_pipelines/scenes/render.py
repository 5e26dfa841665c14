"""Scenes as pictures: anti-aliased drawing in numpy."""

import functools

import numpy as np

from data_pipelines.scenes.scene import PLACES, Scene, Thing

IMAGE_SIZE = 64  # the size in which Thing's offsets and RADIUS are measured

RGB = {
    "red": (222, 34, 40),
    "green": (30, 160, 70),
    "blue": (40, 80, 225),
    "yellow": (245, 215, 30),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
RADIUS = {"small": 9.0, "big": 13.5}  # half the extent of the shape


def _signed_distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Distance to the outline (approximate at corners), negative inside; y points down."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.9 * radius
    # Triangle: apex up, base 2 * radius wide, as high as wide.
    edge = (2.0 * abs(x) - y - radius) / np.sqrt(5.0)
    return np.maximum(edge, np.maximum(abs(x), abs(y)) - radius)


@functools.lru_cache(maxsize=1024)
def coverage(shape: str, size: str, dx: int, dy: int, half: int) -> np.ndarray:
    """Share of each pixel of a half x half quadrant that the object covers, float32 [half, half, 1]."""
    scale = 2 * half / IMAGE_SIZE
    axis = np.arange(half) + 0.5 - half / 2
    x, y = axis[None, :] - dx * scale, axis[:, None] - dy * scale
    distance = _signed_distance(shape, x, y, RADIUS[size] * scale)
    covered = np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)[..., None]
    covered.setflags(write=False)
    return covered


def place_box(place: str, size: int = IMAGE_SIZE) -> tuple[slice, slice]:
    """Rows and columns of a place's quadrant in a size x size picture."""
    half = size // 2
    vertical, horizontal = divmod(PLACES.index(place), 2)
    return slice(vertical * half, vertical * half + half), slice(horizontal * half, horizontal * half + half)


def _paint(image: np.ndarray, thing: Thing) -> None:
    rows, columns = place_box(thing.place, len(image))
    patch = image[rows, columns]
    covered = coverage(thing.shape, thing.size, thing.dx, thing.dy, len(image) // 2)
    color = np.array(RGB[thing.color], np.float32)
    patch[...] = np.rint(patch + covered * (color - patch)).astype(np.uint8)


def render(scene: Scene, size: int = IMAGE_SIZE) -> np.ndarray:
    """The scene's picture.

    Args:
      scene: what to draw.
      size: side in pixels, even.

    Returns:
      uint8 [size, size, 3], RGB.
    """
    if size < 2 or size % 2:
        raise ValueError(f"picture size {size} is not a positive even number")
    image = np.empty((size, size, 3), np.uint8)
    image[...] = RGB[scene.background]
    for thing in scene.objects:
        _paint(image, thing)
    return image
