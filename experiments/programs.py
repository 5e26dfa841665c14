"""What commands hand down to the library: programs by `config.program`, readers of data, exams."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ml_collections import ConfigDict

from data_pipelines.commons.exams import COMMONS
from data_pipelines.commons.reader import COMMONS_READER
from data_pipelines.commons.recorded import RECORDED, kept_apart
from data_pipelines.commons.tokenizers.image import CommonsImageTokenizerRun
from data_pipelines.commons.tokenizers.speech import (
    CommonsSpeechDecoderRun,
    CommonsSpeechEncoderRun,
    CommonsSpeechTokenizerRun,
    CommonsVocoderRun,
)
from data_pipelines.commons.tokenizers.text import CommonsTextTokenizerRun
from data_pipelines.readers.reader import CORPUS_READERS
from data_pipelines.scenes.exams import PLAIN, SCENES, SCENES_TUNING
from data_pipelines.scenes.reader import SCENES_READER
from data_pipelines.scenes.tokenizers.image import ImageTokenizerRun
from data_pipelines.scenes.tokenizers.speech_codec import ScenesVocoderRun, SpeechDecoderRun, SpeechTokenizerRun
from data_pipelines.scenes.tokenizers.speech_encoder import SpeechEncoderRun
from data_pipelines.scenes.tokenizers.text import TextTokenizerRun
from data_pipelines.sdvi.reader import SDVI_READER
from data_pipelines.tfds_builders.reader import TFDS_READER
from omnidiff_jax.codecs.tokenizers import Tokenizers, TokenizersConfig, open_tokenizers
from omnidiff_jax.config import build, choose
from omnidiff_jax.data.building import DEFAULTS, build_sets
from omnidiff_jax.data.config import EncodingConfig
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

READERS: Mapping[str, Reader] = {
    **{name: kept_apart(reader) for name, reader in {**LIBRARY_READERS, **CORPUS_READERS}.items()},
    "commons": COMMONS_READER,
    "scenes": SCENES_READER,
    "sdvi": SDVI_READER,
    "tfds": TFDS_READER,
}
EXAMS: Mapping[str, ExamSet] = {
    "scenes": SCENES,
    "plain": PLAIN,
    "scenes_tuning": SCENES_TUNING,
    "commons": COMMONS,
    "recorded": RECORDED,
    "jsonl": JSONL,
}


class Opens(Protocol):
    """A tokenizer's config, which opens its own run."""

    def open(self) -> Run: ...


TOKENIZERS: Mapping[str, type[Any]] = {
    "image_tokenizer": ImageTokenizerRun,
    "commons_image_tokenizer": CommonsImageTokenizerRun,
    "speech_encoder": SpeechEncoderRun,
    "commons_speech_encoder": CommonsSpeechEncoderRun,
    "speech_tokenizer": SpeechTokenizerRun,
    "commons_speech_tokenizer": CommonsSpeechTokenizerRun,
    "speech_decoder": SpeechDecoderRun,
    "commons_speech_decoder": CommonsSpeechDecoderRun,
    "vocoder": ScenesVocoderRun,
    "commons_vocoder": CommonsVocoderRun,
}
# Counted, not trained step by step.
TEXT_TOKENIZERS: Mapping[str, type[Any]] = {
    "text_tokenizer": TextTokenizerRun,
    "commons_text_tokenizer": CommonsTextTokenizerRun,
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

    data = workdir / "data"
    opened = functools.partial(
        OpenSources, config=config.tokenizers, encoding=config.data.encoding, tokenizers=tokenizers
    )
    measured = opened(held_out, folder=data / "held_out") if held_out else None
    return open_run(config, tokenizers, opened(learned, folder=data), measured, workdir)


@dataclasses.dataclass(frozen=True)
class OpenSources:
    """Opens sources when it is called, in this process or, pickled without its tokenizers, in a worker.

    Attributes:
        sources: by name.
        config: of the tokenizers that encode them.
        folder: holds the sets that are built for the run.
        encoding: how sets are built.
        tokenizers: opened; None = in a worker, where sets are built already.
    """

    sources: Mapping[str, SourceConfig]
    config: TokenizersConfig
    folder: Path
    encoding: EncodingConfig = DEFAULTS
    tokenizers: Tokenizers | None = None

    def __reduce__(self) -> tuple[type["OpenSources"], tuple[Any, ...]]:
        return OpenSources, (self.sources, self.config, self.folder, self.encoding)

    def __call__(self) -> dict[str, Source]:
        tokenizers = self.tokenizers
        if tokenizers is None:
            tokenizers = open_tokenizers(self.config)
        else:
            if is_primary():
                made = {
                    name: one for name, one in self.sources.items() if check_source(name, one, READERS).gives == "sets"
                }
                build_sets(made, READERS, self.config, self.folder, encoding=self.encoding)
            barrier(f"data sets of {self.folder.name} are built")
        return {
            name: open_source(name, source, READERS, tokenizers, self.folder) for name, source in self.sources.items()
        }
