"""An SDVI set's settings, from a JSON file to records."""

import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.readers.reader import CORPUS_READERS
from data_pipelines.scenes.reader import SCENES_READER
from data_pipelines.sdvi.records import SdviConfig, SdviRecords, turns_of
from data_pipelines.speakers.gate import Gate
from data_pipelines.speakers.speaker import Speaker
from omnidiff_jax.config import build, to_dict
from omnidiff_jax.data.readers import READERS as LIBRARY_READERS
from omnidiff_jax.data.readers import Reader, SourceConfig, check_source, raw_records
from omnidiff_jax.data.sources import RandomAccess
from omnidiff_jax.errors import UserError
from omnidiff_jax.fetching import local_copy, made_once
from omnidiff_jax.records import Record

SOURCES = {
    name: reader
    for name, reader in {**LIBRARY_READERS, **CORPUS_READERS, "scenes": SCENES_READER}.items()
    if reader.gives != "examples"
}
_TURNS = "turns.npy"
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Opened:
    """A set that can be made.

    Attributes:
        records: of it.
        speaker: who speaks.
        gate: with the recogniser.
        fingerprint: tells this set from another: source, settings, and who speaks and listens.
    """

    records: SdviRecords
    speaker: Speaker
    gate: Gate
    fingerprint: str


def sdvi_config(path: str | os.PathLike[str]) -> SdviConfig:
    """The settings in a JSON file, here or in a bucket.

    Raises:
        UserError: no such file, no JSON, or a setting that cannot be.
    """
    file = local_copy(path)
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); give a JSON file of SDVI's settings") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); it must hold source, task, speaker and gate") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must be an object with source, task, speaker and gate")
    return build(SdviConfig, content, os.fspath(path))


def opened(config: SdviConfig) -> Opened:
    """Opens source, speaker and recogniser; once in a process.

    Raises:
        UserError: one of them cannot be opened.
    """
    return _opened(json.dumps(to_dict(config), sort_keys=True))


@functools.lru_cache(maxsize=2)
def _opened(settings: str) -> Opened:
    config = build(SdviConfig, json.loads(settings))
    source, identity = raw_records(config.source, source_reader(config.source))
    speaker = config.speaker.open()
    gate = Gate(config.gate, speaker)
    turns = _turns(source, config.task, identity)
    told = [_VERSION, identity, speaker.name, gate.recogniser, _settings(config)]
    fingerprint = hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()
    return Opened(SdviRecords(source, config.task, speaker, gate, turns, config.seed), speaker, gate, fingerprint)


def source_reader(config: SourceConfig) -> Reader:
    """The reader of what is spoken. Raises UserError as `check_source` does."""
    return check_source("source", config, SOURCES, "sdvi")


def _settings(config: SdviConfig) -> dict[str, Any]:
    """What decides the records, without the places where things lie: their content is known otherwise."""
    settings = to_dict(config)
    places = {"source": ("path", "root"), "speaker": ("folder", "clips"), "gate": ("judge",)}
    return settings | {
        group: {key: value for key, value in settings[group].items() if key not in names}
        for group, names in places.items()
    }


def _turns(source: RandomAccess[Record], name: str, identity: str) -> np.ndarray:
    """`turns_of`, kept in the cache: every worker asks for it, and to count them is to read the source once."""
    key = hashlib.blake2b(f"{_VERSION} {name} {len(source)} {identity}".encode(), digest_size=16).hexdigest()

    def count(folder: Path) -> None:
        np.save(folder / _TURNS, turns_of(source, name))

    return np.load(made_once(f"sdvi-{key}", count) / _TURNS, allow_pickle=False)
