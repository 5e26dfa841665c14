"""Encoding sources into sets, shard by shard: in worker processes of this machine, on one of several hosts, or wherever
a `Runner` from above takes them.

Shards are stretches of a source's records, and what a shard becomes depends on its records and the tokenizers alone:
batches are of fixed shapes and begin anew with each shard. So who builds them, and how often he is killed, changes no
byte.
"""

import contextlib
import dataclasses
import functools
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from omnidiff_jax.codecs.encode import encode
from omnidiff_jax.codecs.heard import Heard
from omnidiff_jax.codecs.tokenizers import FIXED, Tokenizers, TokenizersConfig, open_tokenizers
from omnidiff_jax.config import to_dict
from omnidiff_jax.data.config import EncodingConfig
from omnidiff_jax.data.readers import Reader, SourceConfig, check_source, raw_records
from omnidiff_jax.data.shards import PLAN, Plan, Shards, mark, read
from omnidiff_jax.data.sources import RandomAccess
from omnidiff_jax.data.storage import MANIFEST, EncodedSet, Manifest, ShardWriter, file_name
from omnidiff_jax.errors import UserError
from omnidiff_jax.fetching import local_copy
from omnidiff_jax.places import place_of
from omnidiff_jax.progress import Progress
from omnidiff_jax.records import Record, RejectedRecord
from omnidiff_jax.workers import Workers, advance

DEFAULTS = EncodingConfig()


@dataclasses.dataclass(frozen=True)
class Job:
    """One shard to be built, anywhere that sees the source and the folder.

    Attributes:
        name, folder: of the set, which is begun.
        number: of the shard.
        source, reader: of its records.
        tokenizers: that encode.
        heard: how heard speech is kept.
    """

    name: str
    folder: str
    number: int
    source: SourceConfig
    reader: Reader
    tokenizers: TokenizersConfig
    heard: Heard


class Runner(Protocol):
    """Who builds shards.

    Attributes:
        host, hosts: which of how many; each builds its own.
    """

    @property
    def host(self) -> int: ...

    @property
    def hosts(self) -> int: ...

    def run(self, jobs: Sequence[Job], progress: Progress) -> None:
        """Builds the shards; `progress` counts records."""


@dataclasses.dataclass(frozen=True)
class Cores:
    """Worker processes of this machine, which leave an accelerator alone.

    Attributes:
        workers: how many; None = one a core.
    """

    workers: int | None = None
    host: int = 0
    hosts: int = 1

    def run(self, jobs: Sequence[Job], progress: Progress) -> None:
        workers = min(self.workers or os.cpu_count() or 1, len(jobs))
        with Workers(workers, _on_cores) as pool:
            for _ in pool.run(build_shard, {number: (job,) for number, job in enumerate(jobs)}, progress):
                pass


@dataclasses.dataclass(frozen=True)
class Host:
    """This process, with its accelerator, as one of several hosts."""

    host: int = 0
    hosts: int = 1

    def run(self, jobs: Sequence[Job], progress: Progress) -> None:
        done = 0
        for job in jobs:
            done += build_shard(job)
            progress.update(done)


# ---- one shard -------------------------------------------------------------------------------------------------------


def build_shard(job: Job) -> int:
    """Builds a shard, and makes it a part of its set.

    Returns:
        how many records it was made from.

    Raises:
        UserError: a source that cannot be read, or a folder that cannot be written.
    """
    shards = Shards.found(job.name, job.folder, place_of(job.folder))
    if shards is None:
        raise UserError(f"{job.folder} has no {PLAN} any more: it was removed while it was built")
    tokenizers, records = _tokenizers(job.tokenizers), _records(job.source, job.reader)
    span = shards.plan.span(job.number)
    ends: list[int] = []

    def given() -> Iterator[Record | RejectedRecord]:
        for index in span:
            record = read(records, index)
            if index in (span[0], span[-1]):
                ends.append(mark(record))
            yield record
            advance()

    with shards.written(job.number) as folder:
        writer = ShardWriter(folder / file_name(job.number), tokenizers.codecs.layout.vocabulary.speech)
        for index, result in zip(span, encode(given(), tokenizers.codecs, heard=job.heard), strict=True):
            if isinstance(result, RejectedRecord):
                writer.reject(index, result)
            else:
                writer.add(result)
        shards.commit(job.number, folder, writer.close(), (ends[0], ends[-1]))
    return len(span)


_opening = threading.Lock()
_opened = threading.local()


def _tokenizers(config: TokenizersConfig) -> Tokenizers:
    """One for all threads of the process: each would compile its own."""
    with _opening:
        return _open_fixed(config)


@functools.lru_cache(maxsize=1)
def _open_fixed(config: TokenizersConfig) -> Tokenizers:
    return open_tokenizers(config, FIXED)


def _records(config: SourceConfig, reader: Reader) -> RandomAccess[Record]:
    """The source, opened once a thread: jobs of one come one after another."""
    if getattr(_opened, "key", None) != repr(config):
        _opened.records, _opened.key = raw_records(config, reader)[0], repr(config)
    return _opened.records


def _on_cores() -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")


# ---- sets ------------------------------------------------------------------------------------------------------------


