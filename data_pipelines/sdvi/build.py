"""Building the SDVI set: spoken questions about images, answered in text and speech, and spoken prompts for images.

Sources are any random-access records, JSONL files in the released format among them; speech comes from any `Speaker`.
"""

import collections
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from data_pipelines.sdvi.rules import NOTHING_TO_SAY, speakable
from omnidiff_jax.config import choose
from omnidiff_jax.data.sources import JsonlRecords, RandomAccess
from omnidiff_jax.errors import UserError
from omnidiff_jax.fetching import local_copy
from omnidiff_jax.files import new_folder
from omnidiff_jax.media.audio import write_wav
from omnidiff_jax.records import Record, RejectedRecord, Waveform, stable_id
from omnidiff_jax.tasks.registry import task

VOICES = 1000


class Speaker(Protocol):
    """Text to speech with many voices."""

    def __call__(self, text: str, voice: int | None) -> Waveform:
        """The text spoken by voice 0 .. VOICES - 1, or by the one voice that answers where `voice` is None."""


@dataclasses.dataclass
class Counts:
    """What became of the candidates."""

    accepted: int = 0
    rewritten: int = 0
    rejected: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def to_dict(self) -> dict[str, Any]:
        return {"accepted": self.accepted, "rewritten": self.rewritten, "rejected": dict(sorted(self.rejected.items()))}


def spoken_vqa(sample_id: int, question: str, answer: str, image: Any, voice: int, speaker: Speaker) -> Record:
    """One spoken visual question, answered in text and in the fixed voice.

    Args:
      sample_id: of the record.
      question: as it is asked, after `speakable`.
      answer: likewise.
      image: uint8 [H, W, 3] or a path.
      voice: that asks, 0 .. VOICES - 1.
      speaker: makes the speech.
    """
    messages = task("spoken_vqa").conversation(answer=answer)
    audios = (speaker(question, voice), speaker(answer, None))
    meta = {"heard": question, "answer": answer, "spoken": answer, "voice": voice}
    return Record(sample_id, "spoken_vqa", messages, (image,), audios, meta)


def speech_to_image(sample_id: int, prompt: str, image: Any, voice: int, speaker: Speaker) -> Record:
    """One spoken prompt and its image. Arguments as `spoken_vqa`'s."""
    messages = task("s2i").conversation()
    return Record(sample_id, "s2i", messages, (image,), (speaker(prompt, voice),), {"heard": prompt, "voice": voice})


def build_spoken_vqa(source: RandomAccess[Record], speaker: Speaker, counts: Counts, seed: int = 0) -> Iterator[Record]:
    """Spoken VQA records of visual question answering; what is dropped or rewritten is added to `counts`.

    Every turn of a conversation is a pair of its own. The voice of a question is drawn from the place of the pair in
    the source, so that it does not depend on what was dropped before.
    """
    for number, record in _usable(source, counts):
        for turn, (asked, answered) in enumerate(zip(record.messages, record.messages[1:], strict=False)):
            if (asked.role, answered.role) != ("user", "assistant"):
                continue
            try:
                pair = speakable(asked.content, answered.content)
            except RejectedRecord as rejection:
                counts.rejected[rejection.reason] += 1
                continue
            counts.accepted += 1
            counts.rewritten += pair.rewritten
            voice = stable_id("sdvi voice", seed, number, turn) % VOICES
            identity = stable_id("sdvi", seed, number, turn)
            yield spoken_vqa(identity, pair.question, pair.answer, record.images[0], voice, speaker)


def build_speech_to_image(
    source: RandomAccess[Record], speaker: Speaker, counts: Counts, seed: int = 0
) -> Iterator[Record]:
    """Speech-to-image records of text-to-image pairs: the last line of the user's turn is what is spoken."""
    for number, record in _usable(source, counts):
        prompts = [message.content.strip() for message in record.messages if message.role == "user"]
        if not prompts or not prompts[0]:
            counts.rejected[NOTHING_TO_SAY] += 1
            continue
        counts.accepted += 1
        voice = stable_id("sdvi voice", seed, number) % VOICES
        identity = stable_id("sdvi", seed, number)
        yield speech_to_image(identity, prompts[0].splitlines()[-1], record.images[0], voice, speaker)


def _usable(source: RandomAccess[Record], counts: Counts) -> Iterator[tuple[int, Record]]:
    """The records that hold an image, with their numbers."""
    for number in range(len(source)):
        try:
            record = source[number]
        except RejectedRecord as rejection:
            counts.rejected[rejection.reason] += 1
            continue
        if not record.images:
            counts.rejected["no image"] += 1
        elif (image := _near(record.images[0])) is None:
            counts.rejected["image file is missing"] += 1
        else:
            yield number, dataclasses.replace(record, images=(image, *record.images[1:]))


def _near(image: Any) -> Any:
    """An image that can be read on this host: as it is in memory, or its file; None where there is no such file."""
    if not isinstance(image, str):
        return image
    try:
        file = local_copy(image)
    except UserError:
        return None
    return file if file.is_file() else None


BUILDERS = {"spoken_vqa": build_spoken_vqa, "s2i": build_speech_to_image}


def build(source: str | os.PathLike[str], target: Path, name: str, speaker: Speaker, seed: int = 0) -> Counts:
    """Builds an SDVI set on disk, whole or not at all: `data.jsonl` in the released format, `audios/`, `images/`.

    Args:
      source: JSONL of visual question answering (for "spoken_vqa") or text-to-image pairs (for "s2i"), in a bucket or
        not.
      target: folder to make; must not exist. Images are hard links where the file system allows.
      name: of the task, "spoken_vqa" or "s2i".
      speaker: makes the speech.
      seed: of the choice of voices.

    Raises:
      UserError: source missing, target there already, unknown task.
    """
    builder = choose(BUILDERS, name, "SDVI task")
    records = JsonlRecords(source)
    counts = Counts()
    with new_folder(target) as unfinished:
        (unfinished / "audios").mkdir(parents=True)
        (unfinished / "images").mkdir()
        with (unfinished / "data.jsonl").open("w", encoding="utf-8") as lines:
            for record in builder(records, speaker, counts, seed):
                lines.write(json.dumps(_stored(record, unfinished)) + "\n")
    return counts


def _stored(record: Record, folder: Path) -> dict[str, Any]:
    """The record as a line of the released format, its media written to `folder`."""
    images, audios = [], []
    for number, path in enumerate(record.images):
        images.append(f"images/{record.sample_id:08x}_{number}{Path(path).suffix}")
        try:
            os.link(path, folder / images[-1])
        except OSError:  # another file system, or one without links
            shutil.copyfile(path, folder / images[-1])
    for number, waveform in enumerate(record.audios):
        audios.append(f"audios/{record.sample_id:08x}_{number}.wav")
        write_wav(folder / audios[-1], waveform)
    messages = [dataclasses.asdict(message) for message in record.messages]
    return {"task": record.task, "messages": messages, "images": images, "audios": audios}
