"""The released HiFT vocoder (`hift.pt` of GLM-4-Voice) <-> `Hift` parameters.

Weight norm stays apart (`weight_g` -> scale, `weight_v` -> direction), so that the way back gives the same bits.
"""

from __future__ import annotations

from omnidiff_jax.conversion.rules import Rule
from omnidiff_jax.models.hift import HiftConfig


def rules(config: HiftConfig) -> tuple[Rule, ...]:
    """The table for a size of the vocoder."""
    table = [
        *_linear("m_source.l_linear", "source_mix"),
        *_linear("f0_predictor.classifier", "pitch/out"),
        *_normed("conv_pre", "conv_in"),
        *_normed("conv_post", "conv_out"),
    ]
    for n in range(config.pitch_layers):
        # Convolutions and activations alternate in the torch sequence.
        table += _normed(f"f0_predictor.condnet.{2 * n}", f"pitch/conv_{n}")
    blocks = len(config.resblock_kernels)
    for n in range(len(config.upsample_rates)):
        table += _normed(f"ups.{n}", f"up_{n}", "conv_transpose1d")
        table += (
            Rule(f"source_downs.{n}.weight", f"source_down_{n}/kernel", "conv1d"),
            Rule(f"source_downs.{n}.bias", f"source_down_{n}/bias"),
        )
        table += _block(f"source_resblocks.{n}", f"source_block_{n}")
        for i in range(blocks):
            table += _block(f"resblocks.{n * blocks + i}", f"resblock_{n}_{i}")
    return tuple(table)


def _linear(source: str, target: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{source}.weight", f"{target}/kernel", "linear"),
        Rule(f"{source}.bias", f"{target}/bias"),
    )


def _normed(source: str, target: str, transform: str = "conv1d") -> tuple[Rule, ...]:
    return (
        Rule(f"{source}.weight_g", f"{target}/scale", transform),
        Rule(f"{source}.weight_v", f"{target}/direction", transform),
        Rule(f"{source}.bias", f"{target}/bias"),
    )


def _block(source: str, target: str) -> tuple[Rule, ...]:
    return (
        *_normed(f"{source}.convs1.{{d}}", f"{target}/conv_a_{{d}}"),
        *_normed(f"{source}.convs2.{{d}}", f"{target}/conv_b_{{d}}"),
        Rule(f"{source}.activations1.{{d}}.alpha", f"{target}/snake_a_{{d}}/alpha"),
        Rule(f"{source}.activations2.{{d}}.alpha", f"{target}/snake_b_{{d}}/alpha"),
    )
