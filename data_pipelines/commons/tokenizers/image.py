"""The image tokenizer's training program over the pictures of Commons: both styles, all things, all renderings."""

import dataclasses

import numpy as np

from data_pipelines.commons.judges import judge
from data_pipelines.commons.pictures import DRAWN, draw_rendering, picture
from data_pipelines.commons.questions import pick
from data_pipelines.commons.things import STYLES, World, open_world
from data_pipelines.scenes.scene import generator
from omnidiff_jax.config import Share, free
from omnidiff_jax.training.config import OptimizerConfig, TrainingConfig
from omnidiff_jax.training.run import Run
from omnidiff_jax.training.tokenizers.image import (
    FROZEN,
    ImageTokenizerProgram,
    ImageTokenizerTraining,
    Network,
    Pictures,
)


@dataclasses.dataclass(frozen=True)
class CommonsPictures:
    """Which pictures are learned.

    Attributes:
        folder: that `omnidiff data fetch commons` wrote, with the parts google, twitter and wordnet.
        drawn: share of pictures as they are drawn, whole and on white; the others are as they are looked at.
    """

    folder: str = free("")
    drawn: Share = 0.25


def world_pictures(world: World, drawn: float, held_out: bool) -> Pictures:
    """(index, count) -> pictures of any thing or family in either style, twice: what is seen is what is wanted.

    Args:
        world: whose pictures.
        drawn: share of those as they are drawn.
        held_out: whether they are renderings that are never learned.
    """
    files = [thing.picture for thing in world.things] + [family.picture for family in world.families]

    def one(index: int) -> np.ndarray:
        rng = generator("commons pictures", int(held_out), index)
        name, style = pick(rng, files), pick(rng, STYLES)
        whole = not held_out and rng.random() < drawn
        return picture(world.folder, style, name, DRAWN if whole else draw_rendering(rng, name, held_out))

    def pictures(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        found = np.stack([one(first + row) for row in range(count)])
        return found, found

    return pictures


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonsImageTokenizerRun(TrainingConfig):
    """The config of `experiments/configs/tokenizers/commons_image.py`.

    Attributes:
        pictures: what it learns from.
        training: what it minimises; batch size and dtype are the run's.
    """

    pictures: CommonsPictures = CommonsPictures()
    training: ImageTokenizerTraining

    @property
    def optimizer_used(self) -> OptimizerConfig:
        """The optimizer, from which the network of the perceptual term is kept."""
        kept = FROZEN if self.training.perceptual else ()
        return dataclasses.replace(self.optimizer, frozen=(*self.optimizer.frozen, *kept))

    def open(self) -> Run:
        """The run; validates on renderings never learned. The perceptual term asks the network of `folder/imagenet`."""
        world = open_world(self.pictures.folder)
        model = dataclasses.replace(self.training.model, dtype=self.dtype)
        program = ImageTokenizerProgram(
            dataclasses.replace(self.training, model=model, batch_size=self.batch_size),
            world_pictures(world, self.pictures.drawn, held_out=False),
            world_pictures(world, self.pictures.drawn, held_out=True),
            network=_network(self.pictures.folder) if self.training.perceptual else None,
        )
        return Run(self, program, self.make_mesh())


def _network(folder: str) -> Network:
    found = judge("imagenet", folder)
    return Network(found.config, found.params)
