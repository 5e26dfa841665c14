"""What a released config says of a checkpoint, against what is known of it: contradictions, and what nobody says.

Shapes tell sizes, but not how many heads share a projection nor where the rotary angles begin. What neither the tensors
nor the config tell has the released value, and is named; what the config says twice must agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omnidiff_jax.config import to_dict
from omnidiff_jax.conversion.released import BACKBONE_KEYS, rope_said_once, subgroup
from omnidiff_jax.errors import UserError

Path = tuple[str, ...]
# Field of a component's config -> where the released config says it.
_SAID: dict[str, dict[str, Path]] = {
    "omni": {f"backbone.{ours}": (theirs,) for theirs, ours in BACKBONE_KEYS.items()}
    | {"backbone.head_dim": ("head_dim",), "speech_encoder.heads": ("encoder_conf", "attention_heads")},
    "sensevoice": {"heads": ("encoder_conf", "attention_heads")},
    "whisper_vq": {
        "num_mels": ("num_mel_bins",),
        "width": ("d_model",),
        "heads": ("encoder_attention_heads",),
        "ffn": ("encoder_ffn_dim",),
        "max_positions": ("max_source_positions",),
        "causal_convolution": ("encoder_causal_convolution",),
        "block_size": ("quantize_causal_block_size",),
        "pooling": ("pooling_type",),
        "pooling_kernel": ("pooling_kernel_size",),
        "pooling_position": ("pooling_position",),
        "quantize_position": ("quantize_position",),
        "codebook_size": ("quantize_vocab_size",),
    },
    "flow": {
        "code_rate": ("flow", "input_frame_rate"),
        "sigma_min": ("flow", "decoder", "cfm_params", "sigma_min"),
        "drop_rate": ("flow", "decoder", "cfm_params", "training_cfg_rate"),
        "guidance": ("flow", "decoder", "cfm_params", "inference_cfg_rate"),
        "encoder.block_size": ("flow", "encoder", "block_size"),
        "estimator.heads": ("flow", "decoder", "estimator", "num_heads"),
        "estimator.head_dim": ("flow", "decoder", "estimator", "attention_head_dim"),
    },
    "hift": {
        "sample_rate": ("hift", "sampling_rate"),
        "upsample_rates": ("hift", "upsample_rates"),
        "resblock_dilations": ("hift", "resblock_dilation_sizes"),
        "source_dilations": ("hift", "source_resblock_dilation_sizes"),
        "hop": ("hift", "istft_params", "hop_len"),
        "slope": ("hift", "lrelu_slope"),
        "limit": ("hift", "audio_limit"),
        "sine_amplitude": ("hift", "nsf_alpha"),
        "noise_amplitude": ("hift", "nsf_sigma"),
        "voiced_above": ("hift", "nsf_voiced_threshold"),
    },
}
# Of these, what the shapes of the tensors tell as well, or what is checked against them.
_SHAPED = {
    "omni": {f"backbone.{f}" for f in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "hidden")},
    "whisper_vq": {"num_mels", "width", "ffn", "max_positions", "pooling_kernel", "codebook_size"},
}


def check_agreement(component: str, config: Any, given: Mapping[str, Any]) -> None:
    """Refuses a config that says something else in its released keys than in its "omnidiff" group.

    Raises:
        UserError: naming the key, and both values.
    """
    known, given = to_dict(config), rope_said_once(given)
    for field, path in _SAID.get(component, {}).items():
        said, ours = _look(given, path), _field(known, field)
        if said is not None and ours is not None and said != ours:
            raise UserError(
                f"the config says {'.'.join(path)} = {said!r}, but {field} = {ours!r} in its omnidiff group; make both "
                "the same, or take the group out"
            )


def assumed(component: str, config: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `config` that change numbers and that neither the tensors nor the released config tell, with the
    values they have been given; those that were assumed when this project wrote the config."""
    own = given.get("omnidiff")
    if isinstance(own, Mapping) and own.get("component") == component:
        before = own.get("assumed")
        return dict(before) if isinstance(before, Mapping) else {}
    known, given = to_dict(config), rope_said_once(given)
    fields = _SAID.get(component, {}).keys() - _SHAPED.get(component, set())
    silent = (field for field in sorted(fields) if _look(given, _SAID[component][field]) is None)
    return {field: value for field in silent if (value := _field(known, field)) is not None}


def _look(given: Mapping[str, Any], path: Path) -> Any:
    return subgroup(given, *path[:-1]).get(path[-1])


def _field(known: Mapping[str, Any], field: str) -> Any:
    value: Any = known
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], free: set[str]) -> Iterator[tuple[str, Any, Any]]:
    """(dotted field, value here, value there) of two configs as plain dicts, where both have it and they differ.

    Args:
        ours, theirs: nested plain dicts, as `to_dict` makes them.
        free: names of fields that may differ, on any level.
    """
    for name in ours:
        if name in free or name not in theirs:
            continue
        here, there = ours[name], theirs[name]
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            for field, a, b in differences(here, there, free):
                yield f"{name}.{field}", a, b
        elif here != there and here is not None and there is not None:
            yield name, here, there
