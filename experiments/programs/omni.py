"""The backbone's config as the objects that train it and sample from it."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from experiments.programs.run import (
    Run,
    batch_axes,
    check_batch,
    config_mesh,
    loop_config,
    masking_config,
    optimizer_config,
    require_program,
    stage_plans,
)
from experiments.programs.tokenizers import Sizes, Tokenizers, config_sizes, load_tokenizers
from omnidiff_jax import rng
from omnidiff_jax.config import build, choose, refuse_unknown, suggest, to_dict
from omnidiff_jax.conversion.components import OmniParts
from omnidiff_jax.conversion.parts import Summary
from omnidiff_jax.data.loader import Loader
from omnidiff_jax.data.mixture import Stage
from omnidiff_jax.data.packing import PackingConfig
from omnidiff_jax.data.sources import RandomAccess
from omnidiff_jax.data.storage import EncodedSet
from omnidiff_jax.data.streams import Corpus, DataConfig
from omnidiff_jax.diffusion.loss import LossConfig
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.generate import Generator
from omnidiff_jax.models.adapter import AdapterConfig
from omnidiff_jax.models.attention import BACKENDS
from omnidiff_jax.models.backbone import BackboneConfig
from omnidiff_jax.models.omni import OmniConfig, OmniModel
from omnidiff_jax.records import EncodedExample
from omnidiff_jax.sampling.denoiser import Denoiser, module_denoiser
from omnidiff_jax.tasks.registry import TASKS, Decoding
from omnidiff_jax.training.checkpoint import CheckpointConfig, Checkpointer
from omnidiff_jax.training.export import export_run
from omnidiff_jax.training.initial import InitConfig, load_initial
from omnidiff_jax.training.layout import abstract_state
from omnidiff_jax.training.lora import LoraConfig
from omnidiff_jax.training.omni import OmniProgram
from omnidiff_jax.training.optimizer import OptimizerConfig
from omnidiff_jax.training.step import eval_params

# What a checkpoint must agree on with the config that goes on from it, but for how it is computed.
SAME_CONFIG = (
    "program", "seed", "batch_size", "dtype", "model", "tokenizers", "masking", "tail_pad_gamma", "min_noise", "loss",
    "optimizer", "data", "stages", "total_steps", "lora",
)  # fmt: skip
FREE_CONFIG = (
    "model.attention", "model.remat", "model.scan_layers", "loss.chunk", "optimizer.moments_on", "data.folder",
)  # fmt: skip
# Every key of a config of this program; what is a group of a dataclass's keys is checked where that is built.
KEYS = {
    *SAME_CONFIG, "accumulate", "checkpoint_every", "keep_checkpoints", "keep_period", "operations", "mesh", "sharding",
    "slice", "compilation_cache", "init", "decoding",
}  # fmt: skip
DATA_KEYS = {
    "set", "folder", "examples", "length", "frames", "samples", "open_rows", "streams", "max_tail_pads",
}  # fmt: skip
TOKENIZER_KEYS = {
    "text", "image", "speech_encoder", "speech_tokenizer", "speech_decoder", "user_image_size", "assistant_image_size",
    "fingerprint",
}  # fmt: skip


def check_config(config: ConfigDict) -> ConfigDict:
    """`config` itself, if it is of this program and has no key that nothing reads.

    Raises:
        UserError: it is of another program, or a key is unknown.
    """
    require_program(config, "omni")
    refuse_unknown(config, KEYS, "config")
    refuse_unknown(config.get("data", {}), DATA_KEYS, "config.data")
    refuse_unknown(config.get("tokenizers", {}), TOKENIZER_KEYS, "config.tokenizers")
    return config


def task_names(config: ConfigDict) -> tuple[str, ...]:
    """Every task that some stage trains on, in the registry's order."""
    used = {name for stage in config.stages.values() for name in stage.weights}
    trained = [name for name, task in TASKS.items() if task.answer != "hole"]
    for name in sorted(used - set(trained)):
        if name in TASKS:
            raise UserError(f"config.stages weighs {name!r}, which is a way of sampling; weigh what it samples (t2i)")
        raise UserError(f"config.stages weighs the unknown task {name!r}; {suggest(name, trained)}")
    return tuple(name for name in trained if name in used)


def model_config(config: ConfigDict, tokenizers: Sizes) -> OmniConfig:
    """Sizes of the model; the vocabulary's and the speech encoder's follow from the tokenizers."""
    given = dict(config.model)
    backbone = build(
        BackboneConfig, given | {"vocab_size": tokenizers.vocabulary.size, "dtype": config.dtype}, "config.model"
    )
    encoder = tokenizers.speech_encoder
    adapter = AdapterConfig(inputs=encoder.width if encoder else 1, outputs=backbone.width)
    return OmniConfig(backbone, encoder, adapter)


