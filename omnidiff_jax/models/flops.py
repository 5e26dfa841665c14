"""How many floating-point operations training takes, counted from the sizes: the one count behind every MFU.

A multiply-add is two operations; the backward pass costs twice the forward one. Counted are the matrices of every
layer, the head at every position, and attention between all pairs of positions of a row ("full attention": packing and
unmasked positions, which this code skips, make the hardware do less than is counted). Not counted: what
rematerialisation does again, embeddings, norms, softmax, the frozen speech encoder, the optimizer.
"""

import jax

from omnidiff_jax.models.backbone import BackboneConfig

COUNT = "3 passes x 2 x (layer and head matrices + full attention over the row); no rematerialisation"

# Dense bfloat16 FLOP/s of a chip by `Device.device_kind`, from the vendors' data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA H200": 989.5e12,
    "NVIDIA B200": 2250e12,
}


def matrix_parameters(config: BackboneConfig) -> int:
    """Parameters that every token is multiplied with: projections, feed-forward, head; no embedding, bias or norm."""
    attention = config.width * config.head_dim * 2 * (config.heads + config.kv_heads)
    layer = attention + 3 * config.width * config.hidden
    return config.layers * layer + config.width * config.vocab_size


def kept_projections(config: BackboneConfig, ways: int = 1) -> float:
    """Values a token that remat = "dots" keeps of all layers for the backward pass, on a device.

    Args:
        ways: of tensor parallelism. It splits heads and hidden width, not what attention adds to the residual stream.
            The last projection of a layer is needed by nothing.
    """
    split = config.head_dim * (config.heads + 2 * config.kv_heads) + 2 * config.hidden
    return config.layers * (split / ways + config.width)


def forward_flops(config: BackboneConfig, tokens: int, length: int) -> float:
    """Operations of one forward pass over `tokens` positions in rows of `length`."""
    attention = 4 * length * config.heads * config.head_dim * config.layers
    return float(tokens) * (2 * matrix_parameters(config) + attention)


def train_flops(config: BackboneConfig, tokens: int, length: int) -> float:
    """Operations of one training step over `tokens` positions in rows of `length`, counted as `COUNT` says."""
    return 3 * forward_flops(config, tokens, length)


def peak_flops(device: jax.Device) -> float | None:
    """The data sheet's dense bfloat16 FLOP/s of a device; None where unknown (CPUs)."""
    return PEAK_FLOPS.get(device.device_kind)
