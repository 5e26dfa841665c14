"""Encoding sources into sets: those that are generated, once before a run, in worker processes; others on request."""

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omnidiff_jax.codecs.encode import encode
from omnidiff_jax.codecs.tokenizers import TokenizersConfig, open_tokenizers
from omnidiff_jax.config import to_dict
from omnidiff_jax.data.readers import Reader, SourceConfig, check_source, raw_records
from omnidiff_jax.data.sources import RandomAccess
from omnidiff_jax.data.storage import EncodedSet, Manifest, write_set
from omnidiff_jax.errors import UserError
from omnidiff_jax.progress import Progress
from omnidiff_jax.records import Record, RejectedRecord
from omnidiff_jax.workers import Workers, advance


def build_sets(
    sources: Mapping[str, SourceConfig],
    readers: Mapping[str, Reader],
    tokenizers: TokenizersConfig,
    folder: str | os.PathLike[str],
    processes: int | None = None,
) -> dict[str, Manifest]:
    """Builds the sets of the sources that are encoded before training, where they are not there yet.

    Args:
        sources: by name; those of other readers are passed over.
        readers: the table; its functions are called in worker processes.
        tokenizers: that encode.
        folder: holds a set a source, by name.
        processes: worker processes; None = one a core.

    Returns:
        the manifest of each set.

    Raises:
        UserError: a folder that cannot be written, or a set that was built from something else.
    """
    root = Path(folder)
    built = {name: config for name, config in sources.items() if check_source(name, config, readers).gives == "sets"}
    if not built:
        return {}
    missing = [name for name in built if not (root / name).is_dir()]
    # What is heard costs most; starting with it keeps the last worker from finishing alone.
    missing.sort(key=lambda name: built[name].task not in ("s2i", "asr", "spoken_qa", "spoken_vqa"))
    began = time.perf_counter()
    if missing:
        workers = min(processes or os.cpu_count() or 1, len(missing))
        jobs = {name: (built[name], readers[built[name].reader], tokenizers, str(root / name)) for name in missing}
        total = sum(built[name].examples for name in missing)
        with Progress(total, label="data") as progress, Workers(workers) as pool:
            for number, (name, manifest) in enumerate(pool.run(build_set, jobs, progress), start=1):
                progress.say(
                    f"data {number}/{len(missing)}: {name}, {manifest.examples} examples, "
                    f"{manifest.tokens} tokens, rejected {dict(manifest.rejected) or 'none'}, "
                    f"{time.perf_counter() - began:.0f} s"
                )
    fingerprint = open_tokenizers(tokenizers).fingerprint
    manifests = {name: EncodedSet(root / name, fingerprint).manifest for name in built}
    for name, manifest in manifests.items():
        wanted = origin(built[name], readers[built[name].reader])
        if dict(manifest.origin) != wanted:
            raise UserError(
                f"{root / name} was built as {dict(manifest.origin)}, the config asks for {wanted}; remove it or use "
                "another --workdir"
            )
    return manifests


def origin(config: SourceConfig, reader: Reader) -> dict[str, Any]:
    """What a set is made from; stands in its manifest."""
    assert reader.identity is not None
    told: dict[str, Any] = {"task": config.task, "split": config.split, "records": config.examples, "path": config.path}
    told |= {"plain": config.plain, "unconditional": config.unconditional}
    return {"world": reader.identity(config, None)} | {name: value for name, value in told.items() if value}


def build_set(config: SourceConfig, reader: Reader, tokenizers: TokenizersConfig, folder: str) -> Manifest:
    """One source's set; run in a worker process."""
    return encode_set(raw_records(config, reader)[0], tokenizers, folder, origin(config, reader))


def encode_set(
    records: RandomAccess[Record],
    tokenizers: TokenizersConfig,
    folder: str | os.PathLike[str],
    made_from: Mapping[str, Any],
) -> Manifest:
    """Encodes raw records into the set `folder`; its manifest counts unusable ones."""
    opened = open_tokenizers(tokenizers)
    rejected: Counter[str] = Counter()

    def usable() -> Iterator[Record]:
        for index in range(len(records)):
            advance()
            try:
                yield records[index]
            except RejectedRecord as error:
                rejected[error.reason] += 1

    examples = encode(usable(), opened.codecs, rejected)
    return write_set(folder, examples, opened.fingerprint, 1, rejected, made_from)


def described(manifests: Mapping[str, Manifest]) -> dict[str, dict[str, Any]]:
    """Counts of sets, for people and JSON."""
    kept = ("examples", "tokens", "frames", "rejected")
    return {name: {key: to_dict(manifest)[key] for key in kept} for name, manifest in manifests.items()}
