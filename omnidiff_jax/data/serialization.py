"""`EncodedExample` to bytes and back: a versioned header and raw little-endian arrays, no pickle.

Layout: header `<4sHHIIIII` (magic, version, frame width, sample id, tokens n, frames T, utterances U, task bytes),
then task (UTF-8), tokens int32 [n], frame_counts int32 [U], targets packed 8 to a byte, and in version 1 frames float16
[T, width], in version 2 the sounds they are made of: int32 [U] numbers of samples, then int16 samples at 16 kHz.
"""

import struct
from collections.abc import Callable

import numpy as np

from omnidiff_jax.codecs.heard import sound
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import EncodedExample, Waveform

MAGIC = b"OMDX"
FRAMES, WAVES = 1, 2
_HEADER = struct.Struct("<4sHHIIIII")


def to_bytes(example: EncodedExample) -> bytes:
    """Serializes `example`; frames are stored as float16, or the waves where it has these."""
    frames = np.asarray(example.frames, "<f2")
    task = example.task.encode()
    counts = np.asarray(example.frame_counts, "<i4")
    header = _HEADER.pack(
        MAGIC,
        WAVES if example.waves else FRAMES,
        frames.shape[1],
        example.sample_id,
        len(example.tokens),
        int(counts.sum()) if example.waves else len(frames),
        len(counts),
        len(task),
    )
    tokens = np.asarray(example.tokens, "<i4")
    targets = np.packbits(np.asarray(example.targets, bool))
    heard = [frames.tobytes()]
    if example.waves:
        heard = [np.array([len(wave) for wave in example.waves], "<i4").tobytes()]
        heard += [np.asarray(wave, "<i2").tobytes() for wave in example.waves]
    return b"".join((header, task, tokens.tobytes(), counts.tobytes(), targets.tobytes(), *heard))


def from_bytes(data: bytes, features: Callable[[Waveform], np.ndarray] | None = None) -> EncodedExample:
    """What `to_bytes` wrote, with its frames; the arrays are read-only views of `data`, frames float16.

    Args:
        data: of an example.
        features: waveform -> float32 [n, width], which makes the frames of one that keeps sounds.

    Raises:
        UserError: not an example, another version, cut short, or sounds whose frames nobody makes or are others.
    """
    if len(data) < _HEADER.size or data[:4] != MAGIC:
        raise UserError("the record is not an encoded example; build the data set again")
    _, version, width, sample_id, n, frames, utterances, task_bytes = _HEADER.unpack_from(data)
    if version not in (FRAMES, WAVES):
        raise UserError(f"the example is of version {version}, this code reads {WAVES}; build the data set again")
    at = _HEADER.size
    packed = (n + 7) // 8
    heard = at + task_bytes + 4 * n + 4 * utterances + packed
    lengths = np.zeros(0, np.int64)
    if version == WAVES and len(data) >= heard + 4 * utterances:
        lengths = np.frombuffer(data, "<i4", utterances, heard).astype(np.int64)
    heard += 2 * frames * width if version == FRAMES else 4 * utterances + 2 * int(lengths.sum())
    if lengths.min(initial=0) < 0 or len(data) != heard:
        raise UserError("the example is cut short; build the data set again")
    task = data[at : at + task_bytes].decode()
    at += task_bytes
    tokens = np.frombuffer(data, "<i4", n, at)
    at += 4 * n
    counts = np.frombuffer(data, "<i4", utterances, at)
    at += 4 * utterances
    targets = np.unpackbits(np.frombuffer(data, np.uint8, packed, at), count=n).view(bool)
    at += packed
    if version == FRAMES:
        made = np.frombuffer(data, "<f2", frames * width, at).reshape(frames, width)
    else:
        starts = at + 4 * utterances + 2 * (np.cumsum(lengths) - lengths)
        waves = [np.frombuffer(data, "<i2", length, start) for length, start in zip(lengths, starts, strict=True)]
        made = _made(waves, features, counts, width)
    return EncodedExample(sample_id, task, tokens, targets, made, counts)


def _made(
    waves: list[np.ndarray], features: Callable[[Waveform], np.ndarray] | None, counts: np.ndarray, width: int
) -> np.ndarray:
    if features is None:
        raise UserError("the example keeps sounds; open its set with the features of a speech encoder")
    made = [np.asarray(features(sound(wave)), np.float16) for wave in waves]
    if [part.shape for part in made] != [(count, width) for count in counts]:
        raise UserError("the sounds of the example make other frames than when it was built; build the data set again")
    return np.concatenate(made)
