"""All clips that training on Commons hears, spoken ahead: what a neural speaker takes hours for, no build waits for."""

import dataclasses
from collections.abc import Callable, Sequence

from data_pipelines.commons.heard import whole_sentences
from data_pipelines.commons.questions import ASKED, NUMBERS, THIS_IS
from data_pipelines.commons.speech import Clips
from data_pipelines.commons.things import World
from omnidiff_jax.records import RejectedRecord


@dataclasses.dataclass(frozen=True)
class Spoken:
    """What became of clips.

    Attributes:
        accepted: that are there now.
        rejected: that did not pass the gate.
    """

    accepted: int
    rejected: int


def pieces(world: World, clips: Clips) -> list[tuple[str, int | None]]:
    """Text and voice of every clip that training may hear, each once; None = the voice that answers. No exam's voice is
    in it."""
    names = [thing.one for thing in world.of(held_out=False) if clips.says(thing.name)]
    said = [(text, None) for text in (*names, THIS_IS, *world.categories, *NUMBERS, "yes", "no")]
    asked = [(text, voice) for voice in clips.voices(learned=True) for text in ASKED]
    named = [
        (thing.one, voice)
        for thing in world.of(held_out=False)
        for voice in clips.voices(learned=True)
        if clips.names(voice, thing.name)
    ]
    return list(dict.fromkeys([*said, *asked, *named, *whole_sentences(world, clips)]))


def speak(
    clips: Clips, wanted: Sequence[tuple[str, int | None]], told: Callable[[int], None] = lambda done: None
) -> Spoken:
    """Speaks what is not there yet; stopped and started again it goes on.

    Args:
        clips: a folder of them.
        wanted: text and voice of each.
        told: takes how many are done.
    """
    rejected = 0
    for done, (text, voice) in enumerate(wanted, start=1):
        try:
            clips.joined((text,), voice)
        except RejectedRecord:
            rejected += 1
        told(done)
    return Spoken(len(wanted) - rejected, rejected)
