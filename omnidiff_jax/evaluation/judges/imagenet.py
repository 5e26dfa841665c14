"""The judge of pictures without texts: features and classes of EfficientNet-Lite0, trained on ImageNet."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from omnidiff_jax.conversion.legacy_torch import read_legacy
from omnidiff_jax.conversion.tensor_files import SafetensorsFile
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.judges.remembered import Remembered, of_picture
from omnidiff_jax.models.efficientnet import LITE0, EfficientNet, EfficientNetConfig, efficientnet_params, scaled
from omnidiff_jax.tokenizers.assets import fingerprint

SIDE = 224
_BATCH = 16
_LARGEST = 64 << 20  # bytes of weights


class ImagenetJudge:
    """Features of pictures, whose cosines say how alike two are, and logits of ImageNet's classes.

    Attributes:
        name: with a hash of the folder.
        config: sizes.
        params: of the network.
    """

    def __init__(self, folder: Path, config: EfficientNetConfig = LITE0):
        """Reads a folder of one file of weights, safetensors or a `.pth` of before torch 1.6.

        Raises:
            UserError: there is none or several, or the weights are of another model.
        """
        found = sorted(file for suffix in ("safetensors", "pth") for file in folder.glob(f"*.{suffix}"))
        if len(found) != 1:
            raise UserError(f"{folder} has {len(found)} files of weights; it must have one .safetensors or .pth")
        self.config = config
        self.params = efficientnet_params(_tensors(found[0]), config, str(found[0]))
        self.name = f"imagenet-{fingerprint(found)[:8]}"
        self._seen = Remembered(self._computed, of_picture)

    def features(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [N, F] of uint8 [H, W, 3] of any sizes."""
        return self._found(pictures, 0, self.config.features)

    def logits(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [N, C], of ImageNet's classes."""
        return self._found(pictures, 1, self.config.classes)

    def _found(self, pictures: Sequence[np.ndarray], which: int, width: int) -> np.ndarray:
        return np.array([found[which] for found in self._seen(pictures)], np.float32).reshape(-1, width)

    def _computed(self, pictures: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        apply = _function(self.config)
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, len(pictures), _BATCH):
            batch = [prepared(picture) for picture in pictures[start : start + _BATCH]]
            # Batches of one shape: a picture's features do not depend on how many are asked for.
            full = np.stack(batch + [batch[0]] * (_BATCH - len(batch)))
            features, logits = map(np.asarray, apply(self.params, full))
            found += zip(features[: len(batch)], logits[: len(batch)], strict=True)
        return found


def prepared(picture: np.ndarray, side: int = SIDE) -> np.ndarray:
    """uint8 [side, side, 3] of uint8 [H, W, 3]: short side to `side` (bicubic), the middle."""
    height, width = picture.shape[:2]
    short = min(height, width)
    sides = (side * width // short, side * height // short)
    resized = np.asarray(Image.fromarray(picture).resize(sides, Image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - side) // 2, (resized.shape[1] - side) // 2
    return resized[top : top + side, left : left + side]


def _tensors(file: Path) -> dict[str, np.ndarray]:
    if file.suffix == ".pth":
        return read_legacy(file, _LARGEST)
    if file.stat().st_size > _LARGEST:
        raise UserError(f"{file} has more than the {_LARGEST} bytes that are read; it is of another model")
    weights = SafetensorsFile(file)
    try:
        return {name: weights.read(name) for name in weights.entries}
    finally:
        weights.close()


@functools.lru_cache(maxsize=2)
def _function(config: EfficientNetConfig) -> Any:
    model = EfficientNet(config)

    def apply(params: Any, pictures: jax.Array) -> Any:
        return model.apply({"params": params}, scaled(pictures.astype("float32")))

    return jax.jit(apply)
