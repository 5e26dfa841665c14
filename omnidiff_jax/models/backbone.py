"""The transformer of Dream / Qwen2.5: bidirectional, grouped-query, RoPE, SwiGLU, RMSNorm, QKV bias, untied head.

Parameters are stacked over layers whether or not the layer loop is rolled, so that a checkpoint serves both.
Hidden state i predicts token i + 1 (`diffusion/alignment.py`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from omnidiff_jax.config import Count, Natural, NonNegative, Positive, choose, free, suggest
from omnidiff_jax.models.attention import BACKENDS, MASKS, Sight, attend
from omnidiff_jax.models.kept import Kept, Window, most_turned, places_of, put, take
from omnidiff_jax.models.linear import Linear
from omnidiff_jax.models.quantized import columns, look_up
from omnidiff_jax.models.rope import apply_rope, rope_tables
from omnidiff_jax.sharding import axes
from omnidiff_jax.sharding.axes import constrain

DTYPES = ("float32", "bfloat16", "float16")
# What a layer keeps for its backward pass; None keeps everything.
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names("attention"),
    # Between forward and backward pass a layer's input waits in the host's memory.
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["layer_input"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """Sizes and settings; the defaults are Dream-7B with Omni-Diffusion's vocabulary.

    Attributes:
        vocab_size: V.
        width: D.
        layers: N.
        heads: H.
        kv_heads: K, a divisor of H.
        head_dim: width of a head, even.
        hidden: F of the feed-forward.
        norm_epsilon: added to the mean square in RMSNorm.
        rope_theta: RoPE base.
        init_stddev: standard deviation of the initial weight matrices that have no other.
        embed_stddev: that of the embedding table. A small model learns much faster when its tokens are louder than what
            the untrained layers add to them: near 1, with a small `residual_stddev`.
        residual_stddev: that of the two matrices a layer adds to the residual stream through.
        dtype: of activations and matmuls; parameters, norms and softmax are float32.
        attention: a name in `attention.BACKENDS`.
        remat: a name in `REMAT_POLICIES`.
        scan_layers: roll the layer loop (small program) or unroll it (no weight copies: docs/performance.md).
        padding_idx: released quirk: this token's embedding row never receives a gradient (torch's `padding_idx`).
        padding_visible: released quirk: padding belongs, as keys only, to the row's last sample.
        attention_mask: "full", or "prefix": the condition (in training whatever is no target, in sampling what stands
            before the answer) sees only itself, so that its keys and values do not depend on the answer.
    """

    vocab_size: Count = free(176264)
    width: Count = 3584
    layers: Count = 28
    heads: Count = 28
    kv_heads: Count = 4
    head_dim: Count = 128
    hidden: Count = 18944
    norm_epsilon: Positive = 1e-6
    rope_theta: Positive = 1e6
    init_stddev: NonNegative = 0.02
    embed_stddev: NonNegative = 0.02
    residual_stddev: NonNegative = 0.02
    dtype: str = free("bfloat16")
    attention: str = free("xla")
    remat: str = free("full")
    scan_layers: bool = free(True)
    padding_idx: Natural | None = None
    padding_visible: bool = False
    attention_mask: str = "full"

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype = {self.dtype!r}; {suggest(self.dtype, DTYPES)}")
        choose(BACKENDS, self.attention, "attention backend")
        choose(REMAT_POLICIES, self.remat, "remat policy")
        if self.attention_mask not in MASKS:
            raise ValueError(f"attention_mask = {self.attention_mask!r}; {suggest(self.attention_mask, MASKS)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads = {self.heads} must be a multiple of kv_heads = {self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim} must be even for RoPE")


def layers_apart(params: Any, config: BackboneConfig) -> Any:
    """Parameters of a model for a loop that runs it many times: tuples of N arrays for those stacked over the layers.

    In such a loop XLA copies the slice of every layer at each turn on CPUs (a sixth of the time of 300 positions, width
    512). Elsewhere, and where the layer loop is rolled, `params` as they are. `sampling.module_denoiser` takes both.
    """
    if config.scan_layers or jax.default_backend() != "cpu":
        return params
    backbone = params["backbone"]
    layers = jax.tree.map(lambda x: tuple(x[layer] for layer in range(config.layers)), backbone["layers"])
    return {**params, "backbone": {**backbone, "layers": layers}}


class RMSNorm(nn.Module):
    """Divides by the root mean square, in float32, then scales."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, (axes.NORM,)), x.shape[-1:])
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        return (y * jnp.broadcast_to(scale, y.shape)).astype(x.dtype)


def _linear(
    config: BackboneConfig,
    name: str,
    outputs: tuple[int, ...],
    names: tuple[str, ...],
    stddev: float,
    contract: int = 1,
    bias: bool = False,
) -> Linear:
    init = nn.initializers.normal(stddev)
    return Linear(outputs, names, contract, use_bias=bias, dtype=config.dtype, kernel_init=init, name=name)


