"""The judge of pictures: CLIP's cosines, with the weights of a local folder of transformers' form."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from PIL import Image

from omnidiff_jax.conversion.tensor_files import SafetensorsFile
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.judges.clip_model import Clip, ClipConfig, clip_params
from omnidiff_jax.tokenizers.assets import fingerprint

_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
FILES = ("config.json", "model.safetensors", "tokenizer.json")


class ClipJudge:
    """Vectors of pictures and texts, whose products are cosines.

    Attributes:
        name: with a hash of the folder.
        config: of the model.
    """

    def __init__(self, folder: Path):
        """Reads a folder of `config.json`, `model.safetensors` and `tokenizer.json`.

        Raises:
            UserError: a file is missing, or the folder is of another model.
        """
        for file in FILES:
            if not (folder / file).is_file():
                raise UserError(f"{folder} has no {file}; a CLIP folder, such as openai/clip-vit-large-patch14, has")
        try:
            content = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
            self._words = tokenizers.Tokenizer.from_file(str(folder / FILES[2]))
        except Exception as error:  # the tokenizers package raises plain Exception
            raise UserError(f"{folder}: {FILES[0]} or {FILES[2]} cannot be read ({error})") from error
        self.config = ClipConfig.of_json(content, str(folder / FILES[0]))
        weights = SafetensorsFile(folder / FILES[1])
        try:
            tensors = {name: weights.read(name) for name in weights.entries}
        finally:
            weights.close()
        self._params = clip_params(tensors, self.config, str(folder / FILES[1]))
        self._words.no_padding()
        self._words.enable_truncation(self.config.tokens)
        self.name = f"clip-{fingerprint([folder / file for file in FILES])[:8]}"
        self._texts, self._pictures = _functions(self.config)

    def of_text(self, text: str) -> np.ndarray:
        """float32 [P], of length 1."""
        ids = self._words.encode(text).ids
        # What stands after the end is seen by nothing that is read.
        row = np.full((1, self.config.tokens), ids[-1], np.int32)
        row[0, : len(ids)] = ids
        return _scaled(self._texts(self._params, jnp.asarray(row)))[0]

    def of_picture(self, picture: np.ndarray) -> np.ndarray:
        """float32 [P], of length 1, of uint8 [H, W, 3]."""
        pixels = prepared(picture, self.config.image_size)
        return _scaled(self._pictures(self._params, jnp.asarray(pixels[None])))[0]


def prepared(picture: np.ndarray, size: int) -> np.ndarray:
    """float32 [size, size, 3] of uint8 [H, W, 3]: short side to `size` (bicubic), the middle, CLIP's mean and
    deviation."""
    height, width = picture.shape[:2]
    short = min(height, width)
    sides = (size * width // short, size * height // short)
    resized = np.asarray(Image.fromarray(picture).resize(sides, Image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - size) // 2, (resized.shape[1] - size) // 2
    middle = resized[top : top + size, left : left + size]
    return (middle.astype(np.float32) / 255 - _MEAN) / _DEVIATION


def _scaled(vectors: Any) -> np.ndarray:
    found = np.asarray(vectors, np.float32)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


@functools.lru_cache(maxsize=2)
def _functions(config: ClipConfig) -> tuple[Any, Any]:
    model = Clip(config)

    def texts(params: Any, ids: jax.Array) -> jax.Array:
        return model.apply({"params": params}, ids, method="texts")

    def pictures(params: Any, pixels: jax.Array) -> jax.Array:
        return model.apply({"params": params}, pixels, method="pictures")

    return jax.jit(texts), jax.jit(pictures)
