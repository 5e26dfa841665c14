"""Recorded people, for exams alone: LibriVox with its transcripts, and telephone prompts.

The package of the prompts has no texts. What is said in a few is told by their names; of the others, where
`prompts.txt` lies in the folder of Commons: lines `NAME: text`, as Asterisk's own core-sounds-en.txt has them.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data_pipelines.commons.fetch import ABOUT
from data_pipelines.commons.judges import judge
from data_pipelines.commons.packages import PARTS
from data_pipelines.commons.questions import ASKED, NUMBERS, THIS_IS
from data_pipelines.commons.things import World, open_world
from omnidiff_jax.answering.queries import Request, Response
from omnidiff_jax.buckets import is_remote
from omnidiff_jax.data.readers import Reader, SourceConfig
from omnidiff_jax.errors import UserError, notice
from omnidiff_jax.evaluation.exam import Case, Exam, ExamSet, Measure
from omnidiff_jax.evaluation.sounds import asked, written
from omnidiff_jax.files import path
from omnidiff_jax.media.audio import read_audio
from omnidiff_jax.records import stable_id
from omnidiff_jax.tasks.registry import task
from omnidiff_jax.words import normalize

# Parts of Commons that nothing may be trained on.
EXAMINED = ("recorded", "prompts")
TEXTS = "prompts.txt"
_LONGEST = 8.0  # seconds
_MOST = 1 << 20  # bytes of transcripts
_NUMBERS = dict(zip(("digits/1", "digits/2", "digits/3", "digits/4", "digits/5"), NUMBERS, strict=True))
_NAMES = _NUMBERS | {
    "digits/h-1": "first",
    "digits/h-2": "second",
    "digits/h-3": "third",
    "digits/at": "at",
    "digits/star": "star",
    "letters/ascii42": "star",
    "phonetic/u_p": "uniform",
    "vm-Old": "old",
    "vm-and": "and",
    "vm-first": "first",
    "vm-no": "no",
}
_LIBRIVOX = re.compile(r"<s> (.+) </s> \((\S+)\)")


@dataclasses.dataclass(frozen=True)
class Recording:
    """A recording and what is said in it.

    Attributes:
        file: of it.
        text: what is said.
    """

    file: Path
    text: str


def reading(folder: Path) -> list[Recording]:
    """Sentences of LibriVox.

    Raises:
        UserError: the part is missing, or its transcripts are none.
    """
    place = folder / "recorded" / "librivox"
    found = _LIBRIVOX.findall(_text(place / "transcription", "recorded"))
    if not found:
        raise UserError(f"{place}/transcription has no line `<s> words </s> (NAME)`; fetch it again")
    return [Recording(place / f"{name}.wav", text) for text, name in found if (place / f"{name}.wav").is_file()]


def prompts(folder: Path) -> list[Recording]:
    """Telephone prompts of which it is known what is said; sounds that are no words are left out.

    Raises:
        UserError: the part is missing, or the file of their texts cannot be read.
    """
    place = folder / "prompts" / "wavs"
    if not place.is_dir():
        raise UserError(f"{place} is missing; {_fetched('prompts')}")
    texts = dict(_NAMES)
    if (folder / TEXTS).is_file():
        texts |= dict(_lines(_text(folder / TEXTS, "prompts")))
    there = {file.relative_to(place).with_suffix("").as_posix(): file for file in sorted(place.rglob("*.wav"))}
    return [Recording(file, texts[name]) for name, file in there.items() if texts.get(name)]


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, colon, said = line.partition(":")
        if colon and not line.startswith(";"):
            yield name.strip(), " ".join(re.sub(r"\[[^]]*\]|\([^)]*\)", "", said).split())


def known_words(world: World) -> frozenset[str]:
    """Every word that is heard or answered in speech on Commons, names of things never learned among them."""
    names = [thing.one for thing in world.things]
    texts = (*ASKED, *NUMBERS, THIS_IS, "yes", "no", *world.categories, *names)
    return frozenset(word for text in texts for word in normalize(text).split())


def recorded_exam(name: str, cases: int, data: str | None = None) -> Exam:
    """ASR of recorded people: prompts of words that Commons has; beside them other prompts, and LibriVox.

    Args:
        name: "asr".
        cases: at most, of each.
        data: folder of Commons.

    Raises:
        UserError: no folder, or a part of it is missing.
    """
    if data is None:
        raise UserError("the exam on recorded people needs Commons: --data=DIR of `omnidiff data fetch commons DIR`")
    folder, words = path(data), known_words(open_world(data))
    said = prompts(folder)
    known = [one for one in said if set(normalize(one.text).split()) <= words]
    others = [one for one in said if one not in known]
    measures = _measures(data)
    parts = {"prompts": others, "reading": reading(folder)}
    further = {part: Exam(task(name), _cases(found, cases), measures) for part, found in parts.items() if found}
    return Exam(task(name), _cases(known, cases), measures, further)


def _measures(folder: str) -> tuple[Measure, ...]:
    try:
        return (written(), asked(judge("whisper", folder)))
    except UserError as error:
        notice(f"exam of asr: one measure less: {error}")
        return (written(),)


def _cases(found: list[Recording], most: int) -> tuple[Case, ...]:
    """Some of them, the same ones for a number; none is long."""
    cases = []
    for one in sorted(found, key=lambda recording: stable_id("commons recording", recording.file.stem)):
        audio = read_audio(one.file)
        if len(audio.samples) > _LONGEST * audio.rate or not np.any(audio.samples):
            continue
        request = Request("", None, audio, None, stable_id("commons recording", one.file.stem))
        cases.append(Case(request, Response(text=one.text), {"answer": one.text}))
        if len(cases) == most:
            break
    return tuple(cases)


def kept_apart(reader: Reader) -> Reader:
    """The reader, for which recordings of Commons are test data."""
    return dataclasses.replace(reader, benchmark=functools.partial(_test_data_of, reader.benchmark))


def _test_data_of(other: Callable[[SourceConfig], str] | None, config: SourceConfig) -> str:
    return (other(config) if other else "") or examined(config)


def examined(config: SourceConfig) -> str:
    """The exam that a source would be trained on: it lies, or its media do, in a part that is kept for exams, or holds
    one; or ""."""
    kept = {PARTS[name].holds for name in EXAMINED}
    for word in (config.path, config.root):
        if not word or is_remote(word):
            continue
        place = path(word).absolute()
        for folder in (place, *place.parents, *(place / name for name in EXAMINED)):
            try:
                if json.loads((folder / ABOUT).read_bytes())["holds"] in kept:
                    return "the exam `recorded` on Commons"
            except (OSError, ValueError, KeyError, TypeError):
                continue
    return ""


def _text(file: Path, part: str) -> str:
    try:
        if file.stat().st_size > _MOST:
            raise UserError(f"{file} is over {_MOST} bytes; it is no list of what is said")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file} ({error}); {_fetched(part)}") from error


def _fetched(part: str) -> str:
    return f"get it by `omnidiff data fetch commons DIR --part={part}`"


RECORDED = ExamSet(
    "speech of recorded people, Whisper's own errors beside the model's",
    ("asr",),
    recorded_exam,
    needs_data="the folder of `omnidiff data fetch commons`",
)
