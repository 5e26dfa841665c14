"""From a training config to the objects that run it; the only place where ConfigDicts turn into dataclasses."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from experiments.programs.tokenizers import Tokenizers, load_tokenizers
from omnidiff_jax.config import build, suggest
from omnidiff_jax.data.loader import Loader
from omnidiff_jax.data.mixture import Stage
from omnidiff_jax.data.packing import PackingConfig
from omnidiff_jax.data.sources import RandomAccess
from omnidiff_jax.data.storage import EncodedSet
from omnidiff_jax.data.streams import Corpus, DataConfig
from omnidiff_jax.diffusion.loss import LossConfig
from omnidiff_jax.diffusion.masking import MaskingConfig
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.adapter import AdapterConfig
from omnidiff_jax.models.backbone import BackboneConfig
from omnidiff_jax.models.omni import OmniConfig, OmniModel
from omnidiff_jax.records import EncodedExample
from omnidiff_jax.sampling.denoiser import Denoiser, module_denoiser
from omnidiff_jax.sharding.mesh import MeshConfig, make_mesh
from omnidiff_jax.sharding.rules import param_specs
from omnidiff_jax.tasks.registry import TASKS, Decoding
from omnidiff_jax.training.checkpoint import CheckpointConfig, Checkpointer, check_same_config
from omnidiff_jax.training.loop import LoopConfig, abstract_state
from omnidiff_jax.training.omni import OmniProgram
from omnidiff_jax.training.optimizer import OptimizerConfig
from omnidiff_jax.training.program import StagePlan, scale_stages
from omnidiff_jax.training.step import eval_params

# What a checkpoint must agree on with the config that goes on from it.
SAME_CONFIG = ("program", "seed", "batch_size", "model", "tokenizers", "masking", "tail_pad_gamma", "data", "stages", "total_steps")


@dataclasses.dataclass(frozen=True)
class Run:
    """Arguments of `training.loop.train` that follow from a config."""

    program: OmniProgram
    loop: LoopConfig
    optimizer: OptimizerConfig
    stages: tuple[StagePlan, ...]
    mesh: Mesh
    tokenizers: Tokenizers


def plain(config: ConfigDict) -> dict[str, Any]:
    """The config as nested dicts and lists, as checkpoints store it."""
    return _plain(config.to_dict())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def stage_plans(config: ConfigDict) -> tuple[StagePlan, ...]:
    """The curriculum's stages in the order of their names, scaled to `total_steps`."""
    plans = tuple(StagePlan(name, s.steps, float(s.learning_rate)) for name, s in config.stages.items())
    return scale_stages(plans, config.total_steps)


def task_names(config: ConfigDict) -> tuple[str, ...]:
    """Every task that some stage trains on, in the registry's order."""
    used = {name for stage in config.stages.values() for name in stage.weights}
    for name in sorted(used - set(TASKS)):
        raise UserError(f"config.stages weighs the unknown task {name!r}; {suggest(name, TASKS)}")
    return tuple(name for name in TASKS if name in used)


def model_config(config: ConfigDict, tokenizers: Tokenizers) -> OmniConfig:
    """Sizes of the model; the vocabulary's and the speech encoder's follow from the tokenizers."""
    given = dict(config.model)
    backbone = build(
        BackboneConfig, given | {"vocab_size": tokenizers.vocabulary.size, "dtype": config.dtype}, "config.model"
    )
    encoder = tokenizers.speech_encoder
    adapter = AdapterConfig(inputs=encoder.width if encoder else 1, outputs=backbone.width)
    return OmniConfig(backbone, encoder, adapter)


def packing_config(config: ConfigDict, tokenizers: Tokenizers) -> PackingConfig:
    data, encoder = config.data, tokenizers.speech_encoder
    return PackingConfig(
        length=data.length,
        frames=data.frames,
        samples=data.samples,
        open_rows=data.open_rows,
        query_rows=encoder.queries if encoder else (),
        frame_width=encoder.features if encoder else 560,
    )


