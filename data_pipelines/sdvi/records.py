"""SDVI as a random-access source: written visual questions and prompts for images, spoken when they are asked for.

A record depends on its number alone, so that any process may make any part of a set.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from data_pipelines.sdvi.rules import NOTHING_TO_SAY, speakable
from data_pipelines.speakers.gate import Clip, Gate, GateConfig
from data_pipelines.speakers.kinds import SpeakerConfig
from data_pipelines.speakers.speaker import Line, Speaker
from omnidiff_jax.config import Seed
from omnidiff_jax.data.readers import SourceConfig
from omnidiff_jax.data.sources import RandomAccess
from omnidiff_jax.errors import UserError
from omnidiff_jax.fetching import local_copy
from omnidiff_jax.media.image import read_image
from omnidiff_jax.records import Medium, Record, RejectedRecord, Waveform, stable_id
from omnidiff_jax.tasks.registry import task

VOICES = 1000
NO_IMAGE = "no image"
MISSING_IMAGE = "image file is missing"
UNUSABLE_IMAGE = "unusable image"
NO_PAIR = "no question with an answer"
SAID = {"spoken_vqa": ("question", "answer"), "s2i": ("prompt",)}  # the clips of a record, in this order


@dataclasses.dataclass(frozen=True)
class SdviConfig:
    """A whole SDVI set as one value; what stands in its JSON file.

    Attributes:
        source: of visual questions with answers, or of images with prompts.
        task: "spoken_vqa" or "s2i".
        speaker: who speaks.
        gate: what every clip must pass.
        seed: of the choice of voices.
    """

    source: SourceConfig
    task: Literal["spoken_vqa", "s2i"]
    speaker: SpeakerConfig = SpeakerConfig()
    gate: GateConfig = GateConfig()
    seed: Seed = 0


@dataclasses.dataclass(frozen=True)
class Made:
    """What became of a candidate.

    Attributes:
        record: None where it was rejected.
        reason: why; "" where it was not.
        rewritten: whether a choice became an open question.
        clips: that were spoken for it: the question's or prompt's, then the answer's.
    """

    record: Record | None
    reason: str = ""
    rewritten: bool = False
    clips: tuple[Clip, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A pair that can be spoken."""

    identity: int
    voice: int
    texts: tuple[str, ...]
    image: Any
    rewritten: bool = False

    @property
    def lines(self) -> list[Line]:
        return [Line(text, voice) for text, voice in zip(self.texts, (self.voice, None), strict=False)]


def spoken_vqa(
    sample_id: int, question: str, answer: str, image: Any, voice: int, speech: Sequence[Waveform]
) -> Record:
    """One spoken visual question, answered in text and in the fixed voice.

    Args:
      sample_id: of the record.
      question: as it is asked, after `speakable`.
      answer: likewise.
      image: uint8 [H, W, 3] or a path.
      voice: that asks, 0 .. VOICES - 1.
      speech: the question and the answer, spoken.
    """
    messages = task("spoken_vqa").conversation(answer=answer)
    meta = {"heard": question, "answer": answer, "spoken": answer, "voice": voice}
    return Record(sample_id, "spoken_vqa", messages, (image,), tuple(speech), meta)


def speech_to_image(sample_id: int, prompt: str, image: Any, voice: int, speech: Sequence[Waveform]) -> Record:
    """One spoken prompt and its image. Arguments as `spoken_vqa`'s; `speech` is the prompt alone."""
    messages = task("s2i").conversation()
    return Record(sample_id, "s2i", messages, (image,), tuple(speech), {"heard": prompt, "voice": voice})


