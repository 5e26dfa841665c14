"""The released flow decoder (`flow.pt` of GLM-4-Voice) <-> `FlowDecoder` parameters."""

from __future__ import annotations

from omnidiff_jax.conversion.rules import Rule
from omnidiff_jax.models.flow import FlowConfig


def rules(config: FlowConfig) -> tuple[Rule, ...]:
    """The table for a size of the decoder."""
    return (
        Rule("input_embedding.weight", "embedding/embedding"),
        *_linear("spk_embed_affine_layer", "speaker_projection"),
        *_linear("encoder.embed.out.0", "encoder/input"),
        *_norm("encoder.embed.out.1", "encoder/input_norm"),
        *_encoder_layers("encoder.encoders.{n}", "encoder/layers"),
        *_norm("encoder.after_norm", "encoder/output_norm"),
        *_linear("encoder_proj", "projection"),
        *_regulator("length_regulator.model", "regulator", config.regulator_layers),
        *_estimator("decoder.estimator", "estimator", config),
    )


def _linear(source: str, target: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{source}.weight", f"{target}/kernel", "linear"),
        Rule(f"{source}.bias", f"{target}/bias"),
    )


def _conv(source: str, target: str, transform: str = "conv1d") -> tuple[Rule, ...]:
    return (
        Rule(f"{source}.weight", f"{target}/kernel", transform),
        Rule(f"{source}.bias", f"{target}/bias"),
    )


def _norm(source: str, target: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{source}.weight", f"{target}/scale"),
        Rule(f"{source}.bias", f"{target}/bias"),
    )


def _encoder_layers(source: str, target: str) -> tuple[Rule, ...]:
    attention = f"{source}.self_attn"
    projections = {"linear_q": "query", "linear_k": "key", "linear_v": "value", "linear_out": "out"}
    return (
        Rule(f"{attention}.pos_bias_u", f"{target}/attention/content_bias"),
        Rule(f"{attention}.pos_bias_v", f"{target}/attention/position_bias"),
        Rule(f"{attention}.linear_pos.weight", f"{target}/attention/position/kernel", "linear"),
        *(rule for a, b in projections.items() for rule in _linear(f"{attention}.{a}", f"{target}/attention/{b}")),
        *_linear(f"{source}.feed_forward.w_1", f"{target}/up"),
        *_linear(f"{source}.feed_forward.w_2", f"{target}/down"),
        *_norm(f"{source}.norm_mha", f"{target}/attention_norm"),
        *_norm(f"{source}.norm_ff", f"{target}/mlp_norm"),
    )


def _regulator(source: str, target: str, layers: int) -> tuple[Rule, ...]:
    # The torch module is one flat sequence: convolution, norm, activation, three numbers a layer.
    blocks = (
        rule
        for n in range(layers)
        for rule in (
            *_conv(f"{source}.{3 * n}", f"{target}/conv_{n}"),
            *_norm(f"{source}.{3 * n + 1}", f"{target}/norm_{n}"),
        )
    )
    return (*blocks, *_conv(f"{source}.{3 * layers}", f"{target}/out"))


def _stage(source: str, target: str, transformers: int) -> tuple[Rule, ...]:
    residual, block, to = f"{source}.0", f"{source}.1.{{t}}", f"{target}/transformers"
    attention = {"to_q": "query", "to_k": "key", "to_v": "value"}
    table = (
        *_linear(f"{residual}.mlp.1", f"{target}/residual/time"),
        *_conv(f"{residual}.block1.block.0", f"{target}/residual/block_0/conv"),
        *_norm(f"{residual}.block1.block.1", f"{target}/residual/block_0/norm"),
        *_conv(f"{residual}.block2.block.0", f"{target}/residual/block_1/conv"),
        *_norm(f"{residual}.block2.block.1", f"{target}/residual/block_1/norm"),
        *_conv(f"{residual}.res_conv", f"{target}/residual/shortcut"),
    )
    if not transformers:
        return table
    return (
        *table,
        *_norm(f"{block}.norm1", f"{to}/attention_norm"),
        *(Rule(f"{block}.attn1.{a}.weight", f"{to}/{b}/kernel", "linear") for a, b in attention.items()),
        *_linear(f"{block}.attn1.to_out.0", f"{to}/out"),
        *_norm(f"{block}.norm3", f"{to}/mlp_norm"),
        *_linear(f"{block}.ff.net.0.proj", f"{to}/up"),
        *_linear(f"{block}.ff.net.2", f"{to}/down"),
    )


def _estimator(source: str, target: str, config: FlowConfig) -> tuple[Rule, ...]:
    levels, transformers = len(config.estimator.channels), config.estimator.transformers
    table = [
        *_linear(f"{source}.time_mlp.linear_1", f"{target}/time_0"),
        *_linear(f"{source}.time_mlp.linear_2", f"{target}/time_1"),
        *_conv(f"{source}.final_block.block.0", f"{target}/final/conv"),
        *_norm(f"{source}.final_block.block.1", f"{target}/final/norm"),
        *_conv(f"{source}.final_proj", f"{target}/out"),
    ]
    for n in range(levels):
        last = n == levels - 1
        # A resampling convolution sits in a module of its own; the convolution of the last level stands bare.
        resampler = "2" if last else "2.conv"
        table += _stage(f"{source}.down_blocks.{n}", f"{target}/down_{n}", transformers)
        table += _conv(f"{source}.down_blocks.{n}.{resampler}", f"{target}/down_conv_{n}")
        table += _stage(f"{source}.up_blocks.{n}", f"{target}/up_{n}", transformers)
        transform = "conv1d" if last else "conv_transpose1d"
        table += _conv(f"{source}.up_blocks.{n}.{resampler}", f"{target}/up_conv_{n}", transform)
    if config.estimator.mid_blocks:
        table += _stage(f"{source}.mid_blocks.{{m}}", f"{target}/middle", transformers)
    return tuple(table)
