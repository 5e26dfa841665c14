"""What a workdir holds: the config of its newest checkpoint, the model it trained, its way out to the released form."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omnidiff_jax import rng
from omnidiff_jax.buckets import Bucket, is_remote
from omnidiff_jax.codecs.tokenizers import Tokenizers, sizes
from omnidiff_jax.config import build, to_dict
from omnidiff_jax.conversion.arrays import ABOUT
from omnidiff_jax.conversion.components import OmniParts, recognise
from omnidiff_jax.conversion.parts import Summary
from omnidiff_jax.conversion.sources import open_released
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import path
from omnidiff_jax.models.attention import BACKENDS
from omnidiff_jax.models.backbone import BackboneConfig
from omnidiff_jax.models.quantized import quantize_array
from omnidiff_jax.runs.config import PROGRAM, RunConfig, run_config
from omnidiff_jax.runs.named import ABOUT_RUN
from omnidiff_jax.runs.opening import ModelRun, open_without_data
from omnidiff_jax.sharding.mesh import MeshConfig, make_mesh
from omnidiff_jax.training.checkpoint import CheckpointConfig, Checkpointer, read_weights, weights_in
from omnidiff_jax.training.export import export_run
from omnidiff_jax.training.initial import InitConfig, load_initial
from omnidiff_jax.training.lora import SUBTREE
from omnidiff_jax.training.workdir import CHECKPOINTS, local_run, steps_in


@dataclasses.dataclass(frozen=True)
class Stored:
    """The newest whole checkpoint of a workdir.

    Attributes:
        workdir: of the run.
        step: of the checkpoint.
        config: that it was trained with.
    """

    workdir: Path
    step: int
    config: RunConfig


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is the workdir of a run."""
    if is_remote(folder):
        return bool(steps_in(list(Bucket(folder).list(f"{CHECKPOINTS}/"))))
    return (path(folder) / CHECKPOINTS).is_dir()


def newest(workdir: str | os.PathLike[str]) -> Stored:
    """The newest whole checkpoint of `workdir`.

    Raises:
        UserError: there is none, or it is of a tokenizer.
    """
    place = local_run(workdir)
    with contextlib.closing(Checkpointer(place, CheckpointConfig(), read_only=True)) as saver:
        step = saver.latest()
        if step is None:
            raise UserError(f"no checkpoints in {workdir}; train there first (omnidiff train --workdir={workdir})")
        content = saver.config(step)
    program = content.get("program")
    if program != PROGRAM:
        raise UserError(f"{workdir} trained the {program}; name the folder of a run of the whole model")
    return Stored(place, step, run_config(content))


def open_here(config: RunConfig, tokenizers: Tokenizers) -> ModelRun:
    """A run on the devices that there are, whatever machine it was trained on."""
    config = _for_these_devices(config)
    return open_without_data(config, tokenizers, make_mesh(config.mesh))


def _for_these_devices(config: RunConfig) -> RunConfig:
    try:
        make_mesh(config.mesh)
    except UserError:
        config = dataclasses.replace(config, mesh=MeshConfig(fsdp=-1))
    home = BACKENDS[config.model.attention].home
    if home is not None and home != jax.default_backend():
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="chunked"))
    return config


def restore(stored: Stored, run: ModelRun) -> Any:
    """The parameters to sample with: the weight average where one is kept, LoRA's thin matrices among them.

    Raises:
        UserError: the checkpoint's arrays are not this run's.
    """
    folder = (stored.workdir / CHECKPOINTS / str(stored.step)).absolute()
    trees = weights_in(folder)
    _check_rows(folder, trees, run)
    with jax.set_mesh(run.mesh):
        specs = _specs(run, trees["params"])
        placed = {
            "params": jax.tree.map(lambda leaf, spec: _placed(leaf, spec, run.mesh), trees["params"], specs),
            "ema": {
                name: _placed(leaf, flatten_dict(specs, sep="/")[name], run.mesh)
                for name, leaf in trees.get("ema", {}).items()
            },
        }
        found = read_weights(folder, {name: placed[name] for name in trees})
    averaged = flatten_dict(found["params"], sep="/") | found.get("ema", {})
    return unflatten_dict(averaged, sep="/")