class SdviRecords:
    """Candidates of a source as records: every turn of a conversation is a pair of its own, a prompt is one."""

    def __init__(
        self, source: RandomAccess[Record], name: str, speaker: Speaker, gate: Gate, turns: np.ndarray, seed: int = 0
    ):
        """Args:
        source: of written records.
        name: "spoken_vqa" or "s2i".
        speaker: whose voices ask; it speaks through the gate.
        gate: that every clip passes.
        turns: int64 [n], candidates of each record (`turns_of`).
        seed: of the choice of voices.
        """
        self._source, self._name, self._gate, self._seed = source, name, gate, seed
        self._voices = speaker.voices
        self._ends = np.cumsum(turns)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Record:
        """The record of candidate `index`.

        Raises:
            RejectedRecord: its record or pair cannot be used, or a clip of it did not pass.
        """
        (made,) = self.made([index])
        if made.record is None:
            raise RejectedRecord(made.reason, f"candidate {index + 1}")
        return made.record

    def made(self, indices: Sequence[int]) -> list[Made]:
        """Several candidates, spoken together; each is the same as alone."""
        found: list[_Candidate | Made] = []
        for index in indices:
            try:
                found.append(self._candidate(index))
            except RejectedRecord as rejection:
                found.append(Made(None, rejection.reason))
        candidates = [one for one in found if isinstance(one, _Candidate)]
        clips = iter(self._gate.spoken([line for one in candidates for line in one.lines]))
        return [self._recorded(one, clips) if isinstance(one, _Candidate) else one for one in found]

    def _recorded(self, candidate: _Candidate, clips: Any) -> Made:
        said = tuple(next(clips) for _ in candidate.texts)
        for name, clip in zip(SAID[self._name], said, strict=True):
            if not clip.accepted:
                return Made(None, f"{name} {clip.failed[-1]}", candidate.rewritten, said)
        told = (candidate.image, candidate.voice, [clip.speech for clip in said])
        if self._name == "spoken_vqa":
            question, answer = candidate.texts
            record = spoken_vqa(candidate.identity, question, answer, *told)
        else:
            record = speech_to_image(candidate.identity, candidate.texts[0], *told)
        return Made(record, "", candidate.rewritten, said)

    def _candidate(self, index: int) -> _Candidate:
        number = int(np.searchsorted(self._ends, index, side="right"))
        turn = index - int(self._ends[number - 1] if number else 0)
        record = self._source[number]
        if not record.images:
            raise RejectedRecord(NO_IMAGE)
        image = near(record.images[0])
        key = (self._seed, number, turn) if self._name == "spoken_vqa" else (self._seed, number)
        identity, voice = stable_id("sdvi", *key), stable_id("sdvi voice", *key) % self._voices
        if self._name == "s2i":
            return _Candidate(identity, voice, (_prompt(record),), image)
        pairs = _pairs(record)
        if not pairs:
            raise RejectedRecord(NO_PAIR)
        pair = speakable(*pairs[turn])
        return _Candidate(identity, voice, (pair.question, pair.answer), image, pair.rewritten)


def turns_of(source: RandomAccess[Record], name: str) -> np.ndarray:
    """Candidates of each record, int64 [n], at least 1: what cannot be used is one that will be rejected."""
    if name == "s2i":
        return np.ones(len(source), np.int64)
    turns = np.ones(len(source), np.int64)
    for number in range(len(source)):
        try:
            turns[number] = max(len(_pairs(source[number])), 1)
        except RejectedRecord:
            continue
    return turns


def _pairs(record: Record) -> list[tuple[str, str]]:
    """What is asked and answered, turn by turn."""
    roles = ("user", "assistant")
    turns = zip(record.messages, record.messages[1:], strict=False)
    return [(asked.content, told.content) for asked, told in turns if (asked.role, told.role) == roles]


def _prompt(record: Record) -> str:
    """The last line of the user's turn."""
    prompts = [message.content.strip() for message in record.messages if message.role == "user"]
    if not prompts or not prompts[0]:
        raise RejectedRecord(NOTHING_TO_SAY)
    return prompts[0].splitlines()[-1]


def near(image: Any) -> Any:
    """An image that can be read on this host: a file, or uint8 [H, W, 3].

    Args:
        image: a path, here or in a bucket, an array, or a `Medium`, which is decoded.

    Raises:
        RejectedRecord: there is no such file, or what is not a file of its own cannot be decoded.
    """
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, Medium):
        try:
            return read_image(image)
        except UserError as error:
            raise RejectedRecord(UNUSABLE_IMAGE, str(error)) from error
    try:
        file = local_copy(image)
    except UserError as error:
        raise RejectedRecord(MISSING_IMAGE, str(error)) from error
    if not file.is_file():
        raise RejectedRecord(MISSING_IMAGE, str(file))
    return str(file)
