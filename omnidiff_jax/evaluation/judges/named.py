"""Judges by words: `whisper:FOLDER`, `pocketsphinx`, `clip:FOLDER`, `imagenet:FOLDER`, `dnsmos:FOLDER`."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omnidiff_jax.config import choose
from omnidiff_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Kind:
    """A row of the table.

    Attributes:
        reads: "speech" for its words, "speech quality", "picture" beside texts, "picture features".
        needs: what stands after the colon, "" = nothing.
        opened: (that) -> the judge.
    """

    reads: str
    needs: str
    opened: Callable[[Path], Any]


def _whisper(folder: Path) -> Any:
    from omnidiff_jax.evaluation.judges.speech import WhisperJudge

    return WhisperJudge(folder)


def _sphinx(folder: Path) -> Any:
    from omnidiff_jax.evaluation.judges.speech import SphinxJudge

    return SphinxJudge()


def _clip(folder: Path) -> Any:
    from omnidiff_jax.evaluation.judges.clip import ClipJudge

    return ClipJudge(folder)


def _imagenet(folder: Path) -> Any:
    from omnidiff_jax.evaluation.judges.imagenet import ImagenetJudge

    return ImagenetJudge(folder)


def _dnsmos(folder: Path) -> Any:
    from omnidiff_jax.evaluation.judges.dnsmos import DnsmosJudge

    return DnsmosJudge(folder)


JUDGES: Mapping[str, Kind] = {
    "whisper": Kind("speech", "a folder of Whisper", _whisper),
    "pocketsphinx": Kind("speech", "", _sphinx),
    "clip": Kind("picture", "a folder of CLIP", _clip),
    "imagenet": Kind("picture features", "a folder of EfficientNet-Lite0", _imagenet),
    "dnsmos": Kind("speech quality", "a folder of DNSMOS", _dnsmos),
}


def open_judge(word: str, reads: str) -> Any:
    """The judge that a word names.

    Args:
        reads: what it must judge, as `Kind` says.

    Raises:
        UserError: no such judge, one of something else, no folder, or one that cannot be read.
    """
    name, _, rest = word.partition(":")
    kind = choose(JUDGES, name, "judge")
    if kind.reads != reads:
        fitting = ", ".join(other for other, one in JUDGES.items() if one.reads == reads)
        raise UserError(f"--judge={word} reads {kind.reads}; this exam needs one of {reads}: {fitting}")
    if bool(rest) != bool(kind.needs):
        raise UserError(
            f"--judge={word}: {f'name {kind.needs}: {name}:FOLDER' if kind.needs else f'{name} takes nothing'}"
        )
    folder = Path(rest).expanduser()
    if kind.needs and not folder.is_dir():
        raise UserError(f"--judge={word}: {folder} is no folder; it must be {kind.needs}")
    return kind.opened(folder)


def judge_for(words: list[str], reads: str) -> Any:
    """The first of the judges named that reads this; None where nothing is to be judged.

    Raises:
        UserError: none does.
    """
    if not reads:
        return None
    for word in words:
        if choose(JUDGES, word.partition(":")[0], "judge").reads == reads:
            return open_judge(word, reads)
    fitting = " or ".join(
        f"--judge={name}{':FOLDER' if one.needs else ''}" for name, one in JUDGES.items() if one.reads == reads
    )
    raise UserError(f"--judge is missing: the answers are {reads}, which is read by {fitting}")
