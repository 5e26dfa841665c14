"""Dream-7B (released `DreamModel`, Qwen2.5 names) <-> `Backbone`."""

from omnidiff_jax.conversion.rules import Rule
from omnidiff_jax.models.backbone import BackboneConfig


def rules(config: BackboneConfig) -> tuple[Rule, ...]:
    """The table for a backbone of this size; head counts are read from it."""
    layer, target = "model.layers.{n}", "layers"
    table = [Rule("model.embed_tokens.weight", "embedding")]
    for name, ours, heads in (
        ("q_proj", "query", config.heads),
        ("k_proj", "key", config.kv_heads),
        ("v_proj", "value", config.kv_heads),
    ):
        table += [
            Rule(f"{layer}.self_attn.{name}.weight", f"{target}/attention/{ours}/kernel", f"heads_out:{heads}"),
            Rule(f"{layer}.self_attn.{name}.bias", f"{target}/attention/{ours}/bias", f"heads:{heads}"),
        ]
    table += [Rule(f"{layer}.self_attn.o_proj.weight", f"{target}/attention/out/kernel", f"heads_in:{config.heads}")]
    table += [
        Rule(f"{layer}.mlp.{name}_proj.weight", f"{target}/mlp/{name}/kernel", "linear")
        for name in ("gate", "up", "down")
    ]
    return (
        *table,
        Rule(f"{layer}.input_layernorm.weight", f"{target}/attention_norm/scale"),
        Rule(f"{layer}.post_attention_layernorm.weight", f"{target}/mlp_norm/scale"),
        Rule("model.norm.weight", "norm/scale"),
        Rule("lm_head.weight", "head", "linear"),
    )
