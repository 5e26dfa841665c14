"""The corpora as rows of the table of readers: which form lies there, and what is said where another corpus does."""

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from data_pipelines.readers.corpora import CORPORA, Corpus
from data_pipelines.readers.index import FAULT
from data_pipelines.readers.parquet import ParquetRows
from data_pipelines.readers.records import FIELDS, Form, RowRecords, Rows
from data_pipelines.readers.text import RULES
from omnidiff_jax.config import refuse_unknown, suggest
from omnidiff_jax.data.readers import Reader, SourceConfig
from omnidiff_jax.errors import UserError
from omnidiff_jax.fetching import local_copy
from omnidiff_jax.files import expanded

GENERIC = ("folder", "parquet", "tar", "table", "json_lines")
_TOLD = ("id", "language", "speaker", "duration")
_LOOKED_AT = 20


def open_corpus(name: str, config: SourceConfig) -> RowRecords:
    """The records of a corpus, or of a form for anybody.

    Args:
        name: in `CORPORA`.
        config: its `path`, `split`, `columns` and `rules`.

    Raises:
        UserError: nothing of the corpus lies there (the likely one is named), a column is missing (the nearest is), or
            a rule or field is unknown.
    """
    corpus, root = CORPORA[name], local_copy(config.path)
    if not root.exists():
        raise UserError(f"{config.path} does not exist; check the path of reader {name!r}")
    refuse_unknown(config.columns, FIELDS, "columns")
    refuse_unknown(config.rules, RULES, "rules")
    rules = tuple(rule for rule in RULES if config.rules.get(rule, rule in corpus.rules))
    refused = ""
    for layer in corpus.layers:
        rows = layer.layout(root, config.split)
        if rows is None:
            continue
        columns, names = {**layer.columns, **config.columns}, names_of(rows)
        if name in GENERIC:
            columns = {field: column for field, column in columns.items() if not names or _there(column, names)}
            columns |= config.columns
            if not columns or not {"text", "messages", "answer"} & columns.keys():
                raise UserError(
                    f"reader {name!r} needs to know which column holds what: set columns.text, .messages or .answer, "
                    f"and .audio or .image; {config.path} has {', '.join(sorted(names))}"
                )
        missing = [column for column in columns.values() if names and not _there(column, names)]
        told = [layer.columns[field] for field in _TOLD if field in layer.columns and field not in config.columns]
        fits = not missing or (set(missing) <= set(told) and not likely(root, config.split, name))
        if fits:
            if isinstance(rows, ParquetRows):
                rows = rows.of(_heads(columns.values(), names))
            kept = {field: column for field, column in columns.items() if field in FIELDS and column not in missing}
            home = expanded(config.root) if config.root else root if root.is_dir() else root.parent
            if layer.media and not config.root:
                above = (f"{above}{layer.media}" for above in ("", "*/", "*/*/", "*/*/*/"))
                home = next((place for name in above for place in root.glob(name) if place.is_dir()), home)
            return RowRecords(rows, Form(config.task or corpus.task, kept, rules), home, config.links)
        refused = f"{config.path} has no column {missing[0]!r}; {suggest(missing[0], names)}"
    other = likely(root, config.split, name)
    if other:
        raise UserError(f"{config.path} is not {name} ({corpus.summary}): it looks like {other}; set reader={other}")
    raise UserError(
        f"{refused}; name it in columns of reader {name!r}"
        if refused
        else f"nothing of split {config.split!r} in {config.path} is {name} ({corpus.summary}); check path and split"
    )


def likely(root: Path, split: str, but: str = "") -> str:
    """The corpus that lies in a folder, or ""."""
    for name, corpus in CORPORA.items():
        if name in GENERIC or name == but:
            continue
        for layer in corpus.layers:
            try:
                rows = layer.layout(root, split)
            except UserError:
                continue
            names = names_of(rows) if rows is not None and len(rows) else set()
            if names and all(_there(column, names) for column in layer.columns.values()):
                return name
    return ""


def names_of(rows: Rows) -> set[str]:
    """Columns of rows, those of objects within as "a.b"; of the first rows where each has its own."""
    if isinstance(rows, ParquetRows):
        return set(rows.names)
    names: set[str] = set()
    for number in range(min(len(rows), _LOOKED_AT)):
        row = rows[number]
        if FAULT in row:
            continue
        names |= row.keys()
        names |= {f"{key}.{inner}" for key, value in row.items() if isinstance(value, Mapping) for inner in value}
    return names


def _there(column: str, names: Iterable[str]) -> bool:
    known = set(names)
    return any(
        name in known
        or name.partition(".")[0] in known
        and "." in name
        and not _objects(name, known)
        or any(other.endswith(f".{name}") for other in known)
        for name in column.split("|")
    )


def _objects(column: str, names: set[str]) -> bool:
    """Whether keys of the column's object are known, so that one that is not among them is missing."""
    head = column.partition(".")[0]
    return any(name.startswith(f"{head}.") for name in names)


def _heads(columns: Iterable[str], names: set[str]) -> list[str]:
    heads = {name.partition(".")[0] for column in columns for name in column.split("|")}
    return sorted(heads & names)


def benchmark(corpus: Corpus, config: SourceConfig) -> str:
    """What the split, or a part of the path, is test data of, or ""; no split takes everything, test data too."""
    parts = [part.lower() for part in PurePosixPath(config.path).parts[-2:]]
    within = any(re.match(rf"{re.escape(name)}([^a-z]|$)", part) for name in corpus.exams for part in parts)
    taken = within or not config.split or config.split.strip("{}").lower().startswith(tuple(corpus.exams))
    return corpus.summary.partition(":")[0] if corpus.exams and taken else ""


def _identity(config: SourceConfig, records: RowRecords) -> str:
    return records.fingerprint


CORPUS_READERS: Mapping[str, Reader] = {
    name: Reader(
        corpus.summary,
        ("path",),
        functools.partial(open_corpus, name),
        _identity,
        copies=(),
        benchmark=functools.partial(benchmark, corpus),
    )
    for name, corpus in CORPORA.items()
}
