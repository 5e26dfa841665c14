"""Scenes as a row of the table of readers: generated, so a run encodes its sets once, before training."""

from typing import Any

from data_pipelines.scenes.tasks import VERSION, SceneRecords
from omnidiff_jax.data.readers import Reader, SourceConfig
from omnidiff_jax.errors import UserError


def records(config: SourceConfig) -> SceneRecords:
    """The records of a source: `examples` of one task and split."""
    if config.examples < 1 or not config.task:
        raise UserError("a source of reader 'scenes' needs task and examples, such as task = 'vqa', examples = 1000")
    return SceneRecords(config.task, config.split, config.examples, plain=config.plain)


def identity(config: SourceConfig, found: Any) -> str:
    """The version of the world."""
    return f"scenes {VERSION}"


SCENES_READER = Reader(
    "the embedded world of pictures, questions and speech", ("task", "examples"), records, identity, "sets"
)
