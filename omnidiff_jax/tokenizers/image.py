"""Pictures to image codes and back, with MAGVIT-v2."""

import functools
import math
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from PIL import Image

from omnidiff_jax.errors import UserError
from omnidiff_jax.models.magvit import Magvit, MagvitConfig
from omnidiff_jax.tokenizers import assets

BATCH_SIZES = (1, 16, 128)


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """The released preprocessing: short side to `size` (bicubic), then the centre square.

    Args:
        image: uint8 [H, W, 3].
        size: side of the result in pixels.

    Returns:
        uint8 [size, size, 3]; the image itself where it already has that shape.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    short = min(height, width)
    resized = Image.fromarray(image).resize((size * width // short, size * height // short), Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2.0) for side in resized.size)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


class ImageTokenizer:
    """Encoder and decoder, jitted for a few fixed batch sizes so that no call compiles anew.

    A call of any length is cut into batches of those sizes, the last one filled up; each (batch size, image size)
    compiles once per process.

    Attributes:
        config: sizes of the autoencoder.
        params: its parameters, {"encoder": ..., "decoder": ...}.
    """

    def __init__(self, config: MagvitConfig, params: Any, batch_sizes: tuple[int, ...] = BATCH_SIZES):
        self.config = config
        self.params = jax.device_put(meta.unbox(params))
        self._batch_sizes = tuple(sorted(batch_sizes))

    @classmethod
    def load(cls, directory: str | os.PathLike, batch_sizes: tuple[int, ...] = BATCH_SIZES) -> "ImageTokenizer":
        """Reads a folder written by `save`; `assets.nano_dir("image_tokenizer")` holds the shipped one.

        Raises:
            UserError: see `assets.load`.
        """
        config, params = assets.load(directory, MagvitConfig, param_shapes)
        return cls(config, params, batch_sizes)

    def save(self, directory: str | os.PathLike) -> None:
        """Writes config and parameters (float16)."""
        assets.save(directory, self.config, self.params)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of codes of an image of that many pixels.

        Raises:
            UserError: a side is not a multiple of the pixels per code.
        """
        f = self.config.downsampling
        if height % f or width % f or not height or not width:
            raise UserError(
                f"image is {height}x{width}; sides must be multiples of {f} pixels (resize or crop it first)"
            )
        return height // f, width // f

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 [B, H, W, 3] -> codes int32 [B, h*w], row by row.

        Raises:
            UserError: H or W is not a multiple of the pixels per code.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be uint8 [B, H, W, 3], not {images.dtype} {list(images.shape)}")
        height, width = self.grid(*images.shape[1:3])
        codes = np.empty((len(images), height * width), np.int32)
        for part in self._parts(len(images)):
            batch = _fill(images[part], self._batch_sizes)
            codes[part] = np.asarray(_encode(self.config, self.params, batch))[: part.stop - part.start]
        return codes

    def decode(self, codes: np.ndarray, grid: tuple[int, int] | None = None) -> np.ndarray:
        """Codes int [B, h*w] -> images uint8 [B, h*f, w*f, 3].

        Args:
            codes: row by row, each in 0 .. 2**K - 1.
            grid: (h, w); by default a square.

        Raises:
            UserError: a code is out of range, or the number of codes does not fill the grid.
        """
        codes = np.asarray(codes)
        count, size = codes.shape[1], self.config.codebook_size
        side = math.isqrt(count)
        height, width = grid or (side, side)
        if height * width != count:
            raise UserError(f"{count} image codes do not fill a grid of {height}x{width}; give grid=(rows, columns)")
        if codes.size and (codes.min() < 0 or codes.max() >= size):
            raise UserError(f"image codes must lie in 0..{size - 1}, found {codes.min()}..{codes.max()}")
        f = self.config.downsampling
        images = np.empty((len(codes), height * f, width * f, 3), np.uint8)
        for part in self._parts(len(codes)):
            batch = _fill(codes[part].astype(np.int32).reshape(-1, height, width), self._batch_sizes)
            images[part] = np.asarray(_decode(self.config, self.params, batch))[: part.stop - part.start]
        return images

    def _parts(self, count: int) -> Iterator[slice]:
        """Slices of at most the largest batch size; a rest that fills half of a size or less uses smaller ones."""
        start = 0
        while start < count:
            rest = count - start
            size = next((s for s in self._batch_sizes if s >= rest), self._batch_sizes[-1])
            smaller = [s for s in self._batch_sizes if s <= rest]
            if smaller and 2 * rest <= size:
                size = smaller[-1]
            yield slice(start, start + min(size, rest))
            start += size


def param_shapes(config: MagvitConfig) -> Any:
    """The parameter tree of `config` as `jax.ShapeDtypeStruct`s."""
    image = jax.ShapeDtypeStruct((1, config.downsampling, config.downsampling, 3), jnp.float32)
    return meta.unbox(jax.eval_shape(Magvit(config).init, jax.random.key(0), image)["params"])


def to_unit(images: jax.Array) -> jax.Array:
    """uint8 -> float32 in [-1, 1], in the released order of operations."""
    return (images.astype(jnp.float32) / 255.0 - 0.5) / 0.5


def to_pixels(images: jax.Array) -> jax.Array:
    """float32 around [-1, 1] -> uint8, clamped and truncated (released)."""
    return (jnp.clip((images + 1.0) / 2.0, 0.0, 1.0) * 255.0).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnums=0)
def _encode(config: MagvitConfig, params: Any, images: jax.Array) -> jax.Array:
    codes = Magvit(config).apply({"params": params}, to_unit(images), method="encode")
    return codes.reshape(len(codes), -1)


@functools.partial(jax.jit, static_argnums=0)
def _decode(config: MagvitConfig, params: Any, codes: jax.Array) -> jax.Array:
    return to_pixels(Magvit(config).apply({"params": params}, codes, method="decode"))


def _fill(batch: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Repeats the last row up to the next batch size."""
    size = next(s for s in sizes if s >= len(batch))
    return np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
