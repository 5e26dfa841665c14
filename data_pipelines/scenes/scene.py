"""What a scene is, and how scene number `index` of a split is drawn.

A scene holds one to three objects, each alone in one quadrant of the picture, on a plain background. Scenes are
random access: `sample_scene(index, split)` depends on its arguments only. The three splits are disjoint in two
ways: they are different streams of the generator, and no *content* (the set of objects, whatever the background)
of one split can occur in another. Train and test share the colour-shape pairs; a compositional scene holds at least
one pair of `HELD_OUT_PAIRS`, which occur nowhere else.
"""

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

SHAPES = ("circle", "square", "triangle")
COLORS = ("red", "green", "blue", "yellow")
SIZES = ("small", "big")
PLACES = ("top left", "top right", "bottom left", "bottom right")
BACKGROUNDS = ("white", "black")
SPLITS = ("train", "test", "compositional")

# One colour is withheld from each shape, one shape from three of the four colours: every word stays frequent.
HELD_OUT_PAIRS = frozenset({("red", "triangle"), ("blue", "circle"), ("yellow", "square")})

COUNT_WEIGHTS = (0.40, 0.40, 0.20)
MAX_JITTER = 1
MAX_INDEX = 1 << 32
_TEST_BUCKETS = 8  # one in this many object sets belongs to the test split


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object: words of the lists above, and its offset from the quadrant's centre in 64ths of the picture."""

    size: str
    color: str
    shape: str
    place: str
    dx: int = 0
    dy: int = 0

    def __str__(self) -> str:
        return f"{self.size} {self.color} {self.shape} {self.place}"

    @property
    def kind(self) -> str:
        """Colour and shape, e.g. "red circle"."""
        return f"{self.color} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Scene:
    """Objects in reading order of their places (one per place at most), and the background's colour."""

    objects: tuple[Thing, ...]
    background: str

    def content(self) -> frozenset[str]:
        """The objects without jitter and background: what the judges compare."""
        return frozenset(str(thing) for thing in self.objects)

    def at(self, place: str) -> Thing | None:
        """The object at a place, or None."""
        return next((thing for thing in self.objects if thing.place == place), None)


def generator(*key: int | str) -> np.random.Generator:
    """A counter-based random stream named by its key; equal keys give equal streams on every machine."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    low, high = 0, 0
    for word in words:  # FNV-style mixing of 32-bit words into Philox's 128-bit key
        low = ((low ^ (word & 0xFFFFFFFF)) * 0x100000001B3 + (word >> 32)) % (1 << 64)
        high = ((high + low) * 0x9E3779B97F4A7C15 + 1) % (1 << 64)
    return np.random.Generator(np.random.Philox(key=np.array([low, high], np.uint64)))


def _draw(rng: np.random.Generator, count: int) -> Scene:
    """An unrestricted scene of `count` objects."""
    places = sorted(rng.permutation(len(PLACES))[:count])
    low = [0, 0, 0, -MAX_JITTER, -MAX_JITTER]
    high = [len(SIZES), len(COLORS), len(SHAPES), MAX_JITTER + 1, MAX_JITTER + 1]
    draws = rng.integers(low, high, size=(count, 5))
    things = tuple(
        Thing(SIZES[size], COLORS[color], SHAPES[shape], PLACES[place], int(dx), int(dy))
        for place, (size, color, shape, dx, dy) in zip(places, draws, strict=True)
    )
    return Scene(things, BACKGROUNDS[rng.integers(len(BACKGROUNDS))])


def split_of(scene: Scene) -> str:
    """The only split in which a scene with these objects can occur."""
    if any((thing.color, thing.shape) in HELD_OUT_PAIRS for thing in scene.objects):
        return "compositional"
    return "test" if zlib.crc32("; ".join(map(str, scene.objects)).encode()) % _TEST_BUCKETS == 0 else "train"


def sample_scene(index: int, split: str, weights: Sequence[float] = COUNT_WEIGHTS) -> Scene:
    """Scene number `index` of a split.

    Args:
      index: 0 <= index < 2**32.
      split: "train", "test" or "compositional".
      weights: relative frequency of one, two and three objects.

    Raises:
      ValueError: index or split out of range.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if not 0 <= index < MAX_INDEX:
        raise ValueError(f"index {index} is not in 0..{MAX_INDEX - 1}")
    rng = generator("scene", split, index)
    count = int(np.searchsorted(np.cumsum(weights), rng.random() * sum(weights), side="right")) + 1
    while True:  # one draw in two is a training scene, one in fourteen a test scene
        scene = _draw(rng, count)
        if split_of(scene) == split:
            return scene
