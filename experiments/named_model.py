"""Which trained model a command line means: `--workdir`, `--model`, a config whose weights lie in a folder, or the
shipped one."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from absl import flags

from experiments.common import Command, ConfigHolder
from omnidiff_jax.answering.load import PRESETS
from omnidiff_jax.config import suggest, to_dict
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.quantized import QUANTIZATIONS
from omnidiff_jax.runs.config import run_config
from omnidiff_jax.runs.stored import is_run
from omnidiff_jax.tasks.registry import TASKS

SHIPPED = "nano"


def model_flags(command: Command) -> tuple[flags.FlagHolder[str | None], flags.FlagHolder[str | None]]:
    """Adds `--workdir` and `--model`, the two ways to name a trained model; `model_named` reads them."""
    workdir = command.string("workdir", "folder of a trained run")
    shipped = "a model's name, shipped or installed, or a folder of weights"
    return workdir, command.string("model", f"in place of --workdir: {shipped} (default without --workdir: {SHIPPED})")


def preset_flag(command: Command) -> flags.FlagHolder[str | None]:
    """Adds `--preset`, as `omnidiff_jax.load` takes it."""
    return command.choice("preset", "fast: fewer calls of the model, if its config says how", PRESETS, default="exact")


def quantize_flag(command: Command) -> flags.FlagHolder[str | None]:
    """Adds `--quantize`, as `omnidiff_jax.load` takes it."""
    kinds = "; ".join(f"{word}: {kind.summary}" for word, kind in QUANTIZATIONS.items())
    return command.choice("quantize", f"hold the large matrices in eight bits ({kinds})", tuple(QUANTIZATIONS))


def model_named(workdir: str | None, model: str | None) -> str:
    """What the flags of `model_flags` name, as `omnidiff_jax.load` takes it; the shipped model where they name none.

    Raises:
        UserError: both, or a workdir without a run.
    """
    if workdir and model:
        raise UserError(f"--workdir={workdir} and --model={model} name two models; leave one out")
    if model:
        return model
    if not workdir:
        return SHIPPED
    if not is_run(workdir):
        raise UserError(f"no checkpoints in {workdir}; train there first (omnidiff train --workdir={workdir})")
    return workdir


def seed_flag(seed: int | None) -> int:
    """The value of a `--seed` of sampling noise; raises UserError beyond 32 bits."""
    if (seed or 0) >= 1 << 32:
        raise UserError(f"--seed={seed} must be below 2^32")
    return seed or 0


def model_and_config(config: ConfigHolder, workdir: str | None, model: str | None) -> tuple[str, dict[str, Any]]:
    """What to load, and the options of `omnidiff_jax.load` that the command line's config words amount to.

    A trained model has a config of its own, of which only decoding can be replaced; with neither `--workdir` nor
    `--model`, `--config` describes a model whose weights `config.init.folder` names.

    Raises:
        UserError: as `model_named`, or words that would change a trained model.
    """
    if not workdir and not model and config.file:
        typed = run_config(config.value)
        if not typed.init.folder:
            raise UserError(
                "--workdir is missing: folder of a trained run (or --config.init.folder: converted weights)"
            )
        return typed.init.folder, {"config": typed}
    what = model_named(workdir, model)
    if config.file:
        raise UserError(f"{what} has a config of its own; leave out --config={config.file}")
    return what, {"decoding": _decoding_words(config.words)}


def _decoding_words(words: Sequence[str]) -> dict[str, Any]:
    """`--config.decoding.TASK.…=VALUE` as nested groups."""
    known = {"decoding": {name: to_dict(task.decoding) for name, task in TASKS.items()}}
    groups: dict[str, Any] = {}
    for word in words:
        key, _, value = word.lstrip("-").partition("=")
        key = key.removeprefix("config.")
        if not key.startswith("decoding."):
            raise UserError(f"{word}: a trained model stays as it is; only --config.decoding.… can be replaced")
        *parents, last = key.split(".")
        place, there = groups, known
        for parent in (*parents, last):
            if isinstance(there, dict) and parent not in there:
                raise UserError(f"unknown config key {key!r}; {suggest(key, _dotted(known))}")
            there = there[parent] if isinstance(there, dict) else None
        for parent in parents[1:]:
            place = place.setdefault(parent, {})
        try:
            place[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"{word}: {value!r} is not a value") from error
    return groups


def _dotted(groups: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for name, value in groups.items():
        keys += _dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
    return keys
