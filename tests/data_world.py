"""A small made-up corpus shared by the data tests."""

import numpy as np

from omnidiff_jax.data.mixture import Stage
from omnidiff_jax.data.sources import Source
from omnidiff_jax.data.streams import Corpus
from omnidiff_jax.records import EncodedExample
from omnidiff_jax.vocabulary import Vocabulary

VOCABULARY = Vocabulary.compact(300, 32, 16)
TASKS = ("read", "hear", "draw")


def example(sample_id, task="read", text=8, heard=(), width=3):
    """`text` ids with the utterances in their middle; frame values name (sample, frame)."""
    rng = np.random.default_rng(sample_id)
    half = text // 2
    ids = rng.integers(0, 300, text)
    slots = np.full(sum(heard) + 4 * len(heard), VOCABULARY.context_audio)
    tokens = np.concatenate([ids[:half], slots, ids[half:]]).astype(np.int32)
    targets = np.arange(len(tokens)) >= half + len(slots)
    frames = np.repeat(sample_id % 97 + np.arange(sum(heard))[:, None] / 64, width, axis=1).astype(np.float32)
    return EncodedExample(sample_id, task, tokens, targets, frames, np.array(heard, np.int32))


def corpus(stages=None, sizes=(40, 30, 20)):
    """Three sources named after their tasks: text only, one or two utterances, long."""
    rng = np.random.default_rng(7)
    read = [example(i, "read", int(rng.integers(2, 20))) for i in range(sizes[0])]
    hear = [
        example(1000 + i, "hear", int(rng.integers(2, 10)), tuple(rng.integers(0, 6, 1 + i % 2)))
        for i in range(sizes[1])
    ]
    draw = [example(2000 + i, "draw", int(rng.integers(20, 40))) for i in range(sizes[2])]
    stages = stages or (Stage(10, weights={"read": 2.0, "hear": 1.0, "draw": 1.0}, name="all"),)
    sources = {name: Source(list(held), name) for name, held in zip(TASKS, (read, hear, draw), strict=True)}
    return Corpus(sources, stages, VOCABULARY)
