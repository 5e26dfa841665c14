"""`EncodedExample` to bytes and back: a versioned header and raw little-endian arrays, no pickle.

Layout: header `<4sHHIIIII` (magic, version, frame width, sample id, tokens n, frames T, utterances U, task bytes),
then task (UTF-8), tokens int32 [n], frame_counts int32 [U], targets packed 8 to a byte, frames float16 [T, width].
"""

import struct

import numpy as np

from omnidiff_jax.errors import UserError
from omnidiff_jax.records import EncodedExample

MAGIC = b"OMDX"
VERSION = 1
_HEADER = struct.Struct("<4sHHIIIII")


def to_bytes(example: EncodedExample) -> bytes:
    """Serializes `example`; frames are stored as float16."""
    frames = np.asarray(example.frames, "<f2")
    task = example.task.encode()
    counts = np.asarray(example.frame_counts, "<i4")
    header = _HEADER.pack(
        MAGIC,
        VERSION,
        frames.shape[1],
        example.sample_id,
        len(example.tokens),
        len(frames),
        len(counts),
        len(task),
    )
    tokens = np.asarray(example.tokens, "<i4")
    targets = np.packbits(np.asarray(example.targets, bool))
    return b"".join((header, task, tokens.tobytes(), counts.tobytes(), targets.tobytes(), frames.tobytes()))


def from_bytes(data: bytes) -> EncodedExample:
    """What `to_bytes` wrote; the arrays are read-only views of `data`, frames float16.

    Raises:
        UserError: not an example, another version, or cut short.
    """
    if len(data) < _HEADER.size or data[:4] != MAGIC:
        raise UserError("the record is not an encoded example; build the data set again")
    _, version, width, sample_id, n, frames, utterances, task_bytes = _HEADER.unpack_from(data)
    if version != VERSION:
        raise UserError(f"the example is of version {version}, this code reads {VERSION}; build the data set again")
    at = _HEADER.size
    packed = (n + 7) // 8
    if len(data) != at + task_bytes + 4 * n + 4 * utterances + packed + 2 * frames * width:
        raise UserError("the example is cut short; build the data set again")
    task = data[at : at + task_bytes].decode()
    at += task_bytes
    tokens = np.frombuffer(data, "<i4", n, at)
    at += 4 * n
    counts = np.frombuffer(data, "<i4", utterances, at)
    at += 4 * utterances
    targets = np.unpackbits(np.frombuffer(data, np.uint8, packed, at), count=n).view(bool)
    at += packed
    features = np.frombuffer(data, "<f2", frames * width, at).reshape(frames, width)
    return EncodedExample(sample_id, task, tokens, targets, features, counts)
