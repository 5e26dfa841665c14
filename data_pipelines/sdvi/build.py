"""Building the SDVI set: spoken questions about images, answered in text and speech, and spoken prompts for images.

Sources are JSONL files in the released format (`{"messages": [{"role", "content"}], "images": [paths]}`); speech comes
from any `Speaker`.
"""

import collections
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from data_pipelines.sdvi.rules import speakable
from omnidiff_jax.data.sources import RejectedRecord
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.audio import write_wav
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG, Message, Record, Waveform, stable_id

SPOKEN_VQA_SYSTEM = "Please response the input audio based on the given image."
SPEECH_TO_IMAGE_SYSTEM = "Please generate an image based on the input audio."
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
    messages = (
        Message("system", SPOKEN_VQA_SYSTEM),
        Message("user", f"{AUDIO_TAG}\n{IMAGE_TAG}"),
        Message("assistant", f"{answer}\n{AUDIO_TAG}"),
    )
    audios = (speaker(question, voice), speaker(answer, None))
    meta = {"heard": question, "answer": answer, "spoken": answer, "voice": voice}
    return Record(sample_id, "spoken_vqa", messages, (image,), audios, meta)


def speech_to_image(sample_id: int, prompt: str, image: Any, voice: int, speaker: Speaker) -> Record:
    """One spoken prompt and its image. Arguments as `spoken_vqa`'s."""
    messages = (
        Message("system", SPEECH_TO_IMAGE_SYSTEM),
        Message("user", f"\n{AUDIO_TAG}"),
        Message("assistant", IMAGE_TAG),
    )
    return Record(sample_id, "s2i", messages, (image,), (speaker(prompt, voice),), {"heard": prompt, "voice": voice})


def question_answer_pairs(sample: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every user turn with the answer that follows it."""
    messages = sample["messages"]
    for asked, answered in zip(messages, messages[1:], strict=False):
        if asked["role"] == "user" and answered["role"] == "assistant":
            yield asked["content"], answered["content"]


def build_spoken_vqa(
    samples: Iterable[Mapping[str, Any]], speaker: Speaker, counts: Counts, seed: int = 0
) -> Iterator[Record]:
    """Spoken VQA records of samples in the released format; what is dropped or rewritten is added to `counts`.

    The voice of a question is drawn from its place in the set, so that it does not depend on what was dropped before.
    """
    for number, sample in enumerate(samples):
        try:
            pairs, image = list(question_answer_pairs(sample)), sample["images"][0]
        except (KeyError, IndexError, TypeError):
            counts.rejected["malformed sample"] += 1
            continue
        for turn, (question, answer) in enumerate(pairs):
            try:
                pair = speakable(question, answer)
            except RejectedRecord as rejection:
                counts.rejected[rejection.reason] += 1
                continue
            counts.accepted += 1
            counts.rewritten += pair.rewritten
            voice = stable_id("sdvi voice", seed, number, turn) % VOICES
            identity = stable_id("sdvi", seed, number, turn)
            yield spoken_vqa(identity, pair.question, pair.answer, image, voice, speaker)


def build_speech_to_image(
    samples: Iterable[Mapping[str, Any]], speaker: Speaker, counts: Counts, seed: int = 0
) -> Iterator[Record]:
    """Speech-to-image records of text-to-image samples: the last line of the user's turn is what is spoken."""
    for number, sample in enumerate(samples):
        try:
            prompt = next(m["content"] for m in sample["messages"] if m["role"] == "user").strip().splitlines()[-1]
            image = sample["images"][0]
        except (KeyError, IndexError, TypeError, StopIteration):
            counts.rejected["malformed sample"] += 1
            continue
        counts.accepted += 1
        voice = stable_id("sdvi voice", seed, number) % VOICES
        yield speech_to_image(stable_id("sdvi", seed, number), prompt, image, voice, speaker)


BUILDERS = {"spoken_vqa": build_spoken_vqa, "s2i": build_speech_to_image}


def read_jsonl(path: Path, counts: Counts) -> Iterator[dict[str, Any]]:
    """The samples of a JSONL file; a line that is not a JSON object is counted and passed over."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                sample = json.loads(line)
            except json.JSONDecodeError:
                sample = None
            if isinstance(sample, dict):
                yield sample
            else:
                counts.rejected["malformed JSON line"] += 1


def build(source: Path, target: Path, task: str, speaker: Speaker, seed: int = 0) -> Counts:
    """Builds an SDVI set on disk: `target/data.jsonl` in the released format and `target/audios/*.wav`, all or nothing.

    Args:
      source: JSONL of visual question answering (`task` "spoken_vqa") or text-to-image pairs ("s2i"); its image
        paths are relative to its folder, or absolute.
      target: folder to make; must not exist.
      task: "spoken_vqa" or "s2i".
      speaker: makes the speech.
      seed: of the choice of voices.

    Raises:
      UserError: source missing, target there already, unknown task.
    """
    if task not in BUILDERS:
        raise UserError(f"SDVI has no task {task!r}; it has {' and '.join(BUILDERS)}")
    if not source.is_file():
        raise UserError(f"{source} is not a file; give a JSONL file in the released format")
    if target.exists():
        raise UserError(f"{target} exists; remove it or name another folder")
    counts = Counts()
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        (unfinished / "audios").mkdir()
        with (unfinished / "data.jsonl").open("w", encoding="utf-8") as lines:
            for record in BUILDERS[task](read_jsonl(source, counts), speaker, counts, seed):
                lines.write(json.dumps(_stored(record, source.parent, unfinished)) + "\n")
        os.rename(unfinished, target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return counts


def _stored(record: Record, images: Path, folder: Path) -> dict[str, Any]:
    """The record as a line of the released format, its speech written to `folder`."""
    audios = []
    for number, waveform in enumerate(record.audios):
        audios.append(f"audios/{record.sample_id:08x}_{number}.wav")
        write_wav(folder / audios[-1], waveform)
    return {
        "messages": [dataclasses.asdict(message) for message in record.messages],
        "images": [str((images / path).resolve()) for path in record.images],
        "audios": audios,
    }
