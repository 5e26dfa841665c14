"""What commands hand down to the library: programs by `config.program`, readers of data, exams."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ml_collections import ConfigDict

from data_pipelines.readers.reader import CORPUS_READERS
from data_pipelines.scenes.exams import PLAIN, SCENES, SCENES_TUNING
from data_pipelines.scenes.reader import SCENES_READER
from data_pipelines.scenes.tokenizers.image import ImageTokenizerRun
from data_pipelines.scenes.tokenizers.speech_codec import SpeechDecoderRun, SpeechTokenizerRun
from data_pipelines.scenes.tokenizers.speech_encoder import SpeechEncoderRun
from data_pipelines.tfds_builders.reader import TFDS_READER
from omnidiff_jax.codecs.tokenizers import Tokenizers, open_tokenizers
from omnidiff_jax.config import build, choose
from omnidiff_jax.data.building import build_sets
from omnidiff_jax.data.readers import READERS as LIBRARY_READERS
from omnidiff_jax.data.readers import Reader, SourceConfig, check_source, open_source
from omnidiff_jax.data.sources import Source
from omnidiff_jax.evaluation.exam import ExamSet
from omnidiff_jax.evaluation.jsonl import JSONL
from omnidiff_jax.runs.config import PROGRAM, RunConfig, run_config
from omnidiff_jax.runs.opening import fetch_run, open_run
from omnidiff_jax.runs.stored import is_run
from omnidiff_jax.sharding.distributed import barrier, is_primary
from omnidiff_jax.training.run import Run

READERS: Mapping[str, Reader] = {**LIBRARY_READERS, **CORPUS_READERS, "scenes": SCENES_READER, "tfds": TFDS_READER}
EXAMS: Mapping[str, ExamSet] = {
    "scenes": SCENES,
    "plain": PLAIN,
    "scenes_tuning": SCENES_TUNING,
    "jsonl": JSONL,
}


class Opens(Protocol):
    """A tokenizer's config, which opens its own run."""

    def open(self) -> Run: ...


TOKENIZERS: Mapping[str, type[Any]] = {
    "image_tokenizer": ImageTokenizerRun,
    "speech_encoder": SpeechEncoderRun,
    "speech_tokenizer": SpeechTokenizerRun,
    "speech_decoder": SpeechDecoderRun,
}


def open_program(config: ConfigDict, workdir: Path) -> Run:
    """The run that a config describes: of the whole model or of one of its tokenizers.

    Raises:
        UserError: an unknown program, or a config that cannot be.
    """
    name = config.get("program", PROGRAM)
    if name == PROGRAM:
        return open_model(run_config(config), workdir)
    opener: Opens = build(choose({**TOKENIZERS, PROGRAM: RunConfig}, name, "config.program"), config)
    return opener.open()


def open_model(config: RunConfig, workdir: Path) -> Run:
    """A run of the whole model; sets that it generates are built under `workdir/data` where they are missing."""
    learned, held_out = config.sources, config.held_out_sources(READERS)
    fetch_run(config, READERS, fresh=not is_run(workdir))
    tokenizers = open_tokenizers(config.tokenizers)

    def opened(sources: Mapping[str, SourceConfig], folder: Path) -> Callable[[], dict[str, Source]]:
        return lambda: _sources(sources, config, tokenizers, folder)

    data = workdir / "data"
    measured = opened(held_out, data / "held_out") if held_out else None
    return open_run(config, tokenizers, opened(learned, data), measured, workdir)


def _sources(
    sources: Mapping[str, SourceConfig], config: RunConfig, tokenizers: Tokenizers, folder: Path
) -> dict[str, Source]:
    if is_primary():
        made = {name: one for name, one in sources.items() if check_source(name, one, READERS).gives == "sets"}
        build_sets(made, READERS, config.tokenizers, folder, encoding=config.data.encoding)
    barrier(f"data sets of {folder.name} are built")
    return {name: open_source(name, source, READERS, tokenizers, folder) for name, source in sources.items()}
