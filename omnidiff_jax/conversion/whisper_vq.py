"""glm-4-voice-tokenizer (`WhisperVQEncoder`) <-> `models/whisper_vq.py`.

The released file may carry the buffers of its codebook's moving average. They are kept beside the parameters, as
`ema_count` [K] and `ema_weight` [K, D], so that nothing is lost on the way back; the model does not read them.
"""

from omnidiff_jax.conversion.rules import Rule
from omnidiff_jax.models.whisper_vq import WhisperVQConfig


def rules(config: WhisperVQConfig) -> tuple[Rule, ...]:
    """The table for an encoder of this size."""
    table = [
        Rule("conv1.weight", "conv1/kernel", "conv1d"),
        Rule("conv1.bias", "conv1/bias"),
        Rule("conv2.weight", "conv2/kernel", "conv1d"),
        Rule("conv2.bias", "conv2/bias"),
        Rule("embed_positions.weight", "positions"),
        Rule("codebook.weight", "codebook"),
        Rule("embed_positions2.weight", "code_positions"),
        Rule("ema_count", "ema_count", optional=True),
        Rule("ema_weight", "ema_weight", optional=True),
    ]
    for first, end in config.stacks:
        table += _layer(f"layers.{{n:{first}:{end}}}", f"layers_{first}", config.heads)
    if config.final_norm:
        table += _norm("layer_norm", "final_norm")
    return tuple(table)


def _layer(source: str, target: str, heads: int) -> list[Rule]:
    table = [
        *_norm(f"{source}.self_attn_layer_norm", f"{target}/attention_norm"),
        *_norm(f"{source}.final_layer_norm", f"{target}/ffn_norm"),
        Rule(f"{source}.self_attn.k_proj.weight", f"{target}/key/kernel", f"heads_out:{heads}"),
        Rule(f"{source}.self_attn.out_proj.weight", f"{target}/out/kernel", f"heads_in:{heads}"),
        Rule(f"{source}.self_attn.out_proj.bias", f"{target}/out/bias"),
    ]
    for short, name in (("q", "query"), ("v", "value")):
        table += [
            Rule(f"{source}.self_attn.{short}_proj.weight", f"{target}/{name}/kernel", f"heads_out:{heads}"),
            Rule(f"{source}.self_attn.{short}_proj.bias", f"{target}/{name}/bias", f"heads:{heads}"),
        ]
    for torch_name, name in (("fc1", "ffn_in"), ("fc2", "ffn_out")):
        table += [
            Rule(f"{source}.{torch_name}.weight", f"{target}/{name}/kernel", "linear"),
            Rule(f"{source}.{torch_name}.bias", f"{target}/{name}/bias"),
        ]
    return table


def _norm(source: str, target: str) -> list[Rule]:
    return [Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")]
