"""Speech tokenizer of GLM-4-Voice (arXiv 2412.02612 §2.1): a Whisper encoder with pooling and a vector quantizer in it.

16 kHz audio -> log-mel at 100 Hz -> convolutions, 50 Hz -> pooling, 12.5 Hz -> one code for every 80 ms.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from omnidiff_jax.config import Count, Natural
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.features import whisper_log_mel
from omnidiff_jax.models import vq
from omnidiff_jax.models.linear import Linear
from omnidiff_jax.sharding import axes
from omnidiff_jax.sharding.axes import constrain

RATE = 16000
_HOP = 160
_CONV_STRIDE = 2


@dataclasses.dataclass(frozen=True)
class WhisperVQConfig:
    """Sizes of the encoder; the defaults are glm-4-voice-tokenizer.

    Attributes:
        num_mels: mel bins of the input.
        width: D.
        heads: H.
        ffn: F.
        layers: transformer layers.
        max_positions: frames at 50 Hz of the longest piece.
        causal_convolution: the two convolutions look back only.
        block_size: an attention block, in frames at 50 Hz: a frame sees all frames before the end of its block. None
            = it sees the whole piece.
        pooling: how `pooling_kernel` frames become one.
        pooling_kernel: frames at 50 Hz of one code.
        pooling_position: layers before the pooling.
        quantize_position: layers before the quantizer, not fewer than before the pooling.
        codebook_size: K.
        final_norm: LayerNorm after the last layer.
        dtype: compute dtype; norms, softmax and distances are in float32.
    """

    num_mels: Count = 128
    width: Count = 1280
    heads: Count = 20
    ffn: Count = 5120
    layers: Count = 16
    max_positions: Count = 1500
    causal_convolution: bool = True
    block_size: Count | None = 200
    pooling: Literal["avg", "max"] = "avg"
    pooling_kernel: Count = 4
    pooling_position: Natural = 16
    quantize_position: Natural = 16
    codebook_size: Count = 16384
    final_norm: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if not 0 <= self.pooling_position <= self.quantize_position <= self.layers:
            raise ValueError(
                f"pooling_position = {self.pooling_position} and quantize_position = {self.quantize_position} must lie "
                f"in this order within 0..{self.layers}"
            )

    @property
    def samples_per_code(self) -> int:
        """1280 in the released model: 80 ms at 16 kHz."""
        return _HOP * _CONV_STRIDE * self.pooling_kernel

    @property
    def max_samples(self) -> int:
        """Samples of the longest piece: 480000 (30 s) in the released model."""
        return self.max_positions * _HOP * _CONV_STRIDE

    @property
    def max_codes(self) -> int:
        """Codes of the longest piece, the rows of the second position table."""
        return -(-self.max_positions // self.pooling_kernel)

    @property
    def stacks(self) -> tuple[tuple[int, int], ...]:
        """Runs of layers (first, end) between which pooling and quantizer may stand; empty runs are left out."""
        cuts = sorted({0, self.pooling_position, self.quantize_position, self.layers})
        return tuple(zip(cuts[:-1], cuts[1:], strict=True))


@struct.dataclass
class WhisperVQOutput:
    """What the encoder makes of a batch, P codes a row.

    Attributes:
        features: [B, P, D], what the quantizer was given.
        codes: int32 [B, P].
        valid: bool [B, P], False for padding.
        hidden: [B, P, D], quantized vectors with positions, through the layers behind the quantizer; the gradient
            passes straight through the quantizer.
    """

    features: jax.Array
    codes: jax.Array
    valid: jax.Array
    hidden: jax.Array


def _norm(dtype: str, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(
        epsilon=1e-5,
        dtype=dtype,
        use_fast_variance=False,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, (axes.NORM,)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, (axes.NORM,)),
        name=name,
    )


def _sinusoids(key: jax.Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Whisper's position table: sines in the first half, cosines in the second; `key` is not used."""
    rows, width = shape
    rates = np.exp(-math.log(10000.0) / (width // 2 - 1) * np.arange(width // 2))
    angles = np.arange(rows)[:, None] * rates[None]
    return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=1), dtype)


