"""Who judges answers on Commons: names for what is written, outside judges from the same folder for the rest."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.commons.pictures import picture
from data_pipelines.commons.things import STYLES, open_world
from omnidiff_jax.errors import UserError, notice
from omnidiff_jax.evaluation.exam import Measure
from omnidiff_jax.evaluation.judges.named import open_judge
from omnidiff_jax.evaluation.measures import TRANSCRIBED
from omnidiff_jax.evaluation.names import NAMED
from omnidiff_jax.evaluation.pictures import CANDIDATES, Gallery, Probe
from omnidiff_jax.evaluation.sounds import heard, sounding

# Part of the folder, which is the judge's word too -> what it reads.
READS = {"imagenet": "picture features", "whisper": "speech", "dnsmos": "speech quality"}


@functools.lru_cache(maxsize=8)
def judge(part: str, folder: str) -> Any:
    """The judge of a part of the folder; raises UserError where it is missing."""
    place = Path(folder) / part
    if not place.is_dir():
        raise UserError(f"{place} is missing; get it by `omnidiff data fetch commons DIR --part={part}`")
    return open_judge(f"{part}:{place}", READS[part])


@functools.lru_cache(maxsize=2)
def gallery(folder: str) -> Gallery:
    """Every thing as it is to be drawn, those that are never learned among them.

    Raises:
        UserError: the judge or a picture is missing.
    """
    world = open_world(folder)
    drawn = {thing.name: picture(world.folder, STYLES[0], thing.picture) for thing in world.things}
    return Gallery.of(judge("imagenet", folder), drawn, min(CANDIDATES, len(drawn)))


@functools.lru_cache(maxsize=2)
def probe(folder: str) -> Probe:
    """Reads kinds of things from pictures, taught by those of learned things as they are to be drawn: the gallery's,
    which the judge has seen already. No lesson is a thing never learned."""
    world = open_world(folder)
    things = world.of(held_out=False)
    shown = [picture(world.folder, STYLES[0], thing.picture) for thing in things]
    return Probe.of(judge("imagenet", folder), shown, [thing.category for thing in things])


def _named(folder: str) -> tuple[Measure, ...]:
    return (NAMED,)


def _transcribed(folder: str) -> tuple[Measure, ...]:
    return (TRANSCRIBED,)


def _drawn(folder: str) -> tuple[Measure, ...]:
    return (*gallery(folder).measures(), probe(folder).measure())


def _words(folder: str) -> tuple[Measure, ...]:
    return (heard(judge("whisper", folder)),)


def _sound(folder: str) -> tuple[Measure, ...]:
    return (sounding(judge("dnsmos", folder)),)


# The first gives a task its value, and must be there; the others are passed over where their judge is not.
_MEASURES: Mapping[str, tuple[Callable[[str], tuple[Measure, ...]], ...]] = {
    "text_qa": (_named,),
    "captioning": (_named,),
    "vqa": (_named,),
    "t2i": (_drawn,),
    "inpainting": (_drawn,),
    "asr": (_transcribed,),
    "tts": (_words, _sound),
    "spoken_qa": (_named, _words, _sound),
    "s2i": (_drawn,),
    "spoken_vqa": (_named, _words, _sound),
}
TASKS = tuple(_MEASURES)


def measures(name: str, folder: str) -> tuple[Measure, ...]:
    """What is measured of a task's answers.

    Args:
        name: of the task, one of TASKS.
        folder: of Commons, with its judges `imagenet`, `whisper` and `dnsmos`.

    Raises:
        UserError: the judge that gives the task its value is missing.
    """
    found: list[Measure] = []
    for number, opened in enumerate(_MEASURES[name]):
        try:
            found += opened(folder)
        except UserError as error:
            if number == 0:
                raise
            notice(f"exam of {name}: one measure less: {error}")
    return tuple(found)
