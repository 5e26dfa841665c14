"""Commons as a row of the table of readers: drawn and spoken when its sets are encoded, once, before training."""

import hashlib
from pathlib import Path

from data_pipelines.commons.pictures import picture_file
from data_pipelines.commons.speech import Clips, open_clips
from data_pipelines.commons.tasks import PICTURED, SPOKEN, VERSION, CommonsRecords, check
from data_pipelines.commons.things import STYLES, World, open_world
from omnidiff_jax.data.readers import Reader, SourceConfig
from omnidiff_jax.errors import UserError


def records(config: SourceConfig) -> CommonsRecords:
    """The records of a source: `examples` of one task and split. What is spoken lies in `root`, or in `path/clips`."""
    if config.examples < 1 or not config.task:
        raise UserError("a source of reader 'commons' needs task and examples, such as task = 'vqa', examples = 1000")
    check(config.task, config.split)
    clips = clips_of(config.task, config.path, config.root)
    return CommonsRecords(open_world(config.path), config.task, config.split, config.examples, clips)


def clips_of(name: str, folder: str, root: str = "") -> Clips | None:
    """The clips of a task, if it is spoken: those of `root`, or of `clips` in the folder of Commons."""
    return open_clips(root or f"{folder}/clips") if name in SPOKEN else None


def identity(config: SourceConfig, found: CommonsRecords) -> str:
    """Of the version, of what was read of names and pictures, and of who speaks."""
    told = [f"commons {VERSION}", _digest(found.world, config.task in PICTURED, config.split == "style")]
    return " ".join([*told, found.clips.identity] if found.clips else told)


def _digest(world: World, pictured: bool, other_style: bool) -> str:
    digest = hashlib.blake2b(repr((world.things, world.families)).encode(), digest_size=16)
    if pictured:
        names = [thing.picture for thing in world.things] + [family.picture for family in world.families]
        for style in STYLES[: 1 + other_style]:
            for name in names:
                digest.update(hashlib.blake2b(_bytes(picture_file(world.folder, style, name))).digest())
    return digest.hexdigest()


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"picture {file} cannot be read ({error.strerror}); fetch it again") from error


COMMONS_READER = Reader(
    "real things of `omnidiff data fetch commons`", ("path", "task", "examples"), records, identity, "sets"
)
