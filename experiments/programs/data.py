"""Encoded data sets of a training config: one folder per task, built once, in parallel."""

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.scenes.tasks import VERSION, SceneRecords
from experiments.programs.omni import open_sets, task_names
from experiments.programs.run import plain
from experiments.programs.tokenizers import load_tokenizers
from omnidiff_jax.data.encode import encode
from omnidiff_jax.data.sources import RandomAccess, RejectedRecord
from omnidiff_jax.data.storage import Manifest, write_set
from omnidiff_jax.errors import UserError
from omnidiff_jax.progress import Progress
from omnidiff_jax.records import Record
from omnidiff_jax.workers import Workers, advance


def build_sets(config: ConfigDict, folder: str | os.PathLike[str], processes: int | None = None) -> dict[str, Manifest]:
    """Builds the Scenes set of every task that the config trains on, where it is not there yet.

    Args:
        config: names the tokenizers and the number of examples.
        folder: holds one folder a task.
        processes: worker processes; None = one a core.

    Returns:
        the manifest of each set.

    Raises:
        UserError: a folder that cannot be written, or a set that was built from something else.
    """
    root, names = Path(folder), task_names(config)
    missing = [name for name in names if not (root / name).is_dir()]
    # What is heard costs most; starting with it keeps the last worker from finishing alone.
    missing.sort(key=lambda name: name not in ("s2i", "asr", "spoken_qa", "spoken_vqa"))
    began = time.perf_counter()
    if missing:
        workers = min(processes or os.cpu_count() or 1, len(missing))
        jobs = {name: (plain(config), name, str(root / name)) for name in missing}
        total = sum(config.data.examples[name] for name in missing)
        with Progress(total, label="data") as progress, Workers(workers) as pool:
            for number, (name, manifest) in enumerate(pool.run(build_set, jobs, progress), start=1):
                progress.say(
                    f"data {number}/{len(missing)}: {name}, {manifest.examples} examples, "
                    f"{manifest.tokens} tokens, rejected {dict(manifest.rejected) or 'none'}, "
                    f"{time.perf_counter() - began:.0f} s"
                )
    sets = open_sets(root, names, load_tokenizers(config))
    for name, found in sets.items():
        if found.manifest.origin != set_origin(config, name):
            raise UserError(
                f"{root / name} was built as {dict(found.manifest.origin)}, the config asks for "
                f"{set_origin(config, name)}; remove it or use another --workdir"
            )
    return {name: found.manifest for name, found in sets.items()}


def set_origin(config: ConfigDict, task: str) -> dict[str, Any]:
    """What a task's set is made from; stands in its manifest."""
    return {"world": f"scenes {VERSION}", "task": task, "split": "train", "records": config.data.examples[task]}


def build_set(config: dict[str, Any], task: str, folder: str) -> Manifest:
    """One task's training set of the Scenes world; run in a worker process."""
    settings = ConfigDict(config)
    origin = set_origin(settings, task)
    return encode_set(settings, SceneRecords(task, origin["split"], origin["records"]), folder, origin)


def encode_set(
    config: ConfigDict, records: RandomAccess[Record], folder: str | os.PathLike[str], origin: Mapping[str, Any]
) -> Manifest:
    """Encodes raw records with the config's tokenizers into the set `folder`; its manifest counts unusable ones."""
    tokenizers = load_tokenizers(config)
    rejected: Counter[str] = Counter()

    def usable() -> Iterator[Record]:
        for index in range(len(records)):
            advance()
            try:
                yield records[index]
            except RejectedRecord as error:
                rejected[error.reason] += 1

    examples = encode(usable(), tokenizers.codecs, rejected)
    return write_set(folder, examples, tokenizers.fingerprint, 1, rejected, origin)