def packing_config(config: ConfigDict, tokenizers: Sizes) -> PackingConfig:
    data, encoder = config.data, tokenizers.speech_encoder
    return PackingConfig(
        length=data.length,
        frames=data.frames,
        samples=data.samples,
        open_rows=data.open_rows,
        query_rows=encoder.queries if encoder else (),
        frame_width=encoder.features if encoder else 560,
    )


def data_config(config: ConfigDict, tokenizers: Sizes) -> DataConfig:
    return DataConfig(
        seed=config.seed,
        batch_size=config.batch_size,
        streams=config.data.streams,
        max_tail_pads=config.data.max_tail_pads,
        packing=packing_config(config, tokenizers),
    )


def open_sets(folder: str | os.PathLike[str], names: Sequence[str], tokenizers: Tokenizers) -> dict[str, EncodedSet]:
    """The encoded data sets `folder/NAME`."""
    return {name: EncodedSet(Path(folder) / name, tokenizers.fingerprint) for name in names}


def omni_program(
    config: ConfigDict, tokenizers: Sizes, mesh: Mesh, open_loader: Callable[[int], Loader]
) -> OmniProgram:
    """The backbone's training program."""
    groups = math.prod(mesh.shape[axis] for axis in batch_axes(mesh))
    weights = tokenizers.speech_encoder_params
    return OmniProgram(
        model=model_config(config, tokenizers),
        vocabulary=tokenizers.vocabulary,
        masking=masking_config(config),
        loss_config=build(LossConfig, dict(config.loss) | {"groups": groups}, "config.loss"),
        tasks=task_names(config),
        open_loader=open_loader,
        seed=config.seed,
        pretrained={"speech_encoder": weights} if weights is not None else {},
        sharding=config.sharding,
        lora=build(LoraConfig, config.get("lora", {}), "config.lora"),
    )


def frozen_optimizer(config: ConfigDict) -> OptimizerConfig:
    """The optimizer; under LoRA the backbone is frozen, whatever `config.optimizer.frozen` says."""
    optimizer = optimizer_config(config)
    if config.get("lora", {}).get("rank", 0):
        optimizer = dataclasses.replace(optimizer, frozen=(*optimizer.frozen, "backbone/*"))
    return optimizer


def initial_params(config: ConfigDict, program: OmniProgram) -> Callable[[Any], Any] | None:
    """What `config.init` starts from, or None for fresh parameters."""
    init = build(InitConfig, config.get("init", {}), "config.init")
    if not init.folder:
        return None
    return lambda target: load_initial(init, target, program.init, rng.stream(config.seed, "init"))


def omni_run(
    config: ConfigDict, open_sources: Callable[[], Mapping[str, RandomAccess[EncodedExample]]], tokenizers: Tokenizers
) -> Run:
    """Everything `train` needs for a backbone config.

    Args:
        config: as `experiments/configs/nano.py` gives it, checked (`check_config`).
        open_sources: builds or opens the encoded samples of each task; called once the config has proved sound.
        tokenizers: from `load_tokenizers`.
    """
    mesh, stages, tasks = config_mesh(config), stage_plans(config), task_names(config)
    check_batch(config, mesh)
    curriculum = [Stage(plan.name, plan.steps, dict(config.stages[plan.name].weights)) for plan in stages]
    loading = data_config(config, tokenizers)
    sharding = NamedSharding(mesh, PartitionSpec(batch_axes(mesh)))

    def open_loader(seed: int) -> Loader:
        return Loader(corpus, loading, tasks, sharding)

    program = omni_program(config, tokenizers, mesh, open_loader)
    run = Run(
        program,
        loop_config(config),
        frozen_optimizer(config),
        stages,
        mesh,
        SAME_CONFIG,
        FREE_CONFIG,
        initial_params(config, program),
        {"tokenizers": {"fingerprint": tokenizers.fingerprint}},
    )
    decoding_settings(config)
    sources = open_sources()
    corpus = Corpus({name: sources[name] for name in tasks}, curriculum, tokenizers.vocabulary)
    return run


def stored_config(workdir: str | os.PathLike[str]) -> ConfigDict:
    """The config that the newest checkpoint of `workdir` was trained with.

    Raises:
        UserError: no checkpoint there.
    """
    with contextlib.closing(Checkpointer(workdir, CheckpointConfig(), read_only=True)) as saver:
        config = ConfigDict(saver.config())
    if config.get("program") != "omni":
        raise UserError(f"{workdir} trained the {config.get('program')}; name the folder of a run of the whole model")
    return config


