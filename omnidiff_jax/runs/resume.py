"""What a run that goes on may change of what it learns from.

Sources may be added, none dropped or renamed, unless `data.remix` says that the mixture is to be another one.
"""

import dataclasses
from collections.abc import Set

from omnidiff_jax.data.mixture import Stage
from omnidiff_jax.errors import UserError, notice
from omnidiff_jax.runs.config import RunConfig
from omnidiff_jax.training.run import refuse_difference


def check_resume(old: RunConfig, new: RunConfig, where: str) -> None:
    """Refuses to go on from a checkpoint of another config, but for sources that it had not, and their weights.

    Args:
        old: config of the checkpoint.
        new: of the run that would go on.
        where: the checkpoint lies, for messages.

    Raises:
        UserError: a source is missing, or the first field that differs, with both values.
    """
    before, now = old.sources, new.sources
    if new.data.remix:
        refuse_difference(remixed(old, new), new, where)
        _tell("new to this run, and drawn from here on", now.keys() - before.keys())
        _tell("not in this run any more", before.keys() - now.keys())
        return
    for name, source in before.items():
        if name not in new.data.sources:
            twins = [other for other, found in now.items() if found == source and other not in before]
            remedy = f"call {twins[0]!r} {name!r} again" if twins else "put it back, or use another --workdir"
            raise UserError(f"{where} was trained on source {name!r}, which this config does not have; {remedy}")
    refuse_difference(with_added(old, new), new, where)
    _tell("new to this run, and drawn from here on", now.keys() - before.keys())


def _tell(what: str, names: Set[str]) -> None:
    if names:
        notice(f"{what}: {', '.join(map(repr, sorted(names)))}")


def remixed(old: RunConfig, new: RunConfig) -> RunConfig:
    """`old` with the sources and weights of `new`; sources of both stay what they were."""
    sources = {name: old.data.sources.get(name, source) for name, source in new.data.sources.items()}
    stages = {
        name: _mixed(stage, new.stages[name]) if name in new.stages else stage for name, stage in old.stages.items()
    }
    return dataclasses.replace(old, data=dataclasses.replace(old.data, sources=sources), stages=stages)


def _mixed(stage: Stage, new: Stage) -> Stage:
    return dataclasses.replace(stage, weights=new.weights, epochs=new.epochs, caps=new.caps)


def with_added(old: RunConfig, new: RunConfig) -> RunConfig:
    """`old` with the sources that only `new` has, and their weights by their own names.

    Of those that `old` names and no stage of it weighs, `new` decides too. A name that `old` weighed as a task's is no
    source to be added: the task's own sources would lose that weight to it.
    """
    weighed = {name for stage in old.stages.values() for name, weight in stage.named.items() if weight}
    free = (old.data.sources.keys() | new.data.sources.keys()) - old.sources.keys() - weighed
    kept = {name: source for name, source in old.data.sources.items() if name not in free}
    added = {name: source for name, source in new.data.sources.items() if name in free}
    stages = dict(old.stages)
    for name, stage in old.stages.items():
        if name in new.stages:
            mine = {source: weight for source, weight in stage.weights.items() if source not in free}
            theirs = {source: weight for source, weight in new.stages[name].weights.items() if source in free}
            stages[name] = dataclasses.replace(stage, weights=mine | theirs)
    return dataclasses.replace(old, data=dataclasses.replace(old.data, sources=kept | added), stages=stages)
