"""SDVI as a row of the table of readers: spoken and encoded once, before training."""

from typing import Any

from data_pipelines.sdvi.opening import opened, sdvi_config
from data_pipelines.sdvi.records import SdviRecords
from omnidiff_jax.data.readers import Reader, SourceConfig
from omnidiff_jax.errors import UserError


def records(config: SourceConfig) -> SdviRecords:
    """The records of a source whose `path` is a JSON file of SDVI's settings."""
    settings = sdvi_config(config.path)
    if config.task not in ("", settings.task):
        raise UserError(f"{config.path} makes {settings.task}, the source's task is {config.task!r}; name that one")
    if config.split != "train":
        raise UserError(f"reader 'sdvi' has no split {config.split!r}; measure on a source of its own")
    return opened(settings).records


def identity(config: SourceConfig, found: Any) -> str:
    """Of source, settings, speaker and recogniser."""
    return f"sdvi {opened(sdvi_config(config.path)).fingerprint}"


SDVI_READER = Reader("SDVI by a JSON file of settings (docs/data.md)", ("path",), records, identity, "sets")
