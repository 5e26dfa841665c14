"""Order and shape of the data, apart from what reads it: grain takes a while to import."""

import dataclasses

from omnidiff_jax.codecs.heard import FEATURES, Heard
from omnidiff_jax.config import Count, Natural, Seed, Share, check_fields
from omnidiff_jax.data.packing import PackingConfig
from omnidiff_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class EncodingConfig:
    """How sets are built.

    Attributes:
        heard: how heard speech is kept, "features" or "waveforms".
        shard: records of a shard; a kill loses those that are under way.
    """

    heard: Heard = FEATURES
    shard: Count = 2048


@dataclasses.dataclass(frozen=True)
class RejectsConfig:
    """How much of a source may be unusable before training on it stops: more than `most` samples, and than `share`.

    Both are counted stream by stream, `most` divided by their number, so that hosts stop at the same sample.

    Attributes:
        share: of the samples drawn from the source.
        most: samples.
    """

    share: Share = 0.5
    most: Natural = 1000

    def __post_init__(self):
        check_fields(self, "config.data.rejects")

    def over(self, rejected: int, drawn: int, streams: int) -> bool:
        """Whether a stream's `rejected` of `drawn` samples are too many."""
        return rejected * streams > self.most and rejected > self.share * drawn


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Order and shape of the data; two runs with equal configs and sources see equal batches.

    Attributes:
        seed: keys every shuffle and tail-pad count.
        batch_size: rows B of a global batch.
        streams: virtual streams V; divides `batch_size`, and the largest host count ever used divides it.
        max_tail_pads: each sample gets 1..max pad tokens appended; 0 = none.
        packing: shape of a row.
        prefetch: batches prepared ahead by the loader.
        workers: grain's worker processes that read and encode, each some of the streams; 0 = the loader's thread does.
        rejects: how much of a source may be unusable.
        remix: whether a state of other weights, or with sources that are not there any more, is gone on with.
    """

    seed: Seed = 0
    batch_size: Count = 128
    streams: Count = 32
    max_tail_pads: Natural = 16
    packing: PackingConfig = PackingConfig()
    prefetch: Count = 2
    workers: Natural = 0
    rejects: RejectsConfig = RejectsConfig()
    remix: bool = False

    def __post_init__(self):
        check_fields(self, "data")
        if self.batch_size % self.streams:
            raise UserError(f"streams = {self.streams} must divide batch_size = {self.batch_size}")

    @property
    def rows_per_stream(self) -> int:
        """Rows that each stream gives to a batch."""
        return self.batch_size // self.streams