class Attention(nn.Module):
    """Grouped-query self-attention with RoPE; biases on query, key and value only."""

    config: BackboneConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        sight: Sight,
        past: Kept | None = None,
        window: Window | None = None,
    ) -> tuple[jax.Array, Kept, jax.Array | None]:
        """What is added to the residual stream, the layer's keys and values, and which of `x` were computed.

        The last is int32 [B, k], members of the window, or None where all were.
        """
        c = self.config

        def project(name: str, heads: int, axis: str) -> jax.Array:
            names = (axes.EMBED, axis, axes.HEAD_DIM)
            return _linear(c, name, (heads, c.head_dim), names, c.init_stddev, bias=True)(x)

        value = project("value", c.kv_heads, axes.KV_HEADS)
        chosen, places = None, None if window is None else window.places
        if past is not None and window is not None and window.share is not None:
            chosen = most_turned(window, value, past.value)
            x, value, cos, sin = (take(a, chosen) for a in (x, value, *rope))
            rope, sight = (cos, sin), sight.of(chosen)
            places = places_of(window, chosen, past.key.shape[1])
        query = apply_rope(project("query", c.heads, axes.HEADS), *rope)
        key = apply_rope(project("key", c.kv_heads, axes.KV_HEADS), *rope)
        if past is not None and window is not None and places is not None:
            key, value = window.joined(past.key, places, key), window.joined(past.value, places, value)
        query = constrain(query, axes.BATCH, axes.LENGTH, axes.ACT_HEADS, axes.HEAD_DIM)
        key = constrain(key, axes.BATCH, axes.KV_LENGTH, axes.ACT_KV_HEADS, axes.HEAD_DIM)
        value = constrain(value, axes.BATCH, axes.KV_LENGTH, axes.ACT_KV_HEADS, axes.HEAD_DIM)
        y = attend(query, key, value, sight, backend=c.attention)
        y = checkpoint_name(y, "attention")
        names = (axes.HEADS, axes.HEAD_DIM, axes.EMBED)
        y = _linear(c, "out", (c.width,), names, c.residual_stddev, contract=2)(y)
        return y, Kept(key, value), chosen


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    config: BackboneConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        gate = _linear(c, "gate", (c.hidden,), (axes.EMBED, axes.MLP), c.init_stddev)(x)
        up = _linear(c, "up", (c.hidden,), (axes.EMBED, axes.MLP), c.init_stddev)(x)
        y = constrain(nn.silu(gate) * up, axes.BATCH, axes.LENGTH, axes.ACT_MLP)
        return _linear(c, "down", (c.width,), (axes.MLP, axes.EMBED), c.residual_stddev)(y)


class Block(nn.Module):
    """Pre-norm layer, in the (carry, output) form of `nn.scan`; its output is what a window asks to be kept."""

    config: BackboneConfig

    @nn.compact
    def __call__(self, x, rope, sight, past=None, window=None):
        c = self.config
        x = checkpoint_name(x, "layer_input")
        self.sow("intermediates", "input", x)
        y = RMSNorm(c.norm_epsilon, name="attention_norm")(x)
        added, kept, chosen = Attention(c, name="attention")(y, rope, sight, past, window)
        if chosen is not None:
            places = places_of(window, chosen, past.attention.shape[1])
            kept = kept.replace(attention=put(past.attention, places, added))
            added = window.take(kept.attention)
        elif window is not None and window.share is not None:
            kept = kept.replace(attention=added)
        x += added
        x = constrain(x, axes.BATCH, axes.LENGTH, axes.ACT_EMBED)
        y = RMSNorm(c.norm_epsilon, name="mlp_norm")(x)
        added = FeedForward(c, name="mlp")(y if chosen is None else take(y, chosen))
        if chosen is not None:
            kept = kept.replace(mlp=put(past.mlp, places, added))
            added = window.take(kept.mlp)
        elif window is not None and window.share is not None:
            kept = kept.replace(mlp=added)
        x += added
        x = constrain(x, axes.BATCH, axes.LENGTH, axes.ACT_EMBED)
        return x, None if window is None or not window.keeps else kept