class WhisperLayer(nn.Module):
    """Pre-norm transformer layer; the key projection has no bias."""

    config: WhisperVQConfig

    @nn.compact
    def __call__(self, x: jax.Array, allowed: jax.Array) -> tuple[jax.Array, None]:
        """One layer, in the form that `nn.scan` takes: x [B, T, D], allowed bool [B, 1, T, T] -> ([B, T, D], None)."""
        c = self.config
        head_dim = c.width // c.heads
        y = _norm(c.dtype, "attention_norm")(x)

        def project(name: str, bias: bool = True) -> jax.Array:
            inward = (axes.EMBED, axes.HEADS, axes.HEAD_DIM)
            return Linear((c.heads, head_dim), inward, use_bias=bias, dtype=c.dtype, name=name)(y)

        query, key, value = project("query"), project("key", bias=False), project("value")
        scores = jnp.einsum("bqhd,bkhd->bhqk", query * head_dim**-0.5, key, preferred_element_type=jnp.float32)
        # Every query sees the first frame at least, padding too: the pooled mean may take padded frames in.
        weights = jax.nn.softmax(scores, axis=-1, where=allowed).astype(c.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        x += Linear((c.width,), (axes.HEADS, axes.HEAD_DIM, axes.EMBED), contract=2, dtype=c.dtype, name="out")(y)
        y = _norm(c.dtype, "ffn_norm")(x)
        y = nn.gelu(Linear((c.ffn,), (axes.EMBED, axes.MLP), dtype=c.dtype, name="ffn_in")(y), approximate=False)
        y = constrain(y, axes.BATCH, axes.FRAMES, axes.ACT_MLP)
        x += Linear((c.width,), (axes.MLP, axes.EMBED), dtype=c.dtype, name="ffn_out")(y)
        return constrain(x, axes.BATCH, axes.FRAMES, axes.ACT_EMBED), None


class WhisperVQEncoder(nn.Module):
    """Log-mel frames -> codes."""

    config: WhisperVQConfig

    @nn.compact
    def __call__(self, mels: jax.Array, valid: jax.Array) -> WhisperVQOutput:
        """Encodes a batch of pieces.

        Args:
            mels: float32 [B, T, num_mels]; T is a multiple of twice `pooling_kernel`, at most twice
                `max_positions`.
            valid: bool [B, T], False for padding at the end.
        """
        c = self.config
        granule = _CONV_STRIDE * c.pooling_kernel
        if mels.shape[1] % granule or mels.shape[1] > _CONV_STRIDE * c.max_positions:
            raise ValueError(
                f"{mels.shape[1]} mel frames must be a multiple of {granule}, at most {_CONV_STRIDE * c.max_positions}"
            )
        x = nn.gelu(self._conv("conv1", mels.astype(c.dtype), stride=1), approximate=False)
        x = nn.gelu(self._conv("conv2", x, stride=_CONV_STRIDE), approximate=False)
        valid = valid[:, ::_CONV_STRIDE]
        table = (None, axes.EMBED)
        positions = self.param("positions", nn.with_logical_partitioning(_sinusoids, table), (c.max_positions, c.width))
        x += jnp.asarray(positions, c.dtype)[None, : x.shape[1]]
        code_init = nn.with_logical_partitioning(nn.initializers.normal(1.0), (axes.CODEBOOK, axes.CODE_DIM))
        codebook = self.param("codebook", code_init, (c.codebook_size, c.width))
        code_positions = self.param(
            "code_positions", nn.with_logical_partitioning(_sinusoids, table), (c.max_codes, c.width)
        )
        block = c.block_size
        for first, end in (*c.stacks, (c.layers, c.layers)):
            if first == c.pooling_position:
                x = self._pool(x)
                valid = valid[:, :: c.pooling_kernel]
                block = block and block // c.pooling_kernel
            if first == c.quantize_position:
                features = x
                x, codes = vq.quantize(features, jnp.asarray(codebook))
                x += jnp.asarray(code_positions, c.dtype)[None, : x.shape[1]]
            if first < end:
                x, _ = self._stack(first, end)(x, visible_frames(valid, block))
        if c.final_norm:
            x = _norm(c.dtype, "final_norm")(x)
        return WhisperVQOutput(features=features, codes=codes, valid=valid, hidden=x)

    def _conv(self, name: str, x: jax.Array, stride: int) -> jax.Array:
        names = (axes.KERNEL, axes.CONV_IN, axes.CONV_OUT)
        return nn.Conv(
            self.config.width,
            (3,),
            strides=(stride,),
            padding=((2, 0),) if self.config.causal_convolution else ((1, 1),),
            dtype=self.config.dtype,
            kernel_init=nn.with_logical_partitioning(nn.initializers.lecun_normal(), names),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros, names[-1:]),
            name=name,
        )(x)

    def _stack(self, first: int, end: int) -> nn.Module:
        """Layers first .. end - 1, scanned."""
        scanned = nn.scan(
            WhisperLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=end - first,
            metadata_params={nn.PARTITION_NAME: axes.LAYERS},
        )
        return scanned(self.config, name=f"layers_{first}")

    def _pool(self, x: jax.Array) -> jax.Array:
        groups = x.reshape(x.shape[0], -1, self.config.pooling_kernel, x.shape[-1])
        return groups.mean(axis=2) if self.config.pooling == "avg" else groups.max(axis=2)