def data_config(config: ConfigDict, tokenizers: Tokenizers) -> DataConfig:
    return DataConfig(
        seed=config.seed,
        batch_size=config.batch_size,
        streams=config.data.streams,
        max_tail_pads=config.data.max_tail_pads,
        packing=packing_config(config, tokenizers),
    )


def open_sets(folder: str | os.PathLike[str], names: Sequence[str], tokenizers: Tokenizers) -> dict[str, EncodedSet]:
    """The encoded data sets `folder/NAME`."""
    return {name: EncodedSet(Path(folder) / name, tokenizers.vocabulary) for name in names}


def omni_run(config: ConfigDict, sources: Mapping[str, RandomAccess[EncodedExample]], tokenizers: Tokenizers) -> Run:
    """Everything `train` needs for a backbone config.

    Args:
        config: as `experiments/configs/nano.py` gives it.
        sources: encoded samples of each task.
        tokenizers: from `load_tokenizers`.
    """
    mesh = make_mesh(build(MeshConfig, config.mesh, "config.mesh"))
    stages, tasks = stage_plans(config), task_names(config)
    model = model_config(config, tokenizers)
    curriculum = [Stage(p.name, p.steps, dict(config.stages[p.name].weights)) for p in stages]
    corpus = Corpus({name: sources[name] for name in tasks}, curriculum, tokenizers.vocabulary)
    axes = tuple(a for a in ("data", "fsdp") if a in mesh.shape)
    sharding = NamedSharding(mesh, PartitionSpec(axes))

    def open_loader(seed: int) -> Loader:
        return Loader(corpus, data_config(config, tokenizers), tasks, sharding)

    groups = 1
    for axis in axes:
        groups *= mesh.shape[axis]
    program = OmniProgram(
        model=model,
        vocabulary=tokenizers.vocabulary,
        masking=MaskingConfig(mode=config.masking, tail_pad_gamma=float(config.tail_pad_gamma)),
        loss_config=build(LossConfig, dict(config.loss) | {"groups": groups}, "config.loss"),
        tasks=tasks,
        open_loader=open_loader,
        seed=config.seed,
        pretrained={"speech_encoder": tokenizers.speech_encoder_params} if tokenizers.speech_encoder else {},
        specs=lambda boxed: param_specs(boxed, config.sharding, mesh),
    )
    loop = LoopConfig(
        seed=config.seed,
        accumulate=config.accumulate,
        checkpoint=CheckpointConfig(every=config.checkpoint_every, keep=config.keep_checkpoints),
    )
    return Run(program, loop, build(OptimizerConfig, config.optimizer, "config.optimizer"), stages, mesh, tokenizers)


def decoding_settings(config: ConfigDict) -> dict[str, Decoding]:
    """Decoding by task: the config's `decoding` group over the registry's defaults."""
    return {name: build(Decoding, group, f"config.decoding.{name}") for name, group in config.get("decoding", {}).items()}


def load_denoiser(config: ConfigDict, workdir: str | os.PathLike[str], tokenizers: Tokenizers) -> Denoiser:
    """The newest checkpoint of `workdir`, ready to sample from.

    Raises:
        UserError: no checkpoint, or one of another config.
    """
    saver = Checkpointer(workdir, CheckpointConfig(), read_only=True)
    check_same_config(saver.config(), plain(config), ("program", "model", "tokenizers"), f"checkpoint of {workdir}")
    mesh = make_mesh(build(MeshConfig, config.mesh, "config.mesh"))
    model = model_config(config, tokenizers)
    program = OmniProgram(
        model, tokenizers.vocabulary, MaskingConfig(), LossConfig(), task_names(config), open_loader=None,  # type: ignore[arg-type]
        pretrained={"speech_encoder": tokenizers.speech_encoder_params} if tokenizers.speech_encoder else {},
        specs=lambda boxed: param_specs(boxed, config.sharding, mesh),
    )  # fmt: skip
    optimizer = build(OptimizerConfig, config.optimizer, "config.optimizer")
    with jax.set_mesh(mesh):
        state, _, _ = saver.restore(abstract_state(program, LoopConfig(), optimizer, stage_plans(config), mesh))
    saver.close()
    return module_denoiser(OmniModel(model), eval_params(state))