def newest_step(workdir: str | os.PathLike[str]) -> int:
    """Step of the newest checkpoint of `workdir`.

    Raises:
        UserError: no checkpoint there.
    """
    with contextlib.closing(Checkpointer(workdir, CheckpointConfig(), read_only=True)) as saver:
        step = saver.latest()
    if step is None:
        raise UserError(f"no checkpoints in {workdir}; train there first (omnidiff train --workdir={workdir})")
    return step


def decoding_settings(config: ConfigDict) -> dict[str, Decoding]:
    """Decoding of every task: what the config's `decoding` groups name, over the registry's defaults."""
    given = config.get("decoding", {})
    for name in given:
        choose(TASKS, name, "task in config.decoding")
    return {
        name: build(Decoding, _over(to_dict(task.decoding), given.get(name, {})), f"config.decoding.{name}")
        for name, task in TASKS.items()
    }


def _over(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `given` replaced, group by group."""
    groups = {
        key: _over(base[key], value) if hasattr(value, "keys") and hasattr(base.get(key), "keys") else value
        for key, value in given.items()
    }
    return {**base, **groups}


def load_generator(
    config: ConfigDict,
    workdir: str | os.PathLike[str] | None,
    *,
    rows: int,
    seed: int = 0,
    adjust: Callable[[Decoding], Decoding] = lambda decoding: decoding,
) -> Generator:
    """The newest checkpoint of `workdir`, or without one the weights of `config.init`, ready to answer.

    Args:
        config: the checkpoint's.
        workdir: of a run, or None.
        rows: requests decoded together.
        seed: of the sampling noise.
        adjust: changes each task's decoding settings.

    Raises:
        UserError: no checkpoint, one of another config, or tokenizers that are not those it was trained with.
    """
    check_config(config)
    tokenizers = load_tokenizers(config)
    if config.tokenizers.get("fingerprint", tokenizers.fingerprint) != tokenizers.fingerprint:
        raise UserError(
            f"{workdir} was trained with other tokenizers than those of config.tokenizers (fingerprint "
            f"{config.tokenizers.fingerprint}, here {tokenizers.fingerprint}): its ids would mean something else; put "
            "the files of before back, or install the version that trained it"
        )
    decoding = {name: adjust(settings) for name, settings in decoding_settings(config).items()}
    return Generator(
        load_denoiser(config, workdir, tokenizers),
        tokenizers.codecs,
        tokenizers.voices,
        decoding,
        image_grid=tokenizers.image_grid,
        rows=rows,
        limit=config.data.length,
        queries=tokenizers.speech_encoder.queries,
        seed=seed,
    )


def no_data(seed: int) -> Loader:
    """Stands where a program that reads no training data must name some."""
    raise AssertionError("this program reads no training data")


def load_denoiser(config: ConfigDict, workdir: str | os.PathLike[str] | None, tokenizers: Tokenizers) -> Denoiser:
    """The model of the newest checkpoint, or of `config.init`, as the sampler sees it."""
    config = for_these_devices(config)
    mesh = config_mesh(config)
    program = omni_program(config, tokenizers, mesh, no_data)
    target = abstract_state(program, loop_config(config), frozen_optimizer(config), stage_plans(config), mesh)
    with jax.set_mesh(mesh):
        if workdir is None:
            start = initial_params(config, program)
            if start is None:
                raise UserError("there are no weights: give --workdir=DIR of a run, or --config.init.folder=DIR")
            params = start(target.params)
        else:
            with contextlib.closing(Checkpointer(workdir, CheckpointConfig(), read_only=True)) as saver:
                params = eval_params(saver.restore_weights(target))
    return module_denoiser(OmniModel(program.model), program.whole(params), program.loss_config.alignment)


def for_these_devices(config: ConfigDict) -> ConfigDict:
    """A run's config with the mesh and attention that serve it here: it may have been trained on another machine."""
    local = ConfigDict(config.to_dict())
    try:
        config_mesh(local)
    except UserError:
        local.mesh = ConfigDict({"fsdp": -1})
    home = BACKENDS[local.model.attention].home
    if home is not None and home != jax.default_backend():
        local.model.attention = "chunked"
    return local


def export_newest(workdir: str | os.PathLike[str], target: Path, **options: Any) -> Summary:
    """Writes the newest checkpoint of a run in the released form; `options` are those of `export_run`.

    Raises:
        UserError: no checkpoint, or the target cannot be written.
    """
    step, config = newest_step(workdir), stored_config(workdir)
    model = model_config(config, config_sizes(config))
    parts = OmniParts(model.backbone, model.speech_encoder, model.adapter)
    lora = build(LoraConfig, config.get("lora", {}), "config.lora")
    state, averaged = Path(workdir) / "checkpoints" / str(step) / "state", optimizer_config(config).ema_decay > 0
    return export_run(state, target, parts, lora, averaged=averaged, **options)
