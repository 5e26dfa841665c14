"""Pictures back to scenes by classical image analysis: the judge of generated images, no model of ours in it.

The background is the median colour along the borders of the quadrants, which no object reaches. In each quadrant the
pixels that stand out most give the object's colour; how far each pixel has gone from the background to that colour is
its coverage; shape and size are those of the drawing, sharp or blurred, that overlaps this coverage best. An object
whose colour or outline resembles none is unclear, and not rounded to the nearest.
"""

import functools

import numpy as np
import scipy.ndimage
from PIL import Image

from data_pipelines.scenes.render import IMAGE_SIZE, RGB, coverage, place_box
from data_pipelines.scenes.scene import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Scene, Thing

HALF = IMAGE_SIZE // 2
MIN_AREA = 30.0  # pixels, about a third of the smallest object
MIN_CONTRAST = 45.0  # RGB distance from which on a pixel stands out of the background
MAX_COLOR_ERROR = 50.0  # RGB distance of an object from its colour, washed out as it may be
MIN_WASH = 0.6  # share of its colour that a washed-out object must have
MIN_OVERLAP = 0.7  # intersection over union of the object and its drawing
_SMOOTHING = 0.8  # pixels; applied to the picture, against grain
_BLURS = (0.8, 1.4, 2.2)  # pixels; of the drawings
_SHIFTS = range(-2, 3)  # pixels that an object may be off its quadrant's centre


def unclear(place: str) -> Thing:
    """What stands for an object that cannot be named; it equals no object of any scene."""
    return Thing("unclear", "unclear", "unclear", place)


def _border() -> np.ndarray:
    """bool [IMAGE_SIZE, IMAGE_SIZE]: within two pixels of an edge of a quadrant."""
    axis = np.arange(IMAGE_SIZE) % HALF
    edge = (axis < 2) | (axis >= HALF - 2)
    return edge[:, None] | edge[None, :]


@functools.lru_cache(maxsize=1)
def _drawings() -> tuple[tuple[tuple[str, str, int, int], ...], np.ndarray]:
    """Every size, shape and shift, once for each blur, and their coverages, float32 [n, HALF * HALF]."""
    keys = tuple((size, shape, dx, dy) for size in SIZES for shape in SHAPES for dx in _SHIFTS for dy in _SHIFTS)
    masks = np.stack([coverage(shape, size, dx, dy, HALF)[..., 0] for size, shape, dx, dy in keys])
    blurred = [scipy.ndimage.gaussian_filter(masks, (0, blur, blur)) for blur in _BLURS]
    return keys * len(_BLURS), np.concatenate(blurred).reshape(-1, HALF * HALF)


def _color(difference: np.ndarray, background: np.ndarray) -> tuple[str, float]:
    """The colour whose distance from the background is most like the given one, and how unlike it is."""
    errors = {}
    for name in COLORS:
        target = np.array(RGB[name]) - background
        wash = np.clip(difference @ target / (target @ target), MIN_WASH, 1.2)
        errors[name] = float(np.linalg.norm(difference - wash * target))
    best = min(errors, key=errors.__getitem__)
    return best, errors[best]


def _parse_quadrant(patch: np.ndarray, place: str, background: np.ndarray) -> Thing | None:
    """The object of one quadrant, float32 [HALF, HALF, 3]; None if nothing is there."""
    difference = patch.reshape(-1, 3) - background
    contrast = np.linalg.norm(difference, axis=1)
    foreground = contrast > MIN_CONTRAST
    if foreground.sum() < MIN_AREA:
        return None
    core = contrast >= np.quantile(contrast[foreground], 0.6)  # without the blended outline
    direction = np.median(difference[core], axis=0)
    color, error = _color(direction, background)
    if error > MAX_COLOR_ERROR:
        return unclear(place)
    along = np.clip(difference @ direction / (direction @ direction), 0.0, 1.0)
    off = np.linalg.norm(difference - along[:, None] * direction, axis=1)
    covered = np.where(off > 1.5 * MIN_CONTRAST, 1.0, along).astype(np.float32)  # another colour is covered too
    keys, masks = _drawings()
    overlap = np.minimum(masks, covered).sum(axis=1) / np.maximum(masks, covered).sum(axis=1)
    best = int(np.argmax(overlap))
    if overlap[best] < MIN_OVERLAP:
        return unclear(place)
    size, shape, dx, dy = keys[best]
    return Thing(size, color, shape, place, dx, dy)


def parse_scene(image: np.ndarray) -> Scene:
    """The scene in a picture.

    Args:
      image: uint8 [H, W, 3] of any size; it is looked at in IMAGE_SIZE.

    Returns:
      The scene; an object that cannot be named is `unclear(place)`.
    """
    if image.shape[:2] != (IMAGE_SIZE, IMAGE_SIZE):
        image = np.asarray(Image.fromarray(image).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX))
    pixels = scipy.ndimage.gaussian_filter(image.astype(np.float32), (_SMOOTHING, _SMOOTHING, 0))
    background = np.median(pixels[_border()], axis=0)
    things = (_parse_quadrant(pixels[place_box(place)], place, background) for place in PLACES)
    name = min(BACKGROUNDS, key=lambda color: float(np.linalg.norm(background - RGB[color])))
    return Scene(tuple(thing for thing in things if thing), name)
