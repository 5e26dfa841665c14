"""The example schema: what a data set holds, before and after tokenization."""

import dataclasses
import hashlib
from typing import Any

import numpy as np

IMAGE_TAG = "<|image|>"
AUDIO_TAG = "<|audio|>"


@dataclasses.dataclass(frozen=True)
class Waveform:
    """Mono audio.

    Attributes:
        samples: float32 [n], in [-1, 1].
        rate: samples per second, Hz.
    """

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


@dataclasses.dataclass(frozen=True)
class Medium:
    """An image or audio file that is a part of something: of an archive, of a table, of a longer recording.

    Attributes:
        name: what it is called in messages.
        path: of the file that holds it; "" where `content` does.
        content: its bytes, where they are in memory.
        offset, size: which bytes of `path` it is; size None = up to the end.
        start, end: which seconds of the recording are meant; end None = up to its end.
    """

    name: str
    path: str = ""
    content: bytes | None = dataclasses.field(default=None, repr=False)
    offset: int = 0
    size: int | None = None
    start: float = 0.0
    end: float | None = None


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn: `role` is system, user or assistant; `content` may hold `<|image|>` and `<|audio|>` tags."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Record:
    """One raw sample, media in the order of their tags.

    Attributes:
        sample_id: uint32, stable across runs: masks and pads are keyed by it.
        task: name of a registered task.
        messages: the turns; the assistant's content is the target.
        images: uint8 [H, W, 3] arrays, paths, or `Medium`s.
        audios: `Waveform`s, paths, or `Medium`s.
        meta: what judges need (reference answers, the scene); never seen by the model.
        hole: the part of the last picture that the answer paints, where the rest of it is given: bool [H, W] over its
            pixels, or a picture that is light there (array, path or `Medium`); None = all of the answer is learned.
    """

    sample_id: int
    task: str
    messages: tuple[Message, ...]
    images: tuple[Any, ...] = ()
    audios: tuple[Any, ...] = ()
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    hole: Any = None


@dataclasses.dataclass(frozen=True)
class EncodedExample:
    """One tokenized sample, still clean (uncorrupted) and without tail padding.

    Attributes:
        sample_id: as in `Record`.
        task: as in `Record`.
        tokens: int32 [n] ids; user audio u stands as `SpeechLayout.slots(frame_counts[u])` context-of-audio ids.
        targets: bool [n], True where the token is the assistant's.
        frames: float16 or float32 [T, W], LFR features (after CMVN) of all user audios, concatenated.
        frame_counts: int32 [U], frames of each user audio.
        waves: int16 [n] samples at 16 kHz of each user audio, where a set keeps these; then there are no frames yet.
    """

    sample_id: int
    task: str
    tokens: np.ndarray
    targets: np.ndarray
    frames: np.ndarray
    frame_counts: np.ndarray
    waves: tuple[np.ndarray, ...] = ()


class RejectedRecord(Exception):
    """A sample that cannot be used.

    Attributes:
        reason: a short phrase to count by, the same for every sample with this fault.
        number: of the sample among those that were asked for together, from 0.
    """

    number = 0

    def __init__(self, reason: str, detail: str = ""):
        """Rejects for `reason`, to count by; `detail` is what is wrong in this very sample."""
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def stable_id(*parts: object) -> int:
    """A uint32 that depends only on `parts` (their `str`), equal in every process and version."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")
