"""MAGVIT-v2 image tokenizer: showlab/magvitv2 state dict <-> `models.magvit.Magvit`."""

import numpy as np

from omnidiff_jax.conversion.rules import DROPPED, Rule

BUFFERS = ("quantize.embedding", "quantize.power_vals")
"""Constants of the released state dict, functions of the code width (`buffers`); the Flax module computes them."""


def _conv(source: str, target: str, optional: bool = False) -> tuple[Rule, ...]:
    return (
        Rule(f"{source}.weight", f"{target}/kernel", "conv2d", optional),
        Rule(f"{source}.bias", f"{target}/bias", optional=optional),
    )


def _norm(source: str, target: str, optional: bool = False) -> tuple[Rule, ...]:
    return (
        Rule(f"{source}.weight", f"{target}/scale", optional=optional),
        Rule(f"{source}.bias", f"{target}/bias", optional=optional),
    )


def _block(source: str, target: str) -> tuple[Rule, ...]:
    rules: tuple[Rule, ...] = ()
    for i in (1, 2):
        rules += _norm(f"{source}.norm{i}", f"{target}/norm{i}", True)
        rules += _conv(f"{source}.conv{i}", f"{target}/conv{i}", True)
    return rules + _conv(f"{source}.nin_shortcut", f"{target}/nin_shortcut", True)


def _tower(name: str, level: str, resample: str, code_conv: str) -> tuple[Rule, ...]:
    rules = _conv(f"{name}.conv_in", f"{name}/conv_in")
    rules += _block(f"{name}.{level}.{{n}}.block.{{m}}", f"{name}/{level}_{{n}}_block_{{m}}")
    rules += _conv(f"{name}.{level}.{{n}}.{resample}.conv", f"{name}/{level}_{{n}}_{resample}", True)
    for i in (1, 2):
        rules += _block(f"{name}.mid.block_{i}", f"{name}/mid/block_{i}")
    rules += _norm(f"{name}.mid.attn_1.norm", f"{name}/mid/attn_1/norm", True)
    for part in ("q", "k", "v", "proj_out"):
        rules += _conv(f"{name}.mid.attn_1.{part}", f"{name}/mid/attn_1/{part}", True)
    rules += _norm(f"{name}.norm_out", f"{name}/norm_out") + _conv(f"{name}.conv_out", f"{name}/conv_out")
    return rules + _conv(f"{name}.{code_conv}", f"{name}/{code_conv}")


RULES = (
    *_tower("encoder", "down", "downsample", "quant_conv"),
    *_tower("decoder", "up", "upsample", "post_quant_conv"),
    *(Rule(name, DROPPED, optional=True) for name in BUFFERS),
)


def buffers(code_bits: int) -> dict[str, np.ndarray]:
    """The released state dict's constant tensors: codebook entries ±1 [2**K, K] and bit weights [K], float32."""
    weights = 2 ** np.arange(code_bits - 1, -1, -1)
    signs = (np.arange(2**code_bits)[:, None] // weights) % 2 * 2.0 - 1.0
    return {BUFFERS[0]: signs.astype(np.float32), BUFFERS[1]: weights.astype(np.float32)}
