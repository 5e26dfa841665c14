"""Released configs (`config.json` of the hub) -> this project's dataclasses, and back where a checkpoint is written.

Only what changes numbers is read. What the released code can do and ours cannot is an error, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnidiff_jax.config import build
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.backbone import BackboneConfig
from omnidiff_jax.models.magvit import MagvitConfig
from omnidiff_jax.models.sanm import SpeechEncoderConfig
from omnidiff_jax.models.whisper_vq import WhisperVQConfig

BACKBONE_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "intermediate_size": "hidden",
    "rms_norm_eps": "norm_epsilon",
    "rope_theta": "rope_theta",
}

# What a config says of weights in eight bits, in the words of compressed-tensors.
EIGHT_BITS = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear", "Embedding"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
        }
    },
    "ignore": [],
}
_STRATEGIES = ("channel", "tensor")


def need(config: Mapping[str, Any], key: str, where: str = "config") -> Any:
    """`config[key]`.

    Raises:
        UserError: the key is missing.
    """
    if key not in config:
        raise UserError(f"{where} lacks the key {key!r}; the released config has it")
    return config[key]


def expect(config: Mapping[str, Any], key: str, supported: Any, where: str = "config") -> None:
    """Refuses a setting that this code does not implement; a key left out has the supported value."""
    if key in config and config[key] != supported:
        raise UserError(f"{where}: {key} = {config[key]!r} is not supported; only {supported!r} is")


def backbone(config: Mapping[str, Any], **others: Any) -> BackboneConfig:
    """A Dream or Qwen2 `config.json` -> `BackboneConfig`; `others` are further fields (dtype, remat, ...)."""
    config = rope_said_once(config)
    expect_backbone(config)
    fields = {ours: config[theirs] for theirs, ours in BACKBONE_KEYS.items() if theirs in config}
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        need(config, key)
    fields.setdefault("kv_heads", fields["heads"])
    sizes = build(BackboneConfig, fields, "config.json")
    fields["head_dim"] = config.get("head_dim") or sizes.width // sizes.heads
    return build(BackboneConfig, {**fields, **others}, "config.json")


def expect_backbone(config: Mapping[str, Any]) -> None:
    """Refuses what a Qwen2 config can ask for and `Backbone` does not do."""
    expect(config, "hidden_act", "silu")
    expect(config, "tie_word_embeddings", False)
    expect(config, "use_sliding_window", False)
    expect(config, "use_mrope", False)
    expect(config, "rope_scaling", None)
    expect(config, "partial_rotary_factor", 1.0)
    expect(config, "attention_bias", True)  # of query, key and value; Qwen2 always has it
    expect(config, "mlp_bias", False)


def rope_said_once(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with `rope_theta` where it was always; newer files of the hub say it within `rope_parameters`."""
    rope = config.get("rope_parameters")
    if not isinstance(rope, Mapping):
        return config
    expect(rope, "rope_type", "default", "rope_parameters")
    if "rope_theta" not in rope:
        return config
    expect(config, "rope_theta", rope["rope_theta"])
    return {**config, "rope_theta": rope["rope_theta"]}


def refuse_quantized(config: Mapping[str, Any]) -> None:
    """Refuses a checkpoint whose weights stand for other numbers, but for int8 with scales (`EIGHT_BITS`), which is
    read as the floats it stands for.

    Raises:
        UserError: the config says how they were quantized.
    """
    for key in ("quantization_config", "compression_config"):
        told = config.get(key)
        if told and not (isinstance(told, Mapping) and _is_eight_bits(told)):
            method = told.get("quant_method", "") if isinstance(told, Mapping) else str(told)
            form = f", {told['format']}" if isinstance(told, Mapping) and told.get("format") else ""
            raise UserError(
                f"config: {key} says that the weights are quantized ({method or 'no method named'}{form}); give a "
                "checkpoint in bfloat16, float16 or float32, or in int8 by compressed-tensors with a scale a channel"
            )


def _is_eight_bits(told: Mapping[str, Any]) -> bool:
    """Whether weights are int8 times a scale for each row or one for all; what activations are brought to is the
    reader's choice."""
    groups, sparsity = told.get("config_groups"), told.get("sparsity_config") or {}
    if told.get("quant_method") != EIGHT_BITS["quant_method"] or told.get("format") != EIGHT_BITS["format"]:
        return False
    if not isinstance(groups, Mapping) or not isinstance(sparsity, Mapping):
        return False
    if sparsity.get("format", "dense") != "dense":
        return False
    weights = [group.get("weights") if isinstance(group, Mapping) else None for group in groups.values()]
    return bool(weights) and all(
        isinstance(one, Mapping)
        and (one.get("num_bits"), one.get("type", "int"), one.get("symmetric", True)) == (8, "int", True)
        and one.get("strategy") in _STRATEGIES
        for one in weights
    )


def backbone_json(config: BackboneConfig) -> dict[str, Any]:
    """The inverse of `backbone`: the keys of a `config.json`."""
    return {theirs: getattr(config, ours) for theirs, ours in BACKBONE_KEYS.items()} | {
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }


def whisper_vq(config: Mapping[str, Any], **others: Any) -> WhisperVQConfig:
    """The `config.json` of glm-4-voice-tokenizer -> `WhisperVQConfig`."""
    expect(config, "activation_function", "gelu")
    expect(config, "encoder_causal_attention", False)
    expect(config, "quantize_causal_encoder", False)
    expect(config, "scale_embedding", False)
    quantize = need(config, "quantize_position")
    only = config.get("quantize_encoder_only", False)
    fields = {
        "num_mels": need(config, "num_mel_bins"),
        "width": need(config, "d_model"),
        "heads": need(config, "encoder_attention_heads"),
        "ffn": need(config, "encoder_ffn_dim"),
        "layers": quantize if only else need(config, "encoder_layers"),
        "max_positions": need(config, "max_source_positions"),
        "causal_convolution": config.get("encoder_causal_convolution", False),
        "block_size": config.get("quantize_causal_block_size"),
        "pooling": config.get("pooling_type", "avg"),
        "pooling_kernel": need(config, "pooling_kernel_size"),
        "pooling_position": need(config, "pooling_position"),
        "quantize_position": quantize,
        "codebook_size": need(config, "quantize_vocab_size"),
        "final_norm": not only,
    }
    return build(WhisperVQConfig, {**fields, **others}, "config.json")


def sensevoice(
    conf: Mapping[str, Any], features: int, num_queries: int, vocab_size: int, **others: Any
) -> SpeechEncoderConfig:
    """FunASR's `encoder_conf` -> `SpeechEncoderConfig`.

    Args:
        conf: the `encoder_conf` group of the released `config.yaml`.
        features: width of an input frame (`input_size`).
        num_queries: rows of the query table.
        vocab_size: classes of the CTC head.
        others: further fields.
    """
    expect(conf, "sanm_shfit", 0, "encoder_conf")
    expect(conf, "selfattention_layer_type", "sanm", "encoder_conf")
    expect(conf, "normalize_before", True, "encoder_conf")
    expect(conf, "input_layer", "pe", "encoder_conf")
    fields = {
        "features": features,
        "width": need(conf, "output_size", "encoder_conf"),
        "heads": need(conf, "attention_heads", "encoder_conf"),
        "ffn": need(conf, "linear_units", "encoder_conf"),
        "blocks": need(conf, "num_blocks", "encoder_conf"),
        "tp_blocks": conf.get("tp_blocks", 0),
        "kernel": conf.get("kernel_size", 11),
        "num_queries": num_queries,
        "vocab_size": vocab_size,
    }
    return build(SpeechEncoderConfig, {**fields, **others}, "encoder_conf")


def magvit(
    channels: int,
    encoder_multipliers: list[int],
    encoder_blocks: list[int],
    decoder_multipliers: list[int],
    decoder_blocks: list[int],
    code_bits: int,
) -> MagvitConfig:
    """A released arrangement of MAGVIT-v2 (3 x 3 kernels, attention in both middles)."""
    fields = {
        "channels": channels,
        "encoder_multipliers": encoder_multipliers,
        "encoder_blocks": encoder_blocks,
        "encoder_kernels": [3] * len(encoder_multipliers),
        "decoder_multipliers": decoder_multipliers,
        "decoder_blocks": decoder_blocks,
        "code_bits": code_bits,
    }
    return build(MagvitConfig, fields, "magvit config")


def flow(config: Mapping[str, Any], inner: int) -> dict[str, Any]:
    """What the `flow` group of CosyVoice's `config.yaml` says beyond the tensors' shapes, as fields of `FlowConfig`.

    Args:
        config: the whole file; what it leaves out has the released value.
        inner: heads * head_dim of the estimator, 0 where it has no attention.

    Returns:
        fields of `FlowConfig`; "block_size", "heads" and "head_dim" are those of its parts.
    """
    group = subgroup(config, "flow")
    sampler, parts = subgroup(group, "decoder", "cfm_params"), subgroup(group, "decoder", "estimator")
    expect(sampler, "solver", "euler", "cfm_params")
    expect(sampler, "t_scheduler", "cosine", "cfm_params")
    expect(parts, "act_fn", "gelu", "estimator")
    expect(subgroup(group, "length_regulator"), "sampling_ratios", [1, 1, 1, 1], "length_regulator")
    head_dim = parts.get("attention_head_dim", 64)
    heads = parts.get("num_heads", inner // head_dim or 8)
    if inner and heads * head_dim != inner:
        raise UserError(
            f"the estimator's attention is {inner} wide, which is not {heads} heads of {head_dim}; config.yaml says "
            "them in flow.decoder.estimator (num_heads, attention_head_dim)"
        )
    found = {
        "code_rate": group.get("input_frame_rate"),
        "sigma_min": sampler.get("sigma_min"),
        "drop_rate": sampler.get("training_cfg_rate"),
        "guidance": sampler.get("inference_cfg_rate"),
        "block_size": subgroup(group, "encoder").get("block_size"),
    }
    told = {name: value for name, value in found.items() if value is not None}
    return told | {"heads": heads, "head_dim": head_dim}


def hift(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the `hift` group of CosyVoice's `config.yaml` says beyond the tensors' shapes, as fields of `HiftConfig`."""
    group, transform = subgroup(config, "hift"), subgroup(config, "hift", "istft_params")
    found = {
        "sample_rate": group.get("sampling_rate"),
        "upsample_rates": group.get("upsample_rates"),
        "resblock_dilations": group.get("resblock_dilation_sizes"),
        "source_dilations": group.get("source_resblock_dilation_sizes"),
        "hop": transform.get("hop_len"),
        "slope": group.get("lrelu_slope"),
        "limit": group.get("audio_limit"),
        "sine_amplitude": group.get("nsf_alpha"),
        "noise_amplitude": group.get("nsf_sigma"),
        "voiced_above": group.get("nsf_voiced_threshold"),
    }
    return {name: value for name, value in found.items() if value is not None}


def subgroup(config: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """A group within groups, {} where it is not said; omegaconf's `content` is looked through."""
    for name in path:
        config = config.get(name) or {}
        if isinstance(config, Mapping) and isinstance(config.get("content"), Mapping):
            config = config["content"]
        if not isinstance(config, Mapping):
            raise UserError(f"config: {name} is no group of settings")
    return config
