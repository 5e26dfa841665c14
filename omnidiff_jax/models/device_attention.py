"""Attention kernels of particular devices: cuDNN on NVIDIA GPUs, splash on TPUs, and tokamax's choice of its own.

On accelerators none of them keeps whole score matrices.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import PartitionSpec

from omnidiff_jax.errors import UserError
from omnidiff_jax.sharding import axes

LANES = 128  # splash takes lengths that are multiples of this
BLOCK = 1024  # of queries and of keys; falls until it divides the length


def cudnn_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, query_segments: jax.Array | None, key_segments: jax.Array | None
) -> jax.Array:
    """cuDNN's fused attention with the segments as a mask of one head; arguments as in `attention.attention`.

    Raises:
        UserError: devices that are no GPUs, or a dtype that cuDNN does not take.
    """
    if (platform := axes.platform()) not in ("gpu", "cuda"):
        raise UserError(f"attention backend 'cudnn' runs on NVIDIA GPUs, these devices are {platform}; use 'chunked'")
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        raise UserError(f"attention backend 'cudnn' computes in bfloat16, not {query.dtype}; set dtype = 'bfloat16'")
    return masked_attention(query, key, value, query_segments, key_segments, implementation="cudnn")


def masked_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segments: jax.Array | None,
    key_segments: jax.Array | None,
    *,
    implementation: Literal["xla", "cudnn"],
) -> jax.Array:
    """`jax.nn.dot_product_attention` within segments; 0 where a query sees no key."""
    if query_segments is None or key_segments is None:
        return jax.nn.dot_product_attention(query, key, value, implementation=implementation)
    visible = _visible(query_segments, key_segments)
    out = jax.nn.dot_product_attention(query, key, value, mask=visible[:, None], implementation=implementation)
    return _where_seen(visible, out)


def tokamax_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, query_segments: jax.Array | None, key_segments: jax.Array | None
) -> jax.Array:
    """The kernel that tokamax takes for the device (Mosaic or Triton on GPUs), with the segments as a mask of one head;
    its chunked XLA on CPUs. Arguments as in `attention.attention`.

    Raises:
        UserError: tokamax is not installed.
    """
    try:
        import tokamax
    except ImportError as error:
        raise UserError(
            "attention backend 'tokamax' needs its package: pip install 'omnidiff_jax[tokamax]', or use 'chunked'"
        ) from error
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # it would parse the command line of a program that has no absl flags
    implementation = "xla_chunked" if axes.platform() == "cpu" else None

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, sq: jax.Array, sk: jax.Array) -> jax.Array:
        visible = _visible(sq, sk)
        out = tokamax.dot_product_attention(q, k, v, mask=visible[:, None], implementation=implementation)
        return _where_seen(visible, out)

    return _on_each_device(attend, query, key, value, query_segments, key_segments)


def _visible(query_segments: jax.Array, key_segments: jax.Array) -> jax.Array:
    """[B, L], [B, S] -> [B, L, S]."""
    return (query_segments[:, :, None] == key_segments[:, None, :]) & (query_segments > 0)[:, :, None]


def _where_seen(visible: jax.Array, out: jax.Array) -> jax.Array:
    """`out` [B, L, H, hd], 0 where a query sees no key: kernels differ in what they put there."""
    return jnp.where(visible.any(-1)[:, :, None, None], out, jnp.zeros((), out.dtype))


def _on_each_device(
    attend: Callable[..., jax.Array],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segments: jax.Array | None,
    key_segments: jax.Array | None,
) -> jax.Array:
    """`attend` on the rows, heads and query positions that each device has; keys and values are whole along the length.

    The compiler does not split a kernel by itself. Without segments every position is of one.
    """
    if query_segments is None or key_segments is None:
        query_segments = jnp.ones(query.shape[:2], jnp.int32)
        key_segments = jnp.ones(key.shape[:2], jnp.int32)
    if jax.sharding.get_abstract_mesh().size > 1:
        rows, length = axes.split_over(axes.BATCH) or None, axes.split_over(axes.LENGTH) or None
        heads, kv_heads = axes.split_over(axes.ACT_HEADS) or None, axes.split_over(axes.ACT_KV_HEADS) or None
        q = PartitionSpec(rows, length, heads)
        kv = PartitionSpec(rows, None, kv_heads)
        specs = (q, kv, kv, PartitionSpec(rows, length), PartitionSpec(rows))
        attend = jax.shard_map(attend, in_specs=specs, out_specs=q, check_vma=False)
    return attend(query, key, value, query_segments, key_segments)


def splash_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, query_segments: jax.Array | None, key_segments: jax.Array | None
) -> jax.Array:
    """The TPU's block-sparse kernel with segment ids; interpreted (slowly) on a CPU. Arguments as in `attention`.

    Raises:
        UserError: devices that are neither.
    """
    if (platform := axes.platform()) not in ("tpu", "cpu"):
        raise UserError(f"attention backend 'splash' runs on TPUs, these devices are {platform}; use 'cudnn'")
    attend = functools.partial(_splash, interpret=platform == "cpu")
    return _on_each_device(attend, query, key, value, query_segments, key_segments)


def _splash(
    query: jax.Array, key: jax.Array, value: jax.Array, sq: jax.Array, sk: jax.Array, *, interpret: bool
) -> jax.Array:
    """One device's part: [B, L, H, hd], [B, S, K, hd], [B, L], [B, S] -> [B, L, H, hd]."""
    # Pallas is a tenth of the start of a program, and only this backend needs it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    length, width = query.shape[1], query.shape[3]
    query = query * jnp.asarray(width**-0.5, query.dtype)
    # Keys padded with segment -1, queries with 0, see and are seen by nothing real.
    q, sq_padded = _pad(query, 0), _pad(sq, 0)
    k, v, sk_padded = _pad(key, 0), _pad(value, 0), _pad(jnp.where(sk > 0, sk, -1), -1)
    kernel = _kernel(q.shape[2], q.shape[1], k.shape[1], interpret)

    def row(q: jax.Array, k: jax.Array, v: jax.Array, sq: jax.Array, sk: jax.Array) -> jax.Array:
        q, k, v = (x.transpose(1, 0, 2) for x in (q, k, v))
        out: Any = kernel(q, k, v, splash.SegmentIds(sq, sk))
        return out.transpose(1, 0, 2)

    out = jax.vmap(row)(q, k, v, sq_padded, sk_padded)[:, :length]
    # A query that sees no key has the mean of all values so far.
    return _where_seen(_visible(sq, sk), out)


def _kernel(heads: int, length: int, kv_length: int, interpret: bool) -> Any:
    """A `SplashAttentionKernel` for one device's heads and lengths."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    q, kv = _block(length), _block(kv_length)
    sizes = splash.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )
    mask = masks.MultiHeadMask([masks.FullMask((length, kv_length))] * heads)
    # Under the remat policy of this name the kernel's own residuals are kept, not only its output.
    return splash.make_splash_mha(
        mask,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention",
        interpret=interpret,
    )


def _block(length: int) -> int:
    block = BLOCK
    while length % block:
        block //= 2
    return block


def _pad(x: jax.Array, fill: int) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[1] = (0, -x.shape[1] % LANES)
    return jnp.pad(x, widths, constant_values=fill)
