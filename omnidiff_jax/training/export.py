"""What a run has trained, in the released form: straight from its checkpoint, a part of an array at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from omnidiff_jax.conversion.arrays import ArrayFolder, open_arrays
from omnidiff_jax.conversion.components import OmniParts
from omnidiff_jax.conversion.parts import Summary
from omnidiff_jax.conversion.to_released import SHARD, write_released
from omnidiff_jax.training.factors import factors_used, summed
from omnidiff_jax.training.lora import SUBTREE, LoraConfig

# Along which axis an array has a row for every id.
CODE_AXES = {"backbone/embedding": 0, "backbone/head": 1}


class TrainedArrays(ArrayFolder):
    """The parameters that one samples with: the weight average where one is kept, LoRA products added and image rows
    made sums of factors as they are read.

    Args:
        params: the checkpoint's parameters.
        average: the trained ones averaged, or None.
        lora: how the thin matrices scale.
        image_factors: bits of each factor of an image code, see `training/factors.py`.
    """

    def __init__(
        self, params: ArrayFolder, average: ArrayFolder | None, lora: LoraConfig, image_factors: Sequence[int] = ()
    ):
        arrays = params.arrays | (average.arrays if average else {})
        thin = {path: array for path, array in arrays.items() if path.startswith(f"{SUBTREE}/")}
        super().__init__(params.folder, {path: array for path, array in arrays.items() if path not in thin})
        self._thin = ArrayFolder(params.folder, {path.removeprefix(f"{SUBTREE}/"): x for path, x in thin.items()})
        self._scale = lora.alpha / max(lora.rank, 1)
        self._factors = factors_used(image_factors, lora.rank)
        self._sums: dict[str, np.ndarray] = {}

    def read(self, path: str, index: tuple[int | slice, ...] = ()) -> np.ndarray:
        if self._factors and path in CODE_AXES:
            return self._with_sums(path, index)
        if f"{path}/a" not in self._thin.arrays:
            return super().read(path, index)
        layer, *within = index or (slice(None),)  # every such matrix is a stack of layers, read one by one
        if isinstance(layer, slice):
            return np.stack([self.read(path, (n, *within)) for n in range(*layer.indices(self.shapes[path][0]))])
        value = super().read(path, index)
        product = self._thin.read(f"{path}/a", (layer,)) @ self._thin.read(f"{path}/b", (layer,)) * self._scale
        whole = product.reshape(self.shapes[path][1:])
        return (value + whole[tuple(within)]).astype(value.dtype)

    def _with_sums(self, path: str, index: tuple[int | slice, ...]) -> np.ndarray:
        """A part of the embedding or head, cut out by slices; the last ids are the image codes'."""
        axis, size = CODE_AXES[path], self.shapes[path][CODE_AXES[path]]
        cut = [index[a] if a < len(index) else slice(None) for a in range(2)]
        ids = cut[axis]
        assert isinstance(ids, slice)
        start, stop, _ = ids.indices(size)
        first = size - 2 ** sum(self._factors)
        value = super().read(path, tuple(cut))
        if stop <= first:
            return value
        if path not in self._sums:
            codes = super().read(path, (slice(None),) * axis + (slice(first, None),)).astype(np.float32)
            self._sums[path] = np.moveaxis(summed(np.moveaxis(codes, axis, 0), self._factors), 0, axis)
        low, value = max(start, first), np.array(value)
        cut[axis] = slice(low - first, stop - first)
        value[(slice(None),) * axis + (slice(low - start, None),)] = self._sums[path][tuple(cut)]
        return value


@contextmanager
def open_trained(
    state: Path, lora: LoraConfig, image_factors: Sequence[int] = (), *, averaged: bool
) -> Iterator[TrainedArrays]:
    """Opens what a training checkpoint samples with.

    Args:
        state: its folder of arrays, `WORKDIR/checkpoints/STEP/state`.
        lora: of the run.
        image_factors: of the run.
        averaged: whether the run keeps a weight average.

    Raises:
        UserError: an array is missing.
    """
    with ExitStack() as stack:
        params = stack.enter_context(open_arrays(state, "params"))
        average = stack.enter_context(open_arrays(state, "ema")) if averaged else None
        yield TrainedArrays(params, average, lora, image_factors)


def export_run(
    state: Path,
    target: Path,
    config: OmniParts,
    lora: LoraConfig,
    image_factors: Sequence[int] = (),
    *,
    averaged: bool,
    dtype: np.dtype | None = None,
    allow_nan: bool = False,
    shard_bytes: int = SHARD,
) -> Summary:
    """Writes the model of a training checkpoint as an Omni-Diffusion one in the released names and layouts.

    Args:
        state: the checkpoint's folder of arrays, `WORKDIR/checkpoints/STEP/state`.
        target: folder to make; it must not exist.
        config: sizes of the model.
        lora: of the run.
        image_factors: of the run.
        averaged: whether the run keeps a weight average, which is then what is written.
        dtype: of floating-point tensors; None keeps float32, as trained.
        allow_nan: write arrays with NaN or infinities in them.
        shard_bytes: most bytes of a file.

    Raises:
        UserError: the checkpoint is none of this model, or the target cannot be written.
    """
    with open_trained(state, lora, image_factors, averaged=averaged) as arrays:
        return write_released(arrays, target, "omni", config, dtype=dtype, allow_nan=allow_nan, shard_bytes=shard_bytes)
