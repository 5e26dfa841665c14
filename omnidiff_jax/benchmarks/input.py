"""Speed of the loader on one core, and how full it packs rows."""

import dataclasses
import os
import time

from omnidiff_jax.benchmarks.batches import long_tailed
from omnidiff_jax.buckets import is_remote
from omnidiff_jax.data.config import DataConfig
from omnidiff_jax.data.hosting import HostBatches
from omnidiff_jax.data.loader import usage
from omnidiff_jax.data.mixture import Stage
from omnidiff_jax.data.sources import Source
from omnidiff_jax.data.storage import MANIFEST, EncodedSet, write_set
from omnidiff_jax.data.streams import Corpus
from omnidiff_jax.fetching import local_copy
from omnidiff_jax.files import written
from omnidiff_jax.vocabulary import Vocabulary

# What one H200 uses up training the 7B backbone at 60 % of its data sheet's 989.5 TFLOP/s, at 46.64 GFLOP a token.
H200_TOKENS_PER_SECOND = 12_700.0


@dataclasses.dataclass(frozen=True)
class InputSpeed:
    """What the loader was measured at, beside what a device uses up.

    Attributes:
        tokens_per_second_per_core: tokens read, packed and laid out in a second of one core's time.
        packing_efficiency: share of the positions of all measured rows that hold a sample.
        examples_per_second_per_core: samples, likewise.
        consumption: tokens a second that the device uses up.
        times_consumption: how often eight cores' supply covers it.
        batches, examples, tokens: measured.
        fetch_seconds: a core's time to bring the set near, where it lies in a bucket.
        first_pass_tokens_per_second_per_core: of every sample once, the fetching counted.
    """

    tokens_per_second_per_core: float
    packing_efficiency: float
    examples_per_second_per_core: float
    consumption: float
    times_consumption: float
    batches: int
    examples: int
    tokens: int
    fetch_seconds: float
    first_pass_tokens_per_second_per_core: float


def bench_input(
    folder: str | os.PathLike[str],
    vocabulary: Vocabulary,
    config: DataConfig,
    batches: int,
    examples: int,
    consumption: float,
) -> InputSpeed:
    """Writes a long-tailed set to `folder` and measures what the loader does with it, in processor time.

    Args:
        folder: local or in a bucket; `long_tailed` must not be there yet.
        config: order and shape; with `packing.frames` some samples hear speech.
        batches: measured, after as many as fill the open rows.
        examples: in the set.
        consumption: to compare with.
    """
    longest = config.packing.length - config.max_tail_pads
    speech = config.packing.speech if config.packing.frames else None
    place = f"{os.fspath(folder)}/long_tailed"
    with written(place, MANIFEST) as local:
        write_set(local, long_tailed(examples, vocabulary, longest, speech), vocabulary.fingerprint)
    began = time.process_time()
    near = local_copy(place, (MANIFEST,))
    fetching = time.process_time() - began if is_remote(place) else 0.0
    source = EncodedSet(near, vocabulary.fingerprint)
    corpus = Corpus({"mix": Source(source)}, (Stage(1, weights={"mix": 1.0}, name="bench"),), vocabulary)
    host = HostBatches(corpus, config)
    next(host)  # opens the rows of every stream
    used = room = samples = 0
    began = time.process_time()
    for _ in range(batches):
        batch = next(host)
        host.get_state()  # as the loader does after each batch
        tokens, positions, *_ = usage(batch)
        used, room, samples = used + int(tokens), room + int(positions), samples + int((batch.group_ids >= 0).sum())
    seconds = time.process_time() - began
    rate = used / seconds
    whole = source.manifest.tokens
    return InputSpeed(
        tokens_per_second_per_core=rate,
        packing_efficiency=used / room,
        examples_per_second_per_core=samples / seconds,
        consumption=consumption,
        times_consumption=8 * rate / consumption,
        batches=batches,
        examples=samples,
        tokens=used,
        fetch_seconds=fetching,
        first_pass_tokens_per_second_per_core=whole / (fetching + whole / rate),
    )
