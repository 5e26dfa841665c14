"""A run's config opened on devices: for training from its sources, or without data for compiling and answering."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax.sharding import Mesh

from omnidiff_jax import rng
from omnidiff_jax.buckets import Bucket, is_remote
from omnidiff_jax.codecs.tokenizers import Sizes, Tokenizers
from omnidiff_jax.data.mixture import Stage
from omnidiff_jax.data.readers import Reader, check_learned, check_source, fetch_source
from omnidiff_jax.data.sources import Source
from omnidiff_jax.errors import notice
from omnidiff_jax.fetching import ahead, local_copy, outcome
from omnidiff_jax.records import EncodedExample
from omnidiff_jax.runs.config import RunConfig, run_config
from omnidiff_jax.runs.named import find_model
from omnidiff_jax.runs.resume import check_resume
from omnidiff_jax.sharding.mesh import batch_parts, batch_sharding
from omnidiff_jax.training.checkpoint import stored_config
from omnidiff_jax.training.held_out import HeldOutLoss
from omnidiff_jax.training.initial import load_initial
from omnidiff_jax.training.model_program import OmniProgram
from omnidiff_jax.training.run import Run
from omnidiff_jax.training.workdir import local_run

if TYPE_CHECKING:
    from omnidiff_jax.data.loader import Loader


@dataclasses.dataclass(frozen=True)
class ModelRun(Run):
    """A run of the whole model."""

    config: RunConfig
    program: OmniProgram

    def check_same(self, content: Mapping[str, Any], where: str) -> None:
        check_resume(run_config(content), self.config, where)


Sources = Mapping[str, Source[EncodedExample]]


def fetch_run(config: RunConfig, readers: Mapping[str, Reader], fresh: bool) -> None:
    """Begins to fetch what a run reads from buckets, its sources and what it starts from, beside each other.

    What goes wrong on the way is raised where the thing is opened.

    Args:
        config: of the run.
        readers: the table.
        fresh: whether the run has no checkpoint of its own yet, which it would start from.

    Raises:
        UserError: a source that cannot be, as `check_source`, `check_learned` and `RunConfig.held_out_sources` say.
    """
    for group, sources in (("data", config.sources), ("held_out", config.held_out_sources(readers))):
        for name, source in sources.items():
            reader = check_source(name, source, readers, group)
            if group == "data":
                check_learned(name, source, reader)
            fetch_source(source, reader)
    if fresh and config.init.folder and is_remote(config.init.folder):
        ahead(_near, config.init.folder)


def open_run(
    config: RunConfig,
    tokenizers: Tokenizers,
    open_sources: Callable[[], Sources],
    open_held_out: Callable[[], Sources] | None = None,
    workdir: Path | None = None,
) -> ModelRun:
    """A run that `training.loop.train` takes.

    Args:
        config: of the run.
        tokenizers: those that it names, opened.
        open_sources: builds or opens its sources; called once the config has proved sound, and again in each of
            `config.data.workers` processes, for which it must be picklable.
        open_held_out: the same for `config.held_out_sources`; None = no held-out loss is measured.
        workdir: where the run will be, if it is known: its config is compared with that of the newest checkpoint there
            before sources are opened, which may take long.

    Raises:
        UserError: the config is not sound, or not that of the checkpoint.
    """
    # Importing grain takes a while, and only training needs it.
    from omnidiff_jax.data.loader import Loader
    from omnidiff_jax.data.streams import Corpus

    config = dataclasses.replace(
        config, tokenizers=dataclasses.replace(config.tokenizers, fingerprint=tokenizers.fingerprint)
    )
    mesh, loading = config.make_mesh(), config.loading(tokenizers)

    def open_loader(seed: int) -> "Loader":
        return Loader(corpus, loading, batch_sharding(mesh), reopen)

    run = _run(config, tokenizers, mesh, open_loader)
    if workdir is not None and (stored := stored_config(workdir)):
        run.check_same(stored[1], f"checkpoint {stored[0]} of --workdir")
    corpus = Corpus(open_sources(), config.plan, tokenizers.vocabulary)
    reopen = functools.partial(Corpus.opened, open_sources, config.plan, tokenizers.vocabulary)
    if open_held_out is None:
        return run
    sources = open_held_out()
    even = Stage(steps=1, weights=dict.fromkeys(sources, 1.0), name="held_out")
    held_out = Corpus(sources, (even,), tokenizers.vocabulary)

    def open_loss() -> HeldOutLoss:
        with contextlib.closing(Loader(held_out, loading, batch_sharding(mesh))) as loader:
            batches = [next(loader) for _ in range(config.held_out.batches)]
            for reason, count in loader.rejected.items():
                notice(f"held-out samples are skipped: {reason} ({count})")
        groups = tuple(held_out.groups)
        program = dataclasses.replace(run.program, groups=groups, masking=config.corruption(groups))
        return HeldOutLoss(program, batches, config.held_out.every, config.seed)

    return dataclasses.replace(run, held_out=open_loss)


def open_without_data(config: RunConfig, tokenizers: Sizes, mesh: Mesh) -> ModelRun:
    """A run that is compiled, measured or restored, and never trained."""
    return _run(config, tokenizers, mesh, _no_data)


def _run(config: RunConfig, tokenizers: Sizes, mesh: Mesh, open_loader: Callable[[int], "Loader"]) -> ModelRun:
    weights = tokenizers.speech_encoder_params
    program = OmniProgram(
        model=config.omni(tokenizers),
        vocabulary=tokenizers.vocabulary,
        masking=config.corruption(config.groups),
        loss_config=dataclasses.replace(config.loss, groups=batch_parts(mesh)),
        groups=config.groups,
        open_loader=open_loader,
        seed=config.seed,
        pretrained={"speech_encoder": weights} if weights is not None else {},
        sharding=config.sharding,
        lora=config.lora,
        image_factors=config.image_factors,
        image_bits=config.image_bits,
    )
    return ModelRun(config, program, mesh, initial_params(config, program))


def initial_params(config: RunConfig, program: OmniProgram) -> Callable[[Any], Any] | None:
    """What `config.init` starts from, or None for fresh parameters."""
    if not config.init.folder:
        return None
    key, known = rng.stream(config.seed, "init"), config.tokenizers.fingerprint

    def load(target: Any) -> Any:
        init = dataclasses.replace(config.init, folder=str(outcome(_near, config.init.folder)))
        return load_initial(init, program.model, target, program.init, key, known)

    return load


def _no_data(seed: int) -> "Loader":
    raise AssertionError("this run reads no training data")


def _near(folder: str) -> Path:
    """A run's or a checkpoint's folder to read from, wherever it lies; a model's by its name."""
    if (packed := find_model(folder)) is not None:
        return packed
    if is_remote(folder) and Bucket(folder).list("checkpoints/"):
        return local_run(folder)
    return local_copy(folder)
