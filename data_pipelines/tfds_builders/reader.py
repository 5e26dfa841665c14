"""TFDS data sets that these builders prepared as a row of the table of readers; TensorFlow is not needed to read."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

from data_pipelines.readers.records import FIELDS, Form, RowRecords
from data_pipelines.readers.text import RULES
from omnidiff_jax.config import refuse_unknown, suggest
from omnidiff_jax.data.readers import Reader, SourceConfig
from omnidiff_jax.data.sources import RandomAccess, TfdsRecords
from omnidiff_jax.errors import UserError
from omnidiff_jax.fetching import local_copy
from omnidiff_jax.records import Record

INFO = "dataset_info.json"


def records(config: SourceConfig) -> RandomAccess[Record]:
    """The records of a split, or of a slice of one such as "train[:10%]".

    A set of the builders here says itself what it holds; of any other, `columns` say which feature is what.

    Raises:
        UserError: no prepared data set, no such split, or of a set from elsewhere, no columns or others than it has.
    """
    # Importing TFDS takes seconds, and only runs on such data need it.
    from data_pipelines.tfds_builders.rows import TfdsRows
    from data_pipelines.tfds_builders.scenes import features, to_record

    place = local_copy(config.path, (INFO,))
    if config.columns:
        rows = TfdsRows(str(place), config.split, identity(config, None))
        return RowRecords(rows, _form(config, rows.names), place)

    def parse(example: dict[str, Any]) -> Any:
        record = to_record(example)
        return dataclasses.replace(record, task=config.task) if config.task else record

    found = TfdsRecords(place, config.split, parse)
    if missing := set(features()) - set(found.features):
        raise UserError(
            f"{config.path} was not written by these builders (it has no {min(missing)!r}): say what it holds by "
            f"columns.text, .image, .audio, .question, .answer or .messages; it has {', '.join(sorted(found.features))}"
        )
    return found


def _form(config: SourceConfig, names: Sequence[str]) -> Form:
    """What the columns of a set from elsewhere mean.

    Raises:
        UserError: a field or rule is unknown, or the set has no such column.
    """
    refuse_unknown(config.columns, FIELDS, "columns")
    refuse_unknown(config.rules, RULES, "rules")
    for column in config.columns.values():
        if not set(column.split("|")) & set(names):
            raise UserError(f"{config.path} has no column {column!r}; {suggest(column, names)}")
    rules = tuple(rule for rule in RULES if config.rules.get(rule, rule in ("trimmed",)))
    return Form(config.task, config.columns, rules)


def identity(config: SourceConfig, found: Any) -> str:
    """Digest of what the data set says of itself, with the split."""
    digest = hashlib.blake2b(config.split.encode(), digest_size=16)
    folder = local_copy(config.path, (INFO,))
    for name in (INFO, "features.json"):
        file = folder / name
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()


TFDS_READER = Reader("a prepared TFDS data set", ("path",), records, identity, copies=(INFO,))
