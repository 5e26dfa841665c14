"""TFDS data sets that these builders prepared as a row of the table of readers; TensorFlow is not needed to read."""

import dataclasses
import hashlib
from typing import Any

from omnidiff_jax.data.readers import Reader, SourceConfig
from omnidiff_jax.data.sources import TfdsRecords
from omnidiff_jax.fetching import local_copy

INFO = "dataset_info.json"


def records(config: SourceConfig) -> TfdsRecords:
    """The records of a split, or of a slice of one such as "train[:10%]"."""
    # Importing TFDS takes seconds, and only runs on such data need it.
    from data_pipelines.tfds_builders.scenes import to_record

    def parse(example: dict[str, Any]) -> Any:
        record = to_record(example)
        return dataclasses.replace(record, task=config.task) if config.task else record

    return TfdsRecords(local_copy(config.path, (INFO,)), config.split, parse)


def identity(config: SourceConfig, found: Any) -> str:
    """Digest of what the data set says of itself, with the split."""
    digest = hashlib.blake2b(config.split.encode(), digest_size=16)
    folder = local_copy(config.path, (INFO,))
    for name in (INFO, "features.json"):
        file = folder / name
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()


TFDS_READER = Reader("a prepared TFDS data set", ("path",), records, identity, copies=(INFO,))