class Backbone(nn.Module):
    """Embedding table, N layers, final norm and head. See the module docstring."""

    config: BackboneConfig

    def setup(self):
        c = self.config
        normal = nn.initializers.normal
        self.embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(normal(c.embed_stddev), (axes.VOCAB, axes.EMBED)),
            (c.vocab_size, c.width),
        )
        block = Block
        policy = REMAT_POLICIES[c.remat]
        if policy is not None:
            block = nn.remat(Block, policy=policy, prevent_cse=not c.scan_layers)
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, 0, nn.broadcast),
            length=c.layers,
            unroll=1 if c.scan_layers else c.layers,
            metadata_params={nn.PARTITION_NAME: axes.LAYERS},
        )(c)
        self.norm = RMSNorm(c.norm_epsilon)
        self.head = self.param(
            "head",
            nn.with_logical_partitioning(normal(c.init_stddev), (axes.EMBED, axes.VOCAB)),
            (c.width, c.vocab_size),
        )

    def __call__(
        self,
        inputs_embeds: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        given: jax.Array | None = None,
    ) -> jax.Array:
        """Hidden states after the final norm.

        Args:
            inputs_embeds: [B, L, D], from `embed` (or what replaces its rows).
            positions: int32 [B, L], RoPE positions.
            segment_ids: int32 [B, L], 0 = padding; positions see their own segment only.
            given: bool [B, L], the condition; read only where `attention_mask` is "prefix".

        Returns:
            [B, L, D] in the compute dtype.

        Raises:
            ValueError: `attention_mask` is "prefix" and nobody says what is given.
        """
        return self._run(inputs_embeds, positions, segment_ids, given)[0]

    def keep(
        self,
        inputs_embeds: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        given: jax.Array | None = None,
        share: float | None = None,
    ) -> tuple[jax.Array, Kept]:
        """As `__call__`, and what `renew` takes up, of all layers; `share` is the one it will be told."""
        return self._run(inputs_embeds, positions, segment_ids, given, window=Window(share=share))

    def renew(
        self,
        inputs_embeds: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        given: jax.Array | None,
        kept: Kept,
        places: jax.Array,
        share: float | None = None,
    ) -> tuple[jax.Array, Kept | None]:
        """Hidden states of some positions, those of all others staying as they were kept.

        Args:
            inputs_embeds: [B, C, D], of `places`.
            positions, segment_ids, given: of the whole rows, as in `__call__`.
            kept: from `keep` or `renew`, [N, B, L, ...].
            places, share: of a `Window`.

        Returns:
            [B, C, D], and with a share what is kept now, else None: `kept` serves on.
        """
        return self._run(inputs_embeds, positions, segment_ids, given, kept, Window(places, share))

    def shadow(
        self,
        inputs_embeds: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        kept: Kept,
        places: jax.Array,
        hidden: jax.Array,
    ) -> jax.Array:
        """Hidden states of what stands beside a row, at positions that the row holds too.

        Each sees the row but for one position, and all that stands beside the row with it; the row sees none of it
        (the shadow block of WINO, arXiv 2507.18578).

        Args:
            inputs_embeds: [B, C, D].
            positions, segment_ids: of the whole rows, as in `__call__`.
            kept: from `keep`, [N, B, L, ...].
            places: int32 [B, C], whose position each has; L or more stands for none, which is not seen either.
            hidden: int32 [B, C], the position of the row that each does not see.

        Returns:
            [B, C, D].
        """
        length = segment_ids.shape[1]
        own = jnp.where(places < length, take(segment_ids, places), 0)
        segments = jnp.concatenate([self._key_segments(segment_ids), own], axis=1)
        visible = (own[:, :, None] == segments[:, None, :]) & (own > 0)[:, :, None]
        columns = jnp.pad(jnp.arange(length, dtype=jnp.int32), (0, own.shape[1]), constant_values=-1)
        visible &= hidden[:, :, None] != columns[None, None, :]
        return self._run(inputs_embeds, positions, segment_ids, None, kept, Window(places, beside=True), visible)[0]

    def _run(
        self,
        inputs_embeds: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        given: jax.Array | None,
        kept: Kept | None = None,
        window: Window | None = None,
        visible: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        c = self.config
        x = constrain(inputs_embeds.astype(c.dtype), axes.BATCH, axes.LENGTH, axes.ACT_EMBED)
        if c.attention_mask == "full" or visible is not None:
            given = None
        elif given is None:
            raise ValueError("attention_mask = 'prefix' needs to know which positions are given: ModelInputs.given")
        sight = Sight(segment_ids, self._key_segments(segment_ids), given, given)
        if kept is not None and window is not None:
            positions, sight = window.take(positions), sight.of(window.places)._replace(visible=visible)
        rope = rope_tables(positions, c.head_dim, c.rope_theta)
        x, kept = self.layers(x, rope, sight, kept, window)
        return self.norm(x), kept

    def _key_segments(self, segment_ids: jax.Array) -> jax.Array:
        # The last sample's id, carried into the padding after it.
        return jax.lax.cummax(segment_ids, axis=1) if self.config.padding_visible else segment_ids

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Embedding rows [..., D] of ids [...], in the compute dtype."""
        x = look_up(self.embedding, tokens, self.config.dtype)
        if self.config.padding_idx is not None:
            x = jnp.where((tokens == self.config.padding_idx)[..., None], jax.lax.stop_gradient(x), x)
        x = x.astype(self.config.dtype)
        if tokens.ndim == 2:
            # Back from batch to table by way of the looked-up rows: few bytes beside a whole table's gradient.
            x = constrain(x, axes.TABLE_BATCH, axes.LENGTH, axes.TABLE_EMBED)
            x = constrain(x, axes.BATCH, axes.LENGTH, axes.ACT_EMBED)
        return x

    def logits(self, hidden: jax.Array, start: int = 0, stop: int | None = None) -> jax.Array:
        """float32 [..., V] from hidden states [..., D], or those of the ids start .. stop - 1 alone."""
        return columns(self.head, hidden, start, stop)
