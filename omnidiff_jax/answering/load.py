"""`omnidiff_jax.load`: the one way to a model that answers, whatever it lies in."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from omnidiff_jax.answering.asked import SEEDS, group, location, shown, whole
from omnidiff_jax.answering.generator import Generator
from omnidiff_jax.answering.model import Model
from omnidiff_jax.buckets import is_remote
from omnidiff_jax.codecs.tokenizers import Tokenizers, TokenizersConfig, open_tokenizers
from omnidiff_jax.config import build, choose, overlaid, to_dict
from omnidiff_jax.data.mixture import Stage
from omnidiff_jax.errors import UserError
from omnidiff_jax.fetching import fetch_ahead, local_copy
from omnidiff_jax.files import path
from omnidiff_jax.models.backbone import layers_apart
from omnidiff_jax.models.omni import OmniModel
from omnidiff_jax.models.quantized import check_devices
from omnidiff_jax.runs import stored as runs
from omnidiff_jax.runs.config import RunConfig, run_config
from omnidiff_jax.runs.named import ABOUT_RUN, BESIDE, HERE, absent, find_model
from omnidiff_jax.runs.opening import ModelRun
from omnidiff_jax.sampling.denoiser import Denoiser, module_denoiser
from omnidiff_jax.sharding.spread import spread_over
from omnidiff_jax.training.workdir import local_run


def load(
    what: str | os.PathLike[str],
    *,
    rows: int = 8,
    seed: int = 0,
    preset: str = "exact",
    quantize: str = "",
    decoding: Mapping[str, Any] | None = None,
    tokenizers: Mapping[str, Any] | None = None,
    config: RunConfig | None = None,
) -> Model:
    """A trained model that answers.

    Args:
        what: a workdir of `omnidiff train`, a folder of converted or released weights, or the name of a model
            (`runs/named.py`).
        rows: requests decoded together, at most.
        seed: of the sampling noise of exams; requests name their own.
        preset: "exact", or "fast": fewer calls of the model, by the settings that its config has for that
            (`RunConfig.fast`; docs say what they cost).
        quantize: "int8_weights", "int8" (weights and activations) or "fp8": the large matrices in eight bits
            (docs/performance.md says what that costs and where it pays), each as it is read, so that the floats are
            never there as a whole; "" leaves them as they are.
        decoding: settings by task that differ from these, in the groups of `Decoding`.
        tokenizers: folders of weights only: where the tokenizers lie (`TokenizersConfig`), if not beside the weights.
        config: folders of weights only: everything else about the model, such as its longest row.

    Raises:
        UserError: an argument that cannot be, or that a run has of its own; nothing of the kind there, tokenizers other
            than those it was trained with, or damaged files.
    """
    rows, seed = whole(rows, "rows", 1, 1 << 16), whole(seed, "seed", 0, SEEDS)
    if quantize:
        check_devices(quantize)
    decoding = group(decoding, "decoding", '{"t2i": {"sampler": {"steps": 8}}}')
    tokenizers = group(tokenizers, "tokenizers", '{"image": FOLDER}')
    if not isinstance(config, RunConfig | None):
        raise UserError(f"config = {shown(config)} must be a RunConfig: runs.config.run_config(mapping) makes one")
    for folder in tokenizers.values():
        if isinstance(folder, str):
            fetch_ahead(folder)
    place, name = _place(location(what, "what")), str(what)
    if runs.is_run(place):
        for option, given in (("tokenizers", tokenizers), ("config", config)):
            if given:
                raise UserError(f"{name} is a run, which has its own {option}; leave out {option}=")
        found = runs.newest(place)
        opened = _with(_preset(found.config, preset, name), decoding, None)
        ready = open_tokenizers(opened.tokenizers)
        check_tokenizers(found.config.tokenizers, ready, name)
        run = runs.open_here(opened, ready)
        if quantize:
            return _model(run, ready, runs.restore_quantized(found, run, quantize), rows, seed, name)
        return _model(run, ready, run.program.whole(runs.restore(found, run)), rows, seed, name)
    opened = _with(_preset(config or weights_config(place), preset, name), decoding, tokenizers)
    ready = open_tokenizers(opened.tokenizers)
    init = dataclasses.replace(opened.init, folder=str(place))
    run = runs.open_here(dataclasses.replace(opened, init=init), ready)
    if quantize:
        return _model(run, ready, runs.read_quantized(init, run, quantize), rows, seed, name)
    return _model(run, ready, run.program.whole(_weights(run)), rows, seed, name)


def _place(what: str | os.PathLike[str]) -> Path:
    if (packed := find_model(str(what))) is not None:
        return packed
    if is_remote(what):
        return local_run(what) if runs.is_run(what) else local_copy(what, ("omnidiff.json", "config.json"))
    place = path(what)
    if not place.exists():
        raise absent(str(what))
    return place


PRESETS = ("exact", "fast")


def _preset(config: RunConfig, preset: str, name: str) -> RunConfig:
    """The config with the decoding of a preset."""
    if choose({word: word for word in PRESETS}, preset, "preset") == "exact":
        return config
    if not config.fast:
        raise UserError(
            f"{name} has no fast settings: they are measured on a model's exams and stand in its config.fast; leave "
            "preset out, or name decoding settings yourself"
        )
    return dataclasses.replace(config, decoding={**config.decoding, **config.fast})


def _with(config: RunConfig, decoding: Mapping[str, Any] | None, tokenizers: Mapping[str, Any] | None) -> RunConfig:
    if not decoding and not tokenizers:
        return config
    content = to_dict(config)
    changes = {"decoding": decoding or {}, "tokenizers": tokenizers or {}}
    for name, values in changes.items():
        content[name] = overlaid(content[name], values)
    return run_config(content)


def check_tokenizers(config: TokenizersConfig, opened: Tokenizers, name: str) -> None:
    """Refuses tokenizers that are not those a model was trained with: its ids would mean something else."""
    if config.fingerprint and config.fingerprint != opened.fingerprint:
        raise UserError(
            f"{name} was trained with other tokenizers than those of config.tokenizers (fingerprint "
            f"{config.fingerprint}, here {opened.fingerprint}): its ids would mean something else; put the files of "
            "before back, or install the version that trained it"
        )


def weights_config(place: Path) -> RunConfig:
    """The config of a folder of weights: what an export of a run left beside them, else the sizes that they tell.

    Raises:
        UserError: the folder holds no weights of the whole model.
    """
    for file in (place / ABOUT_RUN, place / "released_files" / ABOUT_RUN):
        if file.is_file():
            content = json.loads(file.read_text())
            beside = [name for name, folder in content.get("tokenizers", {}).items() if folder == HERE]
            content.get("tokenizers", {}).update({name: str(place / BESIDE[name]) for name in beside})
            return run_config(content)
    sizes = runs.weights_sizes(place)
    folders = {name: str(place / sub) for name, sub in BESIDE.items() if (place / sub).exists()}
    return RunConfig(
        batch_size=1,
        stages={"none": Stage(1)},
        dtype="float32" if jax.default_backend() == "cpu" else "bfloat16",
        tokenizers=build(TokenizersConfig, folders, "tokenizers"),
        model=sizes,
        decoding=run_config({"batch_size": 1, "stages": {"none": {"steps": 1}}}).decoding,
    )


def _weights(run: ModelRun) -> Any:
    if run.initial_params is None:
        raise UserError("there are no weights: name the folder of a run, or of converted weights")
    with jax.set_mesh(run.mesh):
        return run.initial_params(runs.abstract_params(run))


def _model(run: ModelRun, tokenizers: Tokenizers, params: Any, rows: int, seed: int, name: str) -> Model:
    config = run.config
    generator = Generator(
        denoiser(run, params),
        tokenizers.codecs,
        config.decoding,
        rows=rows,
        limit=config.data.length,
        seed=seed,
        spread=spread_over(run.mesh, config.sharding),
    )
    return Model(generator, config.decoding, name)


def denoiser(run: ModelRun, params: Any) -> Denoiser:
    """A run's model as the sampler sees it, of parameters that are `whole`, or `quantized`."""
    program = run.program
    apart = layers_apart(params, program.model.backbone)
    return module_denoiser(OmniModel(program.model), apart, program.loss_config.alignment)