def visible_frames(valid: jax.Array, block: int | None) -> jax.Array:
    """Which frames each frame attends to: bool [B, T] -> bool [B, 1, T, T] (query, key).

    Valid frames up to the end of the query's block of `block` frames; all valid ones if `block` is None.
    """
    seen = valid[:, None, None, :]
    index = jnp.arange(valid.shape[1])
    if block is None:
        return jnp.broadcast_to(seen, (valid.shape[0], 1, len(index), len(index)))
    causal = index[None, :] <= index[:, None]
    same = index[None, :] // block == index[:, None] // block
    return seen & (causal | same)[None, None]


# ---- audio in, numpy ----------------------------------------------------------------------------------------


def num_codes(samples: int, config: WhisperVQConfig = WhisperVQConfig()) -> int:
    """Codes of an utterance of so many samples at 16 kHz: one for every 80 ms begun."""
    return -(-samples // config.samples_per_code)


def pieces(samples: np.ndarray, config: WhisperVQConfig = WhisperVQConfig()) -> list[np.ndarray]:
    """Cuts an utterance into pieces of at most `max_samples`; each is encoded on its own, the codes are joined."""
    return [samples[i : i + config.max_samples] for i in range(0, len(samples), config.max_samples)]


def log_mel_batch(
    waves: Sequence[np.ndarray], config: WhisperVQConfig = WhisperVQConfig(), padded: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The encoder's inputs for some pieces.

    Args:
        waves: float32 [n] each, 16 kHz, 1 to `max_samples` samples.
        config: of the encoder.
        padded: samples to pad every wave to with zeros, a multiple of `samples_per_code`; None = the longest wave,
            rounded up. The spectrogram reflects the padded wave at its end, so the codes of a wave's last 80 ms
            depend on whether at least 200 zeros follow it.

    Returns:
        Log-mel float32 [B, T, num_mels] and bool [B, T], False where a frame starts behind the wave.

    Raises:
        UserError: a wave without samples, or longer than the padding or than a piece may be.
    """
    longest = max(len(wave) for wave in waves)
    total = num_codes(longest, config) * config.samples_per_code if padded is None else padded
    if min(len(wave) for wave in waves) == 0:
        raise UserError("audio of 0 samples has no speech codes; give at least one sample")
    if longest > total or longest > config.max_samples or total % config.samples_per_code:
        raise UserError(
            f"a piece of {longest} samples, padded to {total}, does not fit: at most {config.max_samples}, in steps of "
            f"{config.samples_per_code}"
        )
    mels = [whisper_log_mel(np.pad(wave, (0, total - len(wave))), config.num_mels) for wave in waves]
    starts = np.arange(total // _HOP) * _HOP
    return np.stack(mels), starts[None] < np.array([len(wave) for wave in waves])[:, None]
