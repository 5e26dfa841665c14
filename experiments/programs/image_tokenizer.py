"""The image tokenizer's training program over Scenes pictures."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.scenes.render import IMAGE_SIZE, render
from data_pipelines.scenes.scene import Scene, sample_scene
from data_pipelines.scenes.scene_parser import parse_scene
from experiments.programs.run import Run, tokenizer_run
from omnidiff_jax.config import build
from omnidiff_jax.training.tokenizers.image import ImageTokenizerProgram, ImageTokenizerTraining, Pictures


def without_jitter(scene: Scene) -> Scene:
    """The scene with every object in the middle of its place."""
    return Scene(tuple(dataclasses.replace(thing, dx=0, dy=0) for thing in scene.objects), scene.background)


def scene_pictures(split: str, object_counts: Sequence[float]) -> Pictures:
    """(index, count) -> the scenes of a split as they are seen, and without jitter."""

    def pictures(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        seen = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        wanted = np.empty_like(seen)
        for row in range(count):
            scene = sample_scene(first + row, split, object_counts)
            seen[row], wanted[row] = render(scene), render(without_jitter(scene))
        return seen, wanted

    return pictures


def same_objects(originals: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """bool [N]: the scene parser finds the same objects on the same background in both pictures."""
    pairs = [(parse_scene(a), parse_scene(b)) for a, b in zip(originals, drawn, strict=True)]
    return np.array([a.content() == b.content() and a.background == b.background for a, b in pairs])


def image_tokenizer_run(config: ConfigDict, workdir: Path) -> Run:
    """Trains on scenes of the train split and validates on the test split; `workdir` holds the run and nothing else."""
    training = dict(config.training) | {
        "model": dict(config.training.model) | {"dtype": config.dtype},
        "batch_size": config.batch_size,
    }
    counts = config.pictures.object_counts
    program = ImageTokenizerProgram(
        build(ImageTokenizerTraining, training, "config.training"),
        scene_pictures("train", counts),
        scene_pictures("test", counts),
        same_objects,
    )
    return tokenizer_run(config, program)
