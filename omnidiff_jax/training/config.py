"""What every training run is told, whatever it trains, as one frozen value."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from jax.sharding import Mesh

from omnidiff_jax.config import Count, DecayRate, Natural, NonNegative, Positive, Seed, Share, check_fields, free
from omnidiff_jax.data.mixture import Stage, scale_stages
from omnidiff_jax.errors import UserError
from omnidiff_jax.sharding.mesh import MeshConfig, batch_parts, make_mesh
from omnidiff_jax.sharding.rules import BATCH_AXES
from omnidiff_jax.training.checkpoint import CheckpointConfig
from omnidiff_jax.training.operations.journal import OperationsConfig


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Defaults are those of the paper (arXiv 2603.06577, training details).

    Attributes:
        algorithm: "adamw", or "muon" for the backbone's matrices (`training/muon.py`) with AdamW for the rest.
        matrix_rate: under "muon", the matrices' learning rate as a multiple of the schedule's.
        newton_schulz_steps: under "muon", how many times a momentum is brought nearer to an orthogonal matrix.
        b1, b2, eps, weight_decay: AdamW.
        clip_norm: global gradient norm above which gradients are scaled down.
        warmup_fraction: share of each stage's steps spent on linear warm-up from 0.
        final_fraction: learning rate at the end of a stage's cosine, as a share of its peak.
        moment_dtype: dtype of the first moment ("bfloat16" saves two bytes a parameter).
        second_moment_dtype: likewise; bfloat16 holds 8 bits of a number, so b2 may be 0.99 at most: a step must
            change the average by more than its rounding.
        moments_on: "host" keeps both moments in the host's memory and fetches them in every step.
        frozen: patterns over "/"-joined parameter paths (`fnmatch`, "*" crosses "/"); matching ones get no update.
        slow: patterns likewise; matching ones learn at `slow_rate` times the schedule's rate.
        slow_rate: see `slow`.
        ema_decay: decay of the weight average used for sampling; 0 keeps none.
    """

    algorithm: Literal["adamw", "muon"] = "adamw"
    matrix_rate: Positive = 8.0
    newton_schulz_steps: Count = 5
    b1: DecayRate = 0.9
    b2: DecayRate = 0.95
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    clip_norm: Positive = 1.0
    warmup_fraction: Share = 0.03
    final_fraction: Share = 0.0
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    second_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    moments_on: Literal["device", "host"] = free("device")
    frozen: tuple[str, ...] = ("speech_encoder/*",)
    slow: tuple[str, ...] = ()
    slow_rate: Positive = 0.1
    ema_decay: DecayRate = 0.0

    def __post_init__(self):
        if self.second_moment_dtype == "bfloat16" and self.b2 > 0.99:
            raise ValueError(f"b2 = {self.b2} must be at most 0.99 for second_moment_dtype = 'bfloat16'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The common part of a run's config; a program adds what it trains and on what.

    It is stored with every checkpoint. A run that goes on must agree with it on every field but the `free` ones.

    Attributes:
        program: what is trained: "omni" or one of the tokenizers.
        seed: of parameters, order of data and masks.
        batch_size: rows (or utterances, pictures) a step, over all devices.
        accumulate: microbatches a step.
        total_steps: caps the whole curriculum, stages shrink in proportion; 0 = as the stages plan.
        stages: by name, trained in the order of their names.
        optimizer: see `OptimizerConfig`.
        dtype: of activations and matrix products; parameters are float32.
        checkpoint_every: steps between saves.
        keep_checkpoints: newest checkpoints kept.
        keep_period: also keep every checkpoint whose step is a multiple of this; 0 keeps none.
        operations: how the run is watched.
        mesh: sizes of the mesh axes.
        sharding: a strategy of `sharding.rules`.
        slice: of the preset, if one was chosen; for `omnidiff preflight`.
        compilation_cache: folder of compiled programs; "" = JAX_COMPILATION_CACHE_DIR, or the user's cache.
    """

    program: str = "omni"
    seed: Seed = 0
    batch_size: Count
    accumulate: Count = free(1)
    total_steps: Natural = 0
    stages: Mapping[str, Stage]
    optimizer: OptimizerConfig = OptimizerConfig()
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    checkpoint_every: Count = free(1000)
    keep_checkpoints: Count = free(2)
    keep_period: Natural = free(0)
    operations: OperationsConfig = free(OperationsConfig())
    mesh: MeshConfig = free(MeshConfig())
    sharding: str = free("fsdp")
    slice: str = free("")
    compilation_cache: str = free("")

    def __post_init__(self):
        check_fields(self, "config")
        if not self.stages:
            raise UserError("config.stages is empty; give the run at least one stage")

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The stages by name, scaled in proportion to add up to `total_steps`."""
        named = [dataclasses.replace(self.stages[name], name=name) for name in sorted(self.stages)]
        return scale_stages(named, self.total_steps)

    @property
    def checkpoint(self) -> CheckpointConfig:
        """When checkpoints are saved and which are kept."""
        return CheckpointConfig(self.checkpoint_every, self.keep_checkpoints, self.keep_period)

    @property
    def optimizer_used(self) -> OptimizerConfig:
        """The optimizer with what else of the config says which parameters are frozen."""
        return self.optimizer

    def make_mesh(self) -> Mesh:
        """The device mesh.

        Raises:
            UserError: devices that the mesh does not fit, or a batch that cannot be split over it.
        """
        mesh = make_mesh(self.mesh)
        self.check_batch(mesh)
        return mesh

    def check_batch(self, mesh: Mesh) -> None:
        """Raises UserError where a batch cannot be split over the devices of `mesh` and the microbatches."""
        parts = batch_parts(mesh)
        if self.batch_size % (parts * self.accumulate):
            raise UserError(
                f"config.batch_size = {self.batch_size} rows cannot be split over {parts} devices (mesh axes "
                f"{' and '.join(BATCH_AXES)}) in config.accumulate = {self.accumulate} microbatches; use a "
                f"multiple of {parts * self.accumulate}, or another config.mesh"
            )
