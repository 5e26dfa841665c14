"""Order and shape of the data, apart from what reads it: grain takes a while to import."""

import dataclasses

from omnidiff_jax.codecs.heard import FEATURES, Heard
from omnidiff_jax.config import Count, Natural, Seed, check_fields
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
class DataConfig:
    """Order and shape of the data; two runs with equal configs and sources see equal batches.

    Attributes:
        seed: keys every shuffle and tail-pad count.
        batch_size: rows B of a global batch.
        streams: virtual streams V; divides `batch_size`, and the largest host count ever used divides it.
        max_tail_pads: each sample gets 1..max pad tokens appended; 0 = none.
        packing: shape of a row.
        prefetch: batches prepared ahead by the loader.
    """

    seed: Seed = 0
    batch_size: Count = 128
    streams: Count = 32
    max_tail_pads: Natural = 16
    packing: PackingConfig = PackingConfig()
    prefetch: Count = 2

    def __post_init__(self):
        check_fields(self, "data")
        if self.batch_size % self.streams:
            raise UserError(f"streams = {self.streams} must divide batch_size = {self.batch_size}")

    @property
    def rows_per_stream(self) -> int:
        """Rows that each stream gives to a batch."""
        return self.batch_size // self.streams
