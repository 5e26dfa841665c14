"""What a run's weights amount to: the mixture that its batches really hold, beside the one that was asked for."""

import dataclasses
from typing import Any

import numpy as np

from omnidiff_jax.data.config import DataConfig
from omnidiff_jax.data.hosting import HostBatches
from omnidiff_jax.data.streams import Corpus


def effective_mixture(corpus: Corpus, config: DataConfig, batches: int) -> dict[str, Any]:
    """Draws batches of each stage as training would, without a model.

    Args:
        corpus: sources and stages.
        config: order and shape.
        batches: of each stage.

    Returns:
        JSON: stage -> source -> `asked` (share of its weight), `samples` and `tokens` (its shares of what the batches
        hold), `rejected` (share of what was drawn of it that could not be used), `epochs` (how often the stage's steps
        go through it) and `examples` (its size).
    """
    return {
        stage.name or str(number): _of_stage(dataclasses.replace(corpus, stages=(stage,)), config, batches)
        for number, stage in enumerate(corpus.stages)
    }


def _of_stage(corpus: Corpus, config: DataConfig, batches: int) -> dict[str, Any]:
    host, names = HostBatches(corpus, config), list(corpus.sources)
    # Of the (source, task) pairs that batches number, the source.
    owner = np.array([names.index(name) for name, _ in corpus.groups])
    samples, tokens = np.zeros(len(names)), np.zeros(len(names))
    for _ in range(batches):
        batch = next(host)
        for groups, segments in zip(batch.group_ids, np.asarray(batch.inputs.segment_ids), strict=True):
            used = np.asarray(groups)[np.asarray(groups) >= 0]
            lengths = np.bincount(segments, minlength=len(used) + 1)[1 : len(used) + 1]
            np.add.at(samples, owner[used], 1)
            np.add.at(tokens, owner[used], lengths)
    shares = np.array(corpus.shares[0]) / sum(corpus.shares[0])
    drawn = {name: sum(state["draws"][name] for state in _streams(host)) for name in names}
    rejected = {name: sum(n for key, n in host.rejected.items() if key.startswith(f"{name}: ")) for name in names}
    steps = corpus.stages[0].steps / batches
    return {
        name: {
            "asked": round(float(shares[number]), 6),
            "samples": round(float(samples[number] / max(samples.sum(), 1)), 6),
            "tokens": round(float(tokens[number] / max(tokens.sum(), 1)), 6),
            "rejected": round(rejected[name] / max(drawn[name], 1), 6),
            "epochs": round(float(samples[number] * steps / max(len(corpus.sources[name]), 1)), 3),
            "examples": len(corpus.sources[name]),
        }
        for number, name in enumerate(names)
        if shares[number]
    }


def _streams(host: HostBatches) -> list[dict[str, Any]]:
    return [state for stream, state in host.get_state().items() if stream != "sources"]
