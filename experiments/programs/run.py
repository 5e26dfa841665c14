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
from omnidiff_jax.training.journal import OperationsConfig
from omnidiff_jax.training.loop import LoopConfig, train
from omnidiff_jax.training.optimizer import OptimizerConfig
from omnidiff_jax.training.program import StagePlan, TrainProgram, scale_stages
from omnidiff_jax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """Arguments of `training.loop.train` that follow from a config.

    Attributes:
        same_config: keys that a checkpoint must agree on to be resumed.
        initial_params: what a fresh run starts from; None = the program's own.
    """

    program: TrainProgram
    loop: LoopConfig
    optimizer: OptimizerConfig
    stages: tuple[StagePlan, ...]
    mesh: Mesh
    same_config: tuple[str, ...]
    initial_params: Callable[[Any], Any] | None = None


def plain(config: ConfigDict) -> dict[str, Any]:
    """The config as nested dicts and lists, as checkpoints store it."""
    return _plain(config.to_dict())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def stage_plans(config: ConfigDict) -> tuple[StagePlan, ...]:
    """The stages in the order of their names, scaled in proportion to add up to `total_steps` (0 = as planned)."""
    plans = tuple(
        StagePlan(name, stage.steps, float(stage.learning_rate), stage.get("final_fraction"))
        for name, stage in config.stages.items()
    )
    return scale_stages(plans, config.total_steps)


def config_mesh(config: ConfigDict) -> Mesh:
    """The device mesh of `config.mesh`."""
    return make_mesh(build(MeshConfig, config.mesh, "config.mesh"))


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """Mesh axes that batch rows are split over."""
    return tuple(axis for axis in ("data", "fsdp") if axis in mesh.shape)


def loop_config(config: ConfigDict) -> LoopConfig:
    """Of the loop; `keep_period`, `operations` and their parts may be left out of a config."""
    checkpoint = CheckpointConfig(config.checkpoint_every, config.keep_checkpoints, config.get("keep_period", 0))
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
        run_config=plain(config),
        same_config=run.same_config,
        initial_params=run.initial_params,
        **options,
    )


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
