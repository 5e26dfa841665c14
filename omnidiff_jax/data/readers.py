"""Temporary."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    reader: str
    task: str = ""
    path: str = dataclasses.field(default="", metadata={"resume": "free"})
    root: str = dataclasses.field(default="", metadata={"resume": "free"})
    split: str = "train"
    examples: int = 0
