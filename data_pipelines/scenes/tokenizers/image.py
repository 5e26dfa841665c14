"""The image tokenizer's training program over Scenes pictures."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.scenes.render import IMAGE_SIZE, render
from data_pipelines.scenes.scene import (
    BACKGROUNDS,
    COLORS,
    MAX_INDEX,
    MAX_JITTER,
    SHAPES,
    SIZES,
    Scene,
    generator,
    sample_scene,
)
from data_pipelines.scenes.scene_parser import parse_scene
from omnidiff_jax.training.config import TrainingConfig
from omnidiff_jax.training.run import Run
from omnidiff_jax.training.tokenizers.image import ImageTokenizerProgram, ImageTokenizerTraining, Partners, Pictures


def without_jitter(scene: Scene) -> Scene:
    """The scene with every object in the middle of its place."""
    return Scene(tuple(dataclasses.replace(thing, dx=0, dy=0) for thing in scene.objects), scene.background)


# Records draw their scenes from all indices at random; these are as good as any.
_FIRST_LEARNED = 1 << 31


def scene_pictures(splits: Sequence[str], object_counts: Sequence[float], start: int = 0) -> Pictures:
    """(index, count) -> scenes of the splits in turn, as they are seen and without jitter; `start` is scene 0."""

    def pictures(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        scenes = [_scene(splits, object_counts, start, first + row) for row in range(count)]
        return np.stack([render(s) for s in scenes]), np.stack([render(without_jitter(s)) for s in scenes])

    return pictures


def _scene(splits: Sequence[str], object_counts: Sequence[float], start: int, index: int) -> Scene:
    return sample_scene((start + index) % MAX_INDEX, splits[index % len(splits)], object_counts)


def scene_partners(splits: Sequence[str], object_counts: Sequence[float], start: int = 0) -> Partners:
    """To go with `scene_pictures`: first the same forms in other colours, then the same colours in other forms.

    Objects stay at their places, jittered anew. Every colour has every shape, as for the tokenizer itself.
    """

    def partners(first: int, count: int) -> np.ndarray:
        drawn = np.empty((2, count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        for row in range(count):
            scene = _scene(splits, object_counts, start, first + row)
            rng = generator("partners", start, first + row)
            drawn[0, row] = render(_recolored(scene, rng))
            drawn[1, row] = render(_reshaped(scene, rng))
        return drawn

    return partners


def _recolored(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with every colour drawn anew, the background's too."""
    things = tuple(dataclasses.replace(thing, color=COLORS[rng.integers(len(COLORS))]) for thing in scene.objects)
    return _jittered(Scene(things, BACKGROUNDS[rng.integers(len(BACKGROUNDS))]), rng)


def _reshaped(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with every shape and size drawn anew."""
    things = tuple(
        dataclasses.replace(thing, shape=SHAPES[rng.integers(len(SHAPES))], size=SIZES[rng.integers(len(SIZES))])
        for thing in scene.objects
    )
    return _jittered(Scene(things, scene.background), rng)


def _jittered(scene: Scene, rng: np.random.Generator) -> Scene:
    shifts = rng.integers(-MAX_JITTER, MAX_JITTER + 1, (len(scene.objects), 2))
    things = (
        dataclasses.replace(thing, dx=int(dx), dy=int(dy))
        for thing, (dx, dy) in zip(scene.objects, shifts, strict=True)
    )
    return Scene(tuple(things), scene.background)


def same_objects(originals: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """bool [N]: the scene parser finds the same objects on the same background in both pictures."""
    pairs = [(parse_scene(a), parse_scene(b)) for a, b in zip(originals, drawn, strict=True)]
    return np.array([a.content() == b.content() and a.background == b.background for a, b in pairs])


@dataclasses.dataclass(frozen=True)
class PicturesConfig:
    """Which scenes are drawn.

    Attributes:
        splits: of the scenes, in turn.
        object_counts: share of scenes with one, two and three objects.
    """

    splits: tuple[str, ...] = ("train", "compositional")
    object_counts: tuple[float, ...] = (0.1, 0.2, 0.7)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTokenizerRun(TrainingConfig):
    """The config of `experiments/configs/tokenizers/image.py`.

    Attributes:
        pictures: what it learns from.
        training: what it minimises; batch size and dtype are the run's.
    """

    pictures: PicturesConfig = PicturesConfig()
    training: ImageTokenizerTraining

    def open(self) -> Run:
        """The run; validates on scenes of all held-out splits."""
        counts, splits = self.pictures.object_counts, self.pictures.splits
        model = dataclasses.replace(self.training.model, dtype=self.dtype)
        program = ImageTokenizerProgram(
            dataclasses.replace(self.training, model=model, batch_size=self.batch_size),
            scene_pictures(splits, counts, _FIRST_LEARNED),
            scene_pictures(("test", "compositional"), counts),
            same_objects,
            scene_partners(splits, counts, _FIRST_LEARNED),
            scene_partners(("test", "compositional"), counts),
        )
        return Run(self, program, self.make_mesh())