def _check_rows(folder: Path, trees: dict[str, Any], run: ModelRun) -> None:
    rows, here = trees["params"]["backbone"]["embedding"].shape[0], run.program.model.backbone.vocab_size
    if rows != here:
        raise UserError(f"{folder} has {rows} ids, the tokenizers of its config give {here}; it is of another version")


def restore_quantized(stored: Stored, run: ModelRun, quantize: str) -> Any:
    """`restore`, with LoRA's products added and matrices quantised: the floats of one array at a time.

    Raises:
        UserError: the checkpoint's arrays are not this run's.
    """
    folder = (stored.workdir / CHECKPOINTS / str(stored.step)).absolute()
    _check_rows(folder, weights_in(folder), run)
    return read_quantized(InitConfig(folder=str(stored.workdir)), run, quantize)


def read_quantized(init: InitConfig, run: ModelRun, quantize: str) -> Any:
    """What the weights that `init` names give the model of `run` (`load_initial`), matrices quantised as they are read.

    Raises:
        UserError: as `load_initial`.
    """
    program, known = run.program, run.config.tokenizers.fingerprint

    def keep(path: str, array: jax.Array) -> Any:
        return quantize_array(path, program.whole_array(path, array), quantize)

    with jax.set_mesh(run.mesh):
        target = {name: tree for name, tree in abstract_params(run).items() if name != SUBTREE}
        key = rng.stream(run.config.seed, "init")
        return load_initial(init, program.model, target, program.init, key, known, keep)


def abstract_params(run: ModelRun) -> Any:
    """A run's parameters as `jax.ShapeDtypeStruct`s with shardings; sampling does without the optimizer.

    Call it within the run's mesh.
    """
    shapes = jax.eval_shape(lambda: run.program.init(rng.stream(run.config.seed, "init")))
    return jax.tree.map(lambda leaf, spec: _placed(leaf, spec, run.mesh), shapes, _specs(run, shapes))


def _specs(run: ModelRun, params: Any) -> Any:
    """How the parameters lie; on one device nothing need be traced to know."""
    if run.mesh.size == 1:
        return jax.tree.map(lambda _: PartitionSpec(), params)
    return run.program.param_specs(params, run.mesh)


def _placed(leaf: Any, spec: Any, mesh: Mesh) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))


def export_newest(workdir: str | os.PathLike[str], target: Path, **options: Any) -> Summary:
    """Writes the newest checkpoint of a run in the released form; `options` are those of `export_run`.

    Raises:
        UserError: no checkpoint, or the target cannot be written.
    """
    stored = newest(workdir)
    config = stored.config
    model = config.omni(sizes(config.tokenizers))
    parts = OmniParts(model.backbone, model.speech_encoder, model.adapter)
    state = stored.workdir / "checkpoints" / str(stored.step) / "state"
    averaged = config.optimizer.ema_decay > 0
    summary = export_run(state, target, parts, config.lora, config.image_factors, averaged=averaged, **options)
    (target / ABOUT_RUN).write_text(json.dumps(to_dict(config), indent=2) + "\n", encoding="utf-8")
    return summary


def weights_sizes(folder: Path) -> BackboneConfig:
    """Sizes of the backbone in a folder of converted or released weights of the whole model.

    Raises:
        UserError: it holds nothing of the kind.
    """
    if (folder / ABOUT).is_file():
        content = json.loads((folder / ABOUT).read_text())
        if content.get("component") != "omni":
            raise UserError(f"{folder} holds a {content.get('component')} checkpoint, which does not answer by itself")
        return build(OmniParts, content.get("config", {}), str(folder / ABOUT)).backbone
    with open_released(folder) as source:
        component = recognise(source.shapes)
        if component.name != "omni":
            raise UserError(f"{folder} holds a {component.name} checkpoint, which does not answer by itself")
        return component.config(source.shapes, source.config).backbone
