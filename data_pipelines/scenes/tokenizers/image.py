"""The image tokenizer's training program over Scenes pictures."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.scenes.render import IMAGE_SIZE, render
from data_pipelines.scenes.scene import MAX_INDEX, Scene, sample_scene
from data_pipelines.scenes.scene_parser import parse_scene
from omnidiff_jax.training.config import TrainingConfig
from omnidiff_jax.training.run import Run
from omnidiff_jax.training.tokenizers.image import ImageTokenizerProgram, ImageTokenizerTraining, Pictures


def without_jitter(scene: Scene) -> Scene:
    """The scene with every object in the middle of its place."""
    return Scene(tuple(dataclasses.replace(thing, dx=0, dy=0) for thing in scene.objects), scene.background)


# Records draw their scenes from all indices at random; these are as good as any.
_FIRST_LEARNED = 1 << 31


def scene_pictures(splits: Sequence[str], object_counts: Sequence[float], start: int = 0) -> Pictures:
    """(index, count) -> scenes of the splits in turn, as they are seen and without jitter; `start` is scene 0."""

    def pictures(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        seen = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        wanted = np.empty_like(seen)
        for row in range(count):
            split = splits[(first + row) % len(splits)]
            scene = sample_scene((start + first + row) % MAX_INDEX, split, object_counts)
            seen[row], wanted[row] = render(scene), render(without_jitter(scene))
        return seen, wanted

    return pictures


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
        )
        return Run(self, program, self.make_mesh())
