"""SAN-M speech encoder (memory-equipped self-attention, arXiv 2006.01713; layout of SenseVoiceSmall).

Works on packed buffers: several utterances stand in one row, and neither attention nor the FSMN convolution
crosses from one to another, so an utterance's vectors do not depend on its neighbours.
"""

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt

from omnidiff_jax.batch import SpeechFrames
from omnidiff_jax.config import Count, Natural
from omnidiff_jax.models.attention import attention
from omnidiff_jax.models.linear import Linear
from omnidiff_jax.sharding import axes
from omnidiff_jax.sharding.axes import constrain
from omnidiff_jax.speech_frames import SpeechLayout


@dataclasses.dataclass(frozen=True)
class SpeechEncoderConfig:
    """Sizes of the encoder; the defaults are SenseVoiceSmall.

    Attributes:
        features: width of an input frame (`SpeechLayout.width`).
        width: D, width of the blocks and of the output.
        heads: H.
        ffn: F, hidden width of the feed-forward.
        blocks: blocks before the middle norm; the first one turns `features` into `width`.
        tp_blocks: blocks after it.
        kernel: width of the FSMN convolution, in frames.
        queries: rows of the query table that are put before an utterance (`SpeechLayout.queries`).
        num_queries: rows of the query table.
        vocab_size: classes of the CTC head; 0 is the blank.
        position_table: "float32", or "bfloat16": the table that the released deployment computes, every step
            of it rounded. It is another table (up to 1.8 away), and the one the paper's model was trained on.
        padding: "masked": padding attends to nothing; "released": each padding frame attends to its row's last
            utterance, which cannot see it. No vector of an utterance depends on it.
        attention: a name in `attention.BACKENDS`.
        max_positions: rows of the position table = the longest utterance, queries included.
        dtype: compute dtype; norms and softmax are in float32.
    """

    features: Count = SpeechLayout.width
    width: Count = 512
    heads: Count = 4
    ffn: Count = 2048
    blocks: Count = 50
    tp_blocks: Natural = 20
    kernel: Count = 11
    queries: tuple[Natural, ...] = SpeechLayout.queries
    num_queries: Count = 16
    vocab_size: Count = 25055
    position_table: Literal["float32", "bfloat16"] = "float32"
    max_positions: Count = 4096
    padding: Literal["masked", "released"] = "masked"
    attention: str = "xla"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"blocks = {self.blocks} must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.queries and max(self.queries) >= self.num_queries:
            raise ValueError(f"queries {self.queries} are not rows 0..{self.num_queries - 1} of the query table")

    @property
    def layout(self) -> SpeechLayout:
        """What the rest of the house must know of this encoder."""
        return SpeechLayout(self.queries, self.features)