def build_sets(
    sources: Mapping[str, SourceConfig],
    readers: Mapping[str, Reader],
    tokenizers: TokenizersConfig,
    folder: str | os.PathLike[str],
    runner: Runner | None = None,
    encoding: EncodingConfig = DEFAULTS,
) -> dict[str, Manifest]:
    """Builds the set of each source, or what is missing of it; sets that are there stay.

    Args:
        sources: by name, of raw records.
        readers: the table; its functions are called wherever shards are built.
        tokenizers: that encode.
        folder: holds a set a source, by name; here or in a bucket.
        runner: who builds; None = worker processes, one a core.
        encoding: how.

    Returns:
        the manifest of each set that is whole; one of several hosts may leave some to the others.

    Raises:
        UserError: a source or folder that cannot be used, or a set that was begun from something else.
    """
    if not sources:
        return {}
    runner = runner or Cores()
    fingerprint = _tokenizers(tokenizers).fingerprint
    sizes = [tokenizers.user_image_size, tokenizers.assistant_image_size]
    told = {"image_sizes": sizes, "heard": to_dict(encoding)["heard"]}
    manifests: dict[str, Manifest] = {}
    begun: list[Shards] = []
    jobs: list[Job] = []
    began = time.monotonic()
    with contextlib.ExitStack() as held:
        for name, config in sources.items():
            where = _within(folder, name)
            place, reader = place_of(where), check_source(name, config, readers)
            records, identity = raw_records(config, reader)
            plan = Plan(origin(config, reader, records), identity, fingerprint, told)
            if place.read(PLAN) is None and place.read(MANIFEST) is not None:
                manifests[name] = _of_before(where, plan)
                continue
            shards = Shards.begun(name, where, place, plan, records, encoding.shard)
            begun.append(shards)
            if missing := set(shards.missing()):
                held.enter_context(shards.held(runner.host, runner.hosts))
                mine = [k for k in shards.of_host(runner.host, runner.hosts) if k in missing]
                jobs += [Job(name, where, k, config, reader, tokenizers, encoding.heard) for k in mine]
        if jobs:
            ends = {shards.name: shards.plan for shards in begun}
            # What is heard costs most; starting with it keeps the last worker from finishing alone.
            jobs.sort(key=lambda job: job.source.task not in ("s2i", "asr", "spoken_qa", "spoken_vqa"))
            with Progress(sum(len(ends[job.name].span(job.number)) for job in jobs), label="records") as progress:
                runner.run(jobs, progress)
                progress.say(f"{len(jobs)} shards in {time.monotonic() - began:.0f} s")
    _open_fixed.cache_clear()
    _opened.key = _opened.records = None
    return manifests | finish_sets(begun, runner.hosts)


def finish_sets(begun: Sequence[Shards], hosts: int = 1) -> dict[str, Manifest]:
    """Makes sets whole.

    Args:
        begun: whose shards are built.
        hosts: of several, one leaves sets of which shards are missing to those that build them.

    Raises:
        UserError: shards are missing, or nothing of a source can be used.
    """
    return {shards.name: shards.finish() for shards in begun if hosts == 1 or not shards.missing()}


def begun_sets(folder: str | os.PathLike[str], names: Sequence[str] = ()) -> list[Shards]:
    """What was begun in a folder: of these names, or all there is.

    Raises:
        UserError: nothing, or nothing of a name.
    """
    place = place_of(folder)
    there = sorted(
        name.partition("/")[0] for name in place.list() if name.count("/") == 1 and name.endswith(f"/{PLAN}")
    )
    for name in names or ("",):
        if not there or name and name not in there:
            raise UserError(f"nothing{' called ' + name if name else ''} was begun in {folder}; build it first")
    return [
        found
        for name in names or there
        if (found := Shards.found(name, _within(folder, name), place_of(_within(folder, name)))) is not None
    ]


def _within(folder: str | os.PathLike[str], name: str) -> str:
    return f"{os.fspath(folder).rstrip('/')}/{name}"


def _of_before(where: str, plan: Plan) -> Manifest:
    """A whole set of before there were plans: good as it is, as long as nothing has changed."""
    manifest = EncodedSet(local_copy(where, (MANIFEST,)), plan.tokenizers).manifest
    if dict(manifest.origin) != plan.origin:
        raise UserError(
            f"{where} was built as {dict(manifest.origin)}, now it is to be {plan.origin}; remove it or name another "
            "folder"
        )
    return manifest


def origin(config: SourceConfig, reader: Reader, records: Any) -> dict[str, Any]:
    """What a set is made from; stands in its manifest."""
    assert reader.identity is not None
    told = {"task": config.task, "split": config.split, "records": config.examples, "path": config.path}
    told |= {"plain": config.plain, "unconditional": config.unconditional}
    told |= {"columns": dict(config.columns), "rules": dict(config.rules)}
    return {"world": reader.identity(config, records)} | {name: value for name, value in told.items() if value}


def described(manifests: Mapping[str, Manifest]) -> dict[str, dict[str, Any]]:
    """Counts of sets, for people and JSON."""
    kept = ("examples", "tokens", "frames", "seconds", "rejected", "first_rejects")
    return {name: {key: to_dict(manifest)[key] for key in kept} for name, manifest in manifests.items()}
