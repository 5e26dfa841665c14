"""Packed samples to the arrays of a `Batch`, in numpy."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from omnidiff_jax.batch import Batch, ModelInputs, SpeechFrames
from omnidiff_jax.data.packing import PackingConfig
from omnidiff_jax.records import EncodedExample, stable_id
from omnidiff_jax.speech_frames import packed_frames
from omnidiff_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One sample as it stands in a row.

    Attributes:
        example: the encoded sample.
        epoch: how often it had been seen before.
        pads: number of tail pads appended to it.
        tokens: size in tokens, tail pads included.
        frames: size in the frame buffer, query slots included.
        group: number of its (source, task) pair.
    """

    example: EncodedExample
    epoch: int
    pads: int
    tokens: int
    frames: int
    group: int = 0


def takes_tail_pads(tokens: np.ndarray, pad: int) -> bool:
    """Whether a sample of these ids is padded; one that holds the pad id already is not (`dataset_qwen2.py`)."""
    return not (tokens == pad).any()


def tail_pads(example: EncodedExample, epoch: int, seed: int, most: int, pad: int) -> int:
    """Number of tail pads, uniform in 1..`most` and a function of (seed, epoch, sample id) only.

    0 if `most` is 0 or, as in the released code, if the pad id occurs in the sample already.
    """
    if most == 0 or not takes_tail_pads(example.tokens, pad):
        return 0
    return 1 + stable_id("tail pads", seed, epoch, example.sample_id) % most


def assemble(rows: Sequence[Sequence[Sample]], config: PackingConfig, vocabulary: Vocabulary) -> Batch:
    """One batch of packed rows.

    Args:
        rows: the samples of each of the B rows; each row fits `config`.
        config: shape of a row.
        vocabulary: knows the id of padding and of the slots that speech fills.

    Returns:
        A `Batch` of numpy arrays.
    """
    shape = (len(rows), config.length)
    tokens = _filled(shape, vocabulary.pad, np.int32)
    segment_ids = _filled(shape, 0, np.int32)
    positions = _filled(shape, 0, np.int32)
    targets = _filled(shape, 0, bool)
    pads = _filled(shape, 0, bool)
    table = (len(rows), config.samples)
    sample_ids = _filled(table, 0, np.uint32)
    epochs = _filled(table, 0, np.int32)
    group_ids = _filled(table, -1, np.int32)
    ones = np.ones(config.length, bool)
    for b, row in enumerate(rows):
        if not row:
            continue
        lengths = np.array([sample.tokens for sample in row])
        ends = np.cumsum(lengths)
        used = ends[-1]
        for sample, end in zip(row, ends.tolist(), strict=True):
            start, clean = end - sample.tokens, end - sample.pads
            tokens[b, start:clean] = sample.example.tokens
            targets[b, start:clean] = sample.example.targets
            targets[b, clean:end] = ones[: sample.pads]
            pads[b, clean:end] = ones[: sample.pads]
        if config.strategy == "released":
            lengths[-1] += config.length - used
            used = config.length
        segment_ids[b, :used] = np.repeat(np.arange(1, len(row) + 1), lengths)
        positions[b, :used] = np.arange(used) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        sample_ids[b, : len(row)] = [sample.example.sample_id for sample in row]
        epochs[b, : len(row)] = [sample.epoch for sample in row]
        group_ids[b, : len(row)] = [sample.group for sample in row]
    speech = _speech(rows, config, tokens == vocabulary.context_audio) if config.frames else None
    return Batch(ModelInputs(tokens, segment_ids, positions, speech), targets, pads, sample_ids, epochs, group_ids)


def _speech(rows: Sequence[Sequence[Sample]], config: PackingConfig, replaced: np.ndarray) -> SpeechFrames:
    """The frame buffers; `replaced` bool [B, L] marks the context tokens, in the order of the utterances' frames."""
    utterances: list[list[tuple[np.ndarray, int]]] = []
    for row, marks in zip(rows, replaced, strict=True):
        heard = [sample.example for sample in row if sample.frames]
        frames = [part for x in heard for part in np.split(x.frames, np.cumsum(x.frame_counts)[:-1])]
        sizes = config.speech.sizes([len(part) for part in frames])
        firsts = np.flatnonzero(marks)[np.cumsum(sizes) - sizes]
        utterances.append(list(zip(frames, firsts.tolist(), strict=True)))
    return packed_frames(utterances, config.frames, config.speech)


def _filled(shape: tuple[int, ...], value: int, dtype: type) -> Any:
    """A numpy array; untyped because the fields of a `Batch` are annotated for the device side."""
    return np.full(shape, value, dtype) if value else np.zeros(shape, dtype)
