"""What every record of Commons is made with: the things and voices of its split, pictures of them, its identity."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.commons.pictures import draw_rendering, picture
from data_pipelines.commons.questions import Pool, Question
from data_pipelines.commons.speech import Clips
from data_pipelines.commons.things import STYLES, Family, Thing, World
from omnidiff_jax.records import Message, Record, Waveform

SPLITS = ("train", "test", "style", "concepts")


@dataclasses.dataclass(frozen=True)
class Maker:
    """One record in the making.

    Attributes:
        world: whose things it is about.
        task, split: of the record.
        rng: its stream.
        identity: its sample_id.
        clips: what was spoken, of tasks with speech.
    """

    world: World
    task: str
    split: str
    rng: np.random.Generator
    identity: int
    clips: Clips | None = None

    @property
    def learned(self) -> bool:
        return self.split == "train"

    @property
    def things(self) -> Sequence[Thing]:
        return self.world.of(held_out=self.split == "concepts")

    @property
    def families(self) -> Sequence[Family]:
        return [family for family in self.world.families if family.held_out == (self.split == "concepts")]

    @property
    def pool(self) -> Pool:
        return Pool(self.things, self.things, self.families)

    @property
    def style(self) -> str:
        """Whose pictures are looked at; what is drawn is always in the learned style."""
        return STYLES[self.split == "style"]

    def shown(self, thing: Thing | Family) -> np.ndarray:
        """A picture to be looked at."""
        rendering = draw_rendering(self.rng, thing.picture, held_out=not self.learned)
        return picture(self.world.folder, self.style, thing.picture, rendering)

    def drawn(self, thing: Thing) -> np.ndarray:
        """A picture to be drawn."""
        return picture(self.world.folder, STYLES[0], thing.picture)

    @staticmethod
    def pictured(thing: Thing) -> dict[str, Any]:
        """What judges must know of a picture that is to be drawn."""
        return {"thing": thing.name, "category": thing.category}

    @staticmethod
    def answered(question: Question) -> dict[str, Any]:
        """What judges must know of a question."""
        return {
            "answer": question.answer,
            "accepted": question.accepted,
            "kind": question.kind,
            "thing": question.shown.name,
        }

    def record(
        self,
        messages: tuple[Message, ...],
        images: tuple[np.ndarray, ...] = (),
        audios: tuple[Waveform, ...] = (),
        meta: dict[str, Any] | None = None,
        hole: np.ndarray | None = None,
    ) -> Record:
        return Record(self.identity, self.task, messages, images, audios, {**(meta or {}), "style": self.style}, hole)
