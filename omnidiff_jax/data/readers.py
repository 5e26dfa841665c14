"""Temporary."""

import dataclasses

from omnidiff_jax.config import Natural


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    reader: str
    task: str = ""
    path: str = dataclasses.field(default="", metadata={"resume": "free"})
    root: str = dataclasses.field(default="", metadata={"resume": "free"})
    split: str = "train"
    examples: Natural = 0
