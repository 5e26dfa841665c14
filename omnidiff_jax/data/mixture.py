"""The curriculum as data: stages of weighted sources, interleaved so that proportions hold over short windows."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from omnidiff_jax.config import Count, NonNegative, Share, check_fields, suggest
from omnidiff_jax.errors import UserError
from omnidiff_jax.tasks.registry import TASKS

_GOLDEN = 0.6180339887498949


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run: its share of the steps, its learning rate, and what it is trained on.

    Attributes:
        steps: optimizer steps.
        learning_rate: peak of its warm-up and cosine.
        weights: source name -> share of the samples; need not sum to 1. A program with data of its own has none.
        epochs: source name -> in place of a weight, how often its samples count: 0.5 draws half as many from it, by its
            size, as 1 does from another. A stage has weights or epochs.
        caps: source name -> of its samples, as many at most count by `epochs`.
        final_fraction: learning rate at its end as a share of the peak; None = the optimizer's.
        name: how metrics, logs and checkpoints call it.
    """

    steps: Count
    learning_rate: NonNegative = 0.0
    weights: Mapping[str, NonNegative] = dataclasses.field(default_factory=dict)
    epochs: Mapping[str, NonNegative] = dataclasses.field(default_factory=dict)
    caps: Mapping[str, Count] = dataclasses.field(default_factory=dict)
    final_fraction: Share | None = None
    name: str = ""

    def __post_init__(self):
        where = f"stage {self.name}" if self.name else "stage"
        check_fields(self, where)
        if self.epochs and self.weights:
            raise UserError(f"{where} has weights and epochs, which are of different scales; give one of them")
        if unused := sorted(self.caps.keys() - self.epochs.keys()):
            raise UserError(
                f"{where} caps {unused[0]!r}, which its epochs do not name; {suggest(unused[0], self.epochs)}"
            )

    @property
    def named(self) -> dict[str, float]:
        """What the stage draws from: names of sources or tasks with their weights or epochs."""
        return {**self.weights, **self.epochs}

    def shares(self, tasks: Mapping[str, str], sizes: Mapping[str, int]) -> dict[str, float]:
        """The weight of every source.

        A task's name weighs all its sources together, in proportion to their sizes; a source's name goes before a
        task's. By epochs, every source weighs as much as it has samples, times its epochs.

        Args:
            tasks: source -> task.
            sizes: source -> number of samples.

        Raises:
            UserError: a name that is neither, a source weighed by both, an empty one, or no weight at all.
        """
        shares = dict.fromkeys(tasks, 0.0)
        for name, weight in self.named.items():
            members = [name] if name in tasks else [source for source, task in tasks.items() if task == name]
            if not members:
                known = [*tasks, *(task for task in tasks.values() if task)]
                raise UserError(f"stage {self.name!r} weighs the unknown source {name!r}; {suggest(name, known)}")
            counted = {source: min(sizes[source], self.caps.get(name, sizes[source])) for source in members}
            total = 1 if name in self.epochs else sum(counted.values())
            for source in members:
                if weight and shares[source]:
                    raise UserError(
                        f"stage {self.name!r} weighs source {source!r} by its own name and by that of its task "
                        f"{tasks[source]!r}; leave one out"
                    )
                if weight and not sizes[source]:
                    raise UserError(
                        f"source {source!r} of stage {self.name!r} is empty; build it or set its weight to 0"
                    )
                if weight:
                    whole = len(members) == 1 and name in self.weights
                    shares[source] = weight if whole else weight * counted[source] / total
        if not any(shares.values()):
            raise UserError(f"stage {self.name!r} needs a positive weight for at least one source")
        return shares


def scale_stages(stages: Sequence[Stage], total_steps: int) -> tuple[Stage, ...]:
    """Stages whose steps are scaled in proportion to add up to `total_steps` (0 = as they are, which is also the most);
    one left without a step drops out."""
    planned = sum(stage.steps for stage in stages)
    if not 0 < total_steps < planned:
        return tuple(stages)
    bounds = np.round(np.cumsum([stage.steps for stage in stages]) * total_steps / planned).astype(int)
    lengths = np.diff(bounds, prepend=0)
    return tuple(dataclasses.replace(s, steps=int(n)) for s, n in zip(stages, lengths, strict=True) if n)


def stage_at(stages: Sequence[Stage], step: int) -> int:
    """Index of the stage that step `step` (from 0) belongs to; the last stage has no end."""
    end = 0
    for number, stage in enumerate(stages):
        end += stage.steps
        if step < end:
            return number
    return len(stages) - 1


class Interleave:
    """Chooses a source for each sample: always the one furthest behind its share.

    After n choices every source has been chosen within one or two of n times its share, from any start; a phase per
    (stream, source) keeps the streams from choosing in step. `taken` is the whole state.
    """

    def __init__(self, weights: Sequence[float], stream: int = 0):
        """Args: weights, one per source, not all zero; stream, number of the virtual stream."""
        total = sum(weights)
        self._shares = [weight / total for weight in weights]
        self._phases = [(stream + 1) * (source + 1) * _GOLDEN % 1.0 for source in range(len(weights))]
        self.taken = [0] * len(weights)

    def choose(self) -> int:
        """The index of the next source."""
        n = sum(self.taken) + 1
        best, most = 0, float("-inf")
        for source, (share, phase, taken) in enumerate(zip(self._shares, self._phases, self.taken, strict=True)):
            if share:
                behind = share * (n + phase) - taken
                if behind > most:
                    best, most = source, behind
        self.taken[best] += 1
        return best

    def give_back(self, source: int) -> None:
        """Takes back the last choice of a source that had nothing to give: shares are those of what is used."""
        self.taken[source] -= 1


def group_names(tasks: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The (source, task) pairs that loss is told apart by; one for a source with a task, else one for every task.

    Args:
        tasks: source -> task, "" where each sample has its own.
    """
    return tuple((name, kind) for name, task in tasks.items() for kind in ([task] if task else TASKS))
