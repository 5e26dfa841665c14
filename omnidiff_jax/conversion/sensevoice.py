"""SenseVoiceSmall (released `model.pt`, or a prefix of the Omni-Diffusion checkpoint) <-> `SpeechEncoder`."""

from omnidiff_jax.conversion.rules import Rule
from omnidiff_jax.models.sanm import SpeechEncoderConfig


def rules(config: SpeechEncoderConfig, prefix: str = "") -> tuple[Rule, ...]:
    """The table for an encoder of this size.

    Args:
        config: sizes; head counts and the presence of each stack are read from it.
        prefix: what stands before every torch name, e.g. "model.audio_model.model.".
    """
    stacks = [("encoders0.0", "first_block")]
    if config.blocks > 1:
        stacks.append(("encoders.{n}", "blocks"))
    if config.tp_blocks:
        stacks.append(("tp_encoders.{n}", "tp_blocks"))
    table = [rule for source, target in stacks for rule in _block(f"encoder.{source}", target, config.heads)]
    table += _norm("encoder.after_norm", "middle_norm") + _norm("encoder.tp_norm", "final_norm")
    table += [
        Rule("embed.weight", "query_table"),
        Rule("ctc.ctc_lo.weight", "ctc_kernel", "linear"),
        Rule("ctc.ctc_lo.bias", "ctc_bias"),
    ]
    return tuple(Rule(prefix + rule.source, rule.target, rule.transform) for rule in table)


def _block(source: str, target: str, heads: int) -> list[Rule]:
    return [
        *_norm(f"{source}.norm1", f"{target}/attention_norm"),
        Rule(f"{source}.self_attn.linear_q_k_v.weight", f"{target}/qkv/kernel", f"heads_out:3,{heads}"),
        Rule(f"{source}.self_attn.linear_q_k_v.bias", f"{target}/qkv/bias", f"heads:3,{heads}"),
        Rule(f"{source}.self_attn.linear_out.weight", f"{target}/out/kernel", f"heads_in:{heads}"),
        Rule(f"{source}.self_attn.linear_out.bias", f"{target}/out/bias"),
        Rule(f"{source}.self_attn.fsmn_block.weight", f"{target}/fsmn/kernel", "conv1d"),
        *_norm(f"{source}.norm2", f"{target}/ffn_norm"),
        Rule(f"{source}.feed_forward.w_1.weight", f"{target}/ffn_in/kernel", "linear"),
        Rule(f"{source}.feed_forward.w_1.bias", f"{target}/ffn_in/bias"),
        Rule(f"{source}.feed_forward.w_2.weight", f"{target}/ffn_out/kernel", "linear"),
        Rule(f"{source}.feed_forward.w_2.bias", f"{target}/ffn_out/bias"),
    ]


def _norm(source: str, target: str) -> list[Rule]:
    return [Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")]