@functools.cache
def position_table(rows: int, depth: int, dtype: str) -> np.ndarray:
    """Sinusoids [rows, depth] float32, sines in the first half; row r is position r + 1.

    With "bfloat16" each elementary operation is rounded to bfloat16 (released deployment, bit for bit). Made
    in numpy because a compiler may keep more precision than asked for.
    """

    def rounded(x: npt.ArrayLike) -> np.ndarray:
        return (
            np.asarray(x, np.float32)
            .astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
            .astype(np.float32)
        )

    step = rounded(rounded(np.log(rounded(np.float32(10000.0)))) / np.float32(depth // 2 - 1))
    exponents = rounded(rounded(np.arange(depth // 2)) * -step)
    # numpy's float32 exp is an ulp off in places, which the largest positions multiply.
    inverse_timescales = rounded(np.exp(exponents.astype(np.float64)) if dtype == "float32" else np.exp(exponents))
    angles = rounded(rounded(np.arange(1, rows + 1))[:, None] * inverse_timescales)
    return np.concatenate([rounded(np.sin(angles)), rounded(np.cos(angles))], axis=1)


def _norm(dtype: str, name: str | None = None) -> nn.LayerNorm:
    return nn.LayerNorm(
        epsilon=1e-5,
        dtype=dtype,
        use_fast_variance=False,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, (axes.NORM,)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, (axes.NORM,)),
        name=name,
    )


def _neighbours(segment_ids: jax.Array, kernel: int) -> jax.Array:
    """bool [kernel, B, T]: whether frame t + j - (kernel - 1) // 2 exists and is of frame t's utterance."""
    left = (kernel - 1) // 2
    length = segment_ids.shape[1]
    padded = jnp.pad(segment_ids, ((0, 0), (left, kernel - 1 - left)))
    shifted = jnp.stack([padded[:, j : j + length] for j in range(kernel)])
    return (shifted == segment_ids[None]) & (segment_ids > 0)[None]


class Fsmn(nn.Module):
    """Feed-forward sequential memory: depthwise convolution over an utterance, plus its input."""

    config: SpeechEncoderConfig

    @nn.compact
    def __call__(self, v: jax.Array, neighbours: jax.Array) -> jax.Array:
        """[B, T, D], [kernel, B, T] -> [B, T, D], zero on padding."""
        size, length = self.config.kernel, v.shape[1]
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), (axes.KERNEL, axes.CONV_IN, axes.CONV_OUT))
        kernel = jnp.asarray(self.param("kernel", init, (size, 1, v.shape[-1]), jnp.float32), v.dtype)
        left = (size - 1) // 2
        padded = jnp.pad(v, ((0, 0), (left, size - 1 - left), (0, 0)))
        weight = neighbours[..., None].astype(v.dtype)
        terms = [padded[:, j : j + length] * weight[j] * kernel[j][None] for j in range(size)]
        return functools.reduce(jnp.add, terms) + v * weight[left]


class SanmBlock(nn.Module):
    """Pre-norm block: attention + FSMN of the values, then a ReLU feed-forward."""

    config: SpeechEncoderConfig
    residual: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, query_ids: jax.Array, segment_ids: jax.Array, neighbours: jax.Array
    ) -> tuple[jax.Array, None]:
        """One block.

        Args:
            x: [B, T, in].
            query_ids: [B, T], the utterance each frame looks at.
            segment_ids: [B, T], the utterance each frame belongs to.
            neighbours: [kernel, B, T].

        Returns:
            ([B, T, D], None).
        """
        c = self.config
        head_dim = c.width // c.heads
        y = _norm(c.dtype, "attention_norm")(x)
        inward = (axes.EMBED, None, axes.HEADS, axes.HEAD_DIM)
        qkv = Linear((3, c.heads, head_dim), inward, dtype=c.dtype, name="qkv")(y)
        query, key, value = (qkv[:, :, i] for i in range(3))
        y = attention(query, key, value, query_ids, segment_ids, backend=c.attention)
        y = Linear((c.width,), (axes.HEADS, axes.HEAD_DIM, axes.EMBED), contract=2, dtype=c.dtype, name="out")(y)
        y += Fsmn(c, name="fsmn")(value.reshape(*value.shape[:2], c.width), neighbours)
        x = x + y if self.residual else y
        y = _norm(c.dtype, "ffn_norm")(x)
        y = nn.relu(Linear((c.ffn,), (axes.EMBED, axes.MLP), dtype=c.dtype, name="ffn_in")(y))
        y = constrain(y, axes.BATCH, axes.FRAMES, axes.ACT_MLP)
        x += Linear((c.width,), (axes.MLP, axes.EMBED), dtype=c.dtype, name="ffn_out")(y)
        return constrain(x, axes.BATCH, axes.FRAMES, axes.ACT_EMBED), None


class SpeechEncoder(nn.Module):
    """Features of packed utterances -> one vector for every query and every frame, [B, T, D]."""

    config: SpeechEncoderConfig

    def setup(self) -> None:
        c = self.config
        stack = functools.partial(
            nn.scan,
            SanmBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            metadata_params={nn.PARTITION_NAME: axes.LAYERS},
        )
        normal, zeros = nn.initializers.normal(1.0), nn.initializers.zeros
        self.query_table = self.param(
            "query_table",
            nn.with_logical_partitioning(normal, (axes.CODEBOOK, axes.EMBED)),
            (c.num_queries, c.features),
        )
        self.first_block = SanmBlock(c, residual=c.features == c.width)  # where the widths let it add
        self.blocks = stack(length=c.blocks - 1)(c) if c.blocks > 1 else None
        self.middle_norm = _norm(c.dtype)
        self.tp_blocks = stack(length=c.tp_blocks)(c) if c.tp_blocks else None
        self.final_norm = _norm(c.dtype)
        kernel_init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), (axes.EMBED, axes.VOCAB))
        self.ctc_kernel = self.param("ctc_kernel", kernel_init, (c.width, c.vocab_size))
        self.ctc_bias = self.param("ctc_bias", nn.with_logical_partitioning(zeros, (axes.VOCAB,)), (c.vocab_size,))

    def __call__(self, frames: SpeechFrames) -> jax.Array:
        """Encodes a buffer.

        Args:
            frames: packed utterances; `positions` up to `max_positions` (NaN beyond: never unseen).

        Returns:
            [B, T, D] in the compute dtype; padding holds finite values of no meaning.
        """
        c = self.config
        present = frames.segment_ids > 0
        queries = jnp.take(jnp.asarray(self.query_table, c.dtype), jnp.maximum(frames.queries, 0), axis=0)
        x = jnp.where((frames.queries >= 0)[..., None], queries, frames.features.astype(c.dtype))
        positions = jnp.asarray(position_table(c.max_positions, c.features, c.position_table), c.dtype)
        encoding = jnp.take(positions, jnp.maximum(frames.positions, 1) - 1, axis=0, mode="fill")
        x = x * c.width**0.5 + encoding
        query_ids = frames.segment_ids
        if c.padding == "released":
            query_ids = jnp.where(present, query_ids, query_ids.max(axis=1, keepdims=True))
        else:
            x = jnp.where(present[..., None], x, 0)
        within = (query_ids, frames.segment_ids, _neighbours(frames.segment_ids, c.kernel))
        x, _ = self.first_block(x, *within)
        if self.blocks is not None:
            x, _ = self.blocks(x, *within)
        x = self.middle_norm(x)
        if self.tp_blocks is not None:
            x, _ = self.tp_blocks(x, *within)
        return self.final_norm(x)

    def ctc_logits(self, hidden: jax.Array) -> jax.Array:
        """Output vectors [B, T, D] -> CTC class logits [B, T, vocab_size] float32."""
        kernel = jnp.asarray(self.ctc_kernel, self.config.dtype)
        logits = jnp.einsum("btd,dv->btv", hidden, kernel, preferred_element_type=jnp.float32)
        return logits + jnp.asarray(self.ctc_bias).reshape(1, 1, -1)
