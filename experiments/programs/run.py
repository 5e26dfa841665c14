"""What every training config has in common: seed, stages, optimizer, mesh, checkpoints."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from omnidiff_jax.config import build
from omnidiff_jax.diffusion.masking import MaskingConfig
from omnidiff_jax.errors import UserError
from omnidiff_jax.sharding.mesh import MeshConfig, make_mesh
from omnidiff_jax.training.checkpoint import CheckpointConfig
from omnidiff_jax.training.layout import LoopConfig
from omnidiff_jax.training.loop import train
from omnidiff_jax.training.operations.journal import OperationsConfig
from omnidiff_jax.training.optimizer import OptimizerConfig
from omnidiff_jax.training.program import StagePlan, TrainProgram, scale_stages
from omnidiff_jax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """Arguments of `training.loop.train` that follow from a config.

    Attributes:
        same_config: keys that a checkpoint must agree on to be resumed.
        free_config: dotted keys within those that may differ.
        initial_params: what a fresh run starts from; None = the program's own.
        found: of what the config names, to be stored with it in checkpoints: group -> key -> value.
    """

    program: TrainProgram
    loop: LoopConfig
    optimizer: OptimizerConfig
    stages: tuple[StagePlan, ...]
    mesh: Mesh
    same_config: tuple[str, ...]
    free_config: tuple[str, ...] = ()
    initial_params: Callable[[Any], Any] | None = None
    found: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


def plain(config: ConfigDict) -> dict[str, Any]:
    """The config as nested dicts and lists, as checkpoints store it."""
    return _plain(config.to_dict())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """A stage of `config.stages`: its steps, peak learning rate, mixture weights by task, and the learning rate at its
    end as a share of the peak (None = the optimizer's)."""

    steps: int
    learning_rate: float
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    final_fraction: float | None = None


def require_program(config: ConfigDict, program: str) -> None:
    """Refuses a config of something else.

    Raises:
        UserError: `config.program` is another one, or missing.
    """
    if config.get("program") != program:
        raise UserError(f"config.program = {config.get('program')!r}; this needs a config of program {program!r}")


def stage_plans(config: ConfigDict) -> tuple[StagePlan, ...]:
    """The stages in the order of their names, scaled in proportion to add up to `total_steps` (0 = as planned)."""
    stages = {name: build(StageConfig, stage, f"config.stages.{name}") for name, stage in config.stages.items()}
    plans = tuple(StagePlan(name, s.steps, s.learning_rate, s.final_fraction) for name, s in stages.items())
    if config.total_steps < 0:
        raise UserError(f"config.total_steps = {config.total_steps} must be at least 0 (0 = as the stages plan)")
    return scale_stages(plans, config.total_steps)


def config_mesh(config: ConfigDict) -> Mesh:
    """The device mesh of `config.mesh`."""
    return make_mesh(build(MeshConfig, config.mesh, "config.mesh"))


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """Mesh axes that batch rows are split over."""
    return tuple(axis for axis in ("data", "fsdp") if axis in mesh.shape)


def loop_config(config: ConfigDict) -> LoopConfig:
    """Of the loop; `keep_period`, `operations` and their parts may be left out of a config."""
    period = config.get("keep_period", 0)
    kept = {"every": config.checkpoint_every, "keep": config.keep_checkpoints, "keep_period": period}
    checkpoint = build(CheckpointConfig, kept, "config.checkpoint_every, keep_checkpoints, keep_period")
    operations = build(OperationsConfig, config.get("operations", {}), "config.operations")
    return LoopConfig(config.seed, config.accumulate, checkpoint=checkpoint, operations=operations)


def masking_config(config: ConfigDict) -> MaskingConfig:
    settings = {"mode": config.masking, "tail_pad_gamma": config.tail_pad_gamma, "min_noise": config.min_noise}
    return build(MaskingConfig, settings, "config")


def optimizer_config(config: ConfigDict) -> OptimizerConfig:
    return build(OptimizerConfig, config.optimizer, "config.optimizer")


def start(run: Run, config: ConfigDict, workdir: str | os.PathLike[str], **options: Any) -> TrainState:
    """Trains a run of `config` in `workdir`; `options` are those of `training.loop.train`."""
    return train(
        run.program,
        run.loop,
        run.optimizer,
        run.stages,
        workdir,
        run.mesh,
        run_config=stored(run, config),
        same_config=run.same_config,
        free_config=run.free_config,
        initial_params=run.initial_params,
        **options,
    )


def stored(run: Run, config: ConfigDict) -> dict[str, Any]:
    """What checkpoints keep of a config: itself, and what was found where it points."""
    kept = plain(config)
    for group, values in run.found.items():
        kept[group] = {**kept[group], **values}
    return kept


def check_batch(config: ConfigDict, mesh: Mesh) -> int:
    """Number of parts that the mesh splits a batch into.

    Raises:
        UserError: `config.batch_size` cannot be split into them and the microbatches.
    """
    parts = math.prod(mesh.shape[axis] for axis in batch_axes(mesh))
    if config.accumulate < 1 or config.batch_size % (parts * config.accumulate):
        raise UserError(
            f"config.batch_size = {config.batch_size} rows cannot be split over {parts} devices (mesh axes "
            f"{' and '.join(batch_axes(mesh))}) in config.accumulate = {config.accumulate} microbatches; use a "
            f"multiple of {parts * max(config.accumulate, 1)}, or another config.mesh"
        )
    return parts


def tokenizer_run(config: ConfigDict, program: TrainProgram) -> Run:
    """A run of one of the tokenizers' programs, which differ in nothing else."""
    same = ("program", "seed", "batch_size", "stages", "total_steps", "training")
    mesh = config_mesh(config)
    check_batch(config, mesh)
    return Run(program, loop_config(config), optimizer_config(config), stage_plans(config), mesh, same)
