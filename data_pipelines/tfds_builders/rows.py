"""Any prepared TFDS data set as rows of columns: what its features hold, as text, sound and encoded pictures."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.readers.index import Row
from omnidiff_jax.data.sources import TfdsRecords
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import Waveform


class TfdsRows:
    """Rows of a split; pictures stay encoded until they are used, so that their size is checked first.

    Attributes:
        fingerprint: of the set and the split.
        names: of the columns, those of dictionaries within as "a.b".
    """

    def __init__(self, directory: str, split: str, fingerprint: str):
        """Raises UserError where no prepared data set lies in `directory`, or it has no such split."""
        self._records = TfdsRecords(directory, split, dict, _undecoded)
        self._features = self._records.features
        self.fingerprint, self.names = fingerprint, tuple(_names(self._features))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Row:
        return _value(self._features, self._records[index])


def _names(features: Any, above: str = "") -> list[str]:
    names = []
    for name, feature in features.items():
        names.append(f"{above}{name}")
        if isinstance(feature, tfds.features.FeaturesDict):
            names += _names(feature, f"{above}{name}.")
    return names


def _undecoded(feature: Any) -> Any:
    """Decoders that leave pictures as they lie there; None where a feature has none."""
    if isinstance(feature, tfds.features.FeaturesDict):
        found = {name: _undecoded(inner) for name, inner in feature.items()}
        return {name: one for name, one in found.items() if one is not None} or None
    if isinstance(feature, tfds.features.Image):
        return tfds.decode.SkipDecoding()
    return None


def _value(feature: Any, value: Any) -> Any:
    """As readers of rows take it: str, number, bytes, `Waveform`, array, or list or mapping of such."""
    if isinstance(feature, tfds.features.FeaturesDict):
        return {name: _value(feature[name], value[name]) for name in feature}
    if isinstance(feature, tfds.features.Sequence):
        if isinstance(value, Mapping):  # a sequence of dictionaries comes as a dictionary of sequences
            names = list(value)
            rows = zip(*(list(value[name]) for name in names), strict=True)
            return [_value(feature.feature, dict(zip(names, row, strict=True))) for row in rows]
        return [_value(feature.feature, item) for item in value]
    if isinstance(feature, tfds.features.ClassLabel):
        return feature.int2str(int(value)) if int(value) >= 0 else ""
    if isinstance(feature, tfds.features.Audio):
        return _sound(feature, np.asarray(value))
    if isinstance(value, bytes) and not isinstance(feature, tfds.features.Image):
        return value.decode("utf-8", "replace")
    return value.item() if isinstance(value, np.generic) else value


def _sound(feature: Any, samples: np.ndarray) -> Waveform:
    rate = feature.sample_rate
    if not rate:
        raise UserError("an Audio feature of the TFDS set does not say its sample_rate; write it anew with that")
    if samples.dtype.kind in "iu":  # 16-bit samples, in whatever width they are kept
        samples = samples.astype(np.float32) / 32768.0
    return Waveform(samples.astype(np.float32), int(rate))
