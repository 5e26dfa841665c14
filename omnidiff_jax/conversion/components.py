"""The released checkpoints: how each is recognised, its sizes, the rules that move it, the parameters it fills."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from omnidiff_jax.config import build, choose
from omnidiff_jax.conversion import adapter, dream, flow, hift, magvit, released, sensevoice, whisper_vq
from omnidiff_jax.conversion.rules import DROPPED, Rule
from omnidiff_jax.conversion.told import check_agreement
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.adapter import Adapter, AdapterConfig
from omnidiff_jax.models.backbone import Backbone, BackboneConfig
from omnidiff_jax.models.flow import EstimatorConfig, FlowConfig, FlowDecoder, TokenEncoderConfig
from omnidiff_jax.models.hift import Hift, HiftConfig, draw_source_noise
from omnidiff_jax.models.magvit import Magvit, MagvitConfig
from omnidiff_jax.models.sanm import SpeechEncoder, SpeechEncoderConfig
from omnidiff_jax.models.whisper_vq import WhisperVQConfig, WhisperVQEncoder
from omnidiff_jax.speech_frames import padded_frames

Shapes = Mapping[str, tuple[int, ...]]

AUDIO, PROJECTION = "model.audio_model.model.", "model.audio_projection."
KEPT = "released"
"""Subtree of tensors that no module reads; they are kept so that the way back gives every tensor."""


@dataclass(frozen=True)
class OmniParts:
    """What an Omni-Diffusion checkpoint holds: a text-only one has the backbone alone.

    Attributes:
        backbone: its sizes.
        speech_encoder: None where the checkpoint has none.
        adapter: None where the checkpoint has none.
    """

    backbone: BackboneConfig
    speech_encoder: SpeechEncoderConfig | None = None
    adapter: AdapterConfig | None = None


@dataclass(frozen=True)
class Component:
    """One kind of checkpoint.

    Attributes:
        name: as in `--component`.
        mark: a tensor that only it has.
        config_type: dataclass of its sizes.
        sizes: (shapes, released config) -> config; what neither says has the released value.
        rules: config -> table.
        abstract: config -> parameter tree with logical axis names, as shapes.
        released_json: config -> keys of the hub's `config.json` that others read.
    """

    name: str
    mark: str
    config_type: type
    sizes: Callable[[Shapes, Mapping[str, Any]], Any]
    rules: Callable[[Any], tuple[Rule, ...]]
    abstract: Callable[[Any], Any]
    released_json: Callable[[Any], dict[str, Any]] = lambda config: {}

    def config(self, shapes: Shapes, given: Mapping[str, Any]) -> Any:
        """The sizes of a checkpoint; a config that this project wrote says them itself.

        Raises:
            UserError: neither the config nor the shapes tell a size, the config says one twice and differently, or it
                asks for what is not implemented.
        """
        released.refuse_quantized(given)
        own = given.get("omnidiff")
        if isinstance(own, Mapping) and own.get("component") == self.name:
            config: Any = build(self.config_type, own.get("config", {}), "config.json: omnidiff.config")
            given = released.rope_said_once(given)
            if self.name == "omni":
                released.expect_backbone(given)
            check_agreement(self.name, config, given)
            return config
        try:
            return self.sizes(shapes, given)
        except KeyError as error:
            raise UserError(
                f"the checkpoint lacks tensor {error.args[0]!r}, which tells a size of {self.name}; "
                "download it again or name another --component"
            ) from error
        except ValueError as error:
            raise UserError(f"the sizes of this {self.name} checkpoint do not fit together: {error}") from error


def recognise(names: Iterable[str], wanted: str | None = None) -> Component:
    """The component of a state dict.

    Args:
        names: its tensors.
        wanted: `--component`.

    Raises:
        UserError: an unknown name, or tensors of no known checkpoint.
    """
    if wanted is not None:
        return choose(COMPONENTS, wanted, "component")
    present = set(names)
    for component in COMPONENTS.values():
        if component.mark in present:
            return component
    some = ", ".join(sorted(present)[:3])
    raise UserError(f"no known checkpoint has these tensors ({some}, ...); known: {', '.join(COMPONENTS)}")


def kept(table: Iterable[Rule]) -> tuple[Rule, ...]:
    """`table` with the tensors that no module reads kept under `KEPT` instead of dropped."""
    return tuple(
        replace(rule, target=f"{KEPT}/{rule.source.replace('.', '/')}") if rule.target == DROPPED else rule
        for rule in table
    )


def _count(shapes: Shapes, pattern: str) -> int:
    """Number of different indices that the group of `pattern` takes."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})


def _under(part: str, table: Iterable[Rule]) -> list[Rule]:
    return [replace(rule, target=f"{part}/{rule.target}") for rule in table]


def _within(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


# ---- backbone, speech encoder, adapter ----------------------------------------------------------------------


def _omni_sizes(shapes: Shapes, given: Mapping[str, Any]) -> OmniParts:
    if "hidden_size" not in given:
        where = "says nothing of the backbone" if given else "is missing"
        raise UserError(
            f"config.json {where}, and tensors do not tell the number of attention heads, rope_theta and rms_norm_eps; "
            "put the config.json that belongs to the weights beside them"
        )
    backbone = released.backbone(given)
    heard, projected = _within(shapes, AUDIO), _within(shapes, PROJECTION)
    return OmniParts(
        backbone,
        _sensevoice_sizes(heard, given) if heard else None,
        _adapter_sizes(projected, given) if projected else None,
    )


def _omni_rules(parts: OmniParts) -> tuple[Rule, ...]:
    table = _under("backbone", dream.rules(parts.backbone))
    if parts.speech_encoder is not None:
        table += _under("speech_encoder", sensevoice.rules(parts.speech_encoder, AUDIO))
    if parts.adapter is not None:
        table += _under("adapter", adapter.rules(PROJECTION))
    return tuple(table)


def _omni_abstract(parts: OmniParts) -> dict[str, Any]:
    tree = {"backbone": backbone_params(parts.backbone)}
    if parts.speech_encoder is not None:
        tree["speech_encoder"] = sensevoice_params(parts.speech_encoder)
    if parts.adapter is not None:
        tree["adapter"] = adapter_params(parts.adapter)
    return tree


def _omni_json(parts: OmniParts) -> dict[str, Any]:
    return {"architectures": ["DreamModel"], "model_type": "Dream"} | released.backbone_json(parts.backbone)


def backbone_params(config: BackboneConfig) -> Any:
    """Parameters of the backbone as shapes, with their logical axis names; so for each function below."""
    ones, model = jnp.ones((1, 1), jnp.int32), Backbone(config)
    embeds = jnp.ones((1, 1, config.width))
    return jax.eval_shape(lambda key: model.init(key, embeds, ones, ones), jax.random.key(0))["params"]


def sensevoice_params(config: SpeechEncoderConfig) -> Any:
    frames = padded_frames(jnp.zeros((1, 3, config.features)), jnp.array([3]), config.queries)
    return jax.eval_shape(SpeechEncoder(config).init, jax.random.key(0), frames)["params"]


def adapter_params(config: AdapterConfig) -> Any:
    return jax.eval_shape(Adapter(config).init, jax.random.key(0), jnp.zeros((1, config.inputs)))["params"]


def _adapter_sizes(shapes: Shapes, given: Mapping[str, Any]) -> AdapterConfig:
    outputs, inputs = shapes["mlp.0.weight"]
    return AdapterConfig(inputs=inputs, outputs=outputs)


def _sensevoice_sizes(shapes: Shapes, given: Mapping[str, Any]) -> SpeechEncoderConfig:
    first, queries = "encoder.encoders0.0.self_attn", shapes["embed.weight"][0]
    conf = given.get("encoder_conf") or {}
    default = SpeechEncoderConfig()
    return SpeechEncoderConfig(
        features=shapes[f"{first}.linear_q_k_v.weight"][1],
        width=shapes[f"{first}.linear_out.weight"][0],
        heads=int(conf.get("attention_heads", default.heads)),
        ffn=shapes["encoder.encoders0.0.feed_forward.w_1.weight"][0],
        blocks=1 + _count(shapes, r"encoder\.encoders\.(\d+)\."),
        tp_blocks=_count(shapes, r"encoder\.tp_encoders\.(\d+)\."),
        kernel=shapes[f"{first}.fsmn_block.weight"][-1],
        queries=default.queries if queries > max(default.queries) else tuple(range(min(queries, 4))),
        num_queries=queries,
        vocab_size=shapes["ctc.ctc_lo.weight"][0],
    )


# ---- speech tokenizer ---------------------------------------------------------------------------------------


def _whisper_sizes(shapes: Shapes, given: Mapping[str, Any]) -> WhisperVQConfig:
    if "d_model" in given:
        return released.whisper_vq(given)
    width, mels, _ = shapes["conv1.weight"]
    layers, positions = _count(shapes, r"layers\.(\d+)\."), shapes["embed_positions.weight"][0]
    return WhisperVQConfig(
        num_mels=mels,
        width=width,
        heads=max(width // 64, 1),
        ffn=shapes["layers.0.fc1.weight"][0],
        layers=layers,
        max_positions=positions,
        pooling_kernel=-(-positions // shapes["embed_positions2.weight"][0]),
        pooling_position=layers,
        quantize_position=layers,
        codebook_size=shapes["codebook.weight"][0],
        final_norm="layer_norm.weight" in shapes,
    )


def whisper_vq_params(config: WhisperVQConfig) -> Any:
    mels = jnp.zeros((1, 2 * config.pooling_kernel, config.num_mels))
    init = WhisperVQEncoder(config).init
    return jax.eval_shape(init, jax.random.key(0), mels, jnp.ones(mels.shape[:2], bool))["params"]


# ---- image tokenizer ----------------------------------------------------------------------------------------


def _magvit_sizes(shapes: Shapes, given: Mapping[str, Any]) -> MagvitConfig:
    channels = shapes["encoder.conv_in.weight"][0]

    def tower(name: str) -> tuple[list[int], list[int]]:
        levels = _count(shapes, rf"{name}\.(\d+)\.")
        widths = [shapes[f"{name}.{n}.block.0.conv1.weight"][0] // channels for n in range(levels)]
        return widths, [_count(shapes, rf"{name}\.{n}\.block\.(\d+)\.") for n in range(levels)]

    code_bits = shapes["decoder.post_quant_conv.weight"][0]
    return released.magvit(channels, *tower("encoder.down"), *tower("decoder.up"), code_bits=code_bits)


def magvit_params(config: MagvitConfig) -> Any:
    image = jnp.zeros((1, config.downsampling, config.downsampling, 3))
    return jax.eval_shape(Magvit(config).init, jax.random.key(0), image)["params"]


# ---- speech decoder -----------------------------------------------------------------------------------------


def _flow_sizes(shapes: Shapes, given: Mapping[str, Any]) -> FlowConfig:
    codes, code_width = shapes["input_embedding.weight"]
    mels, speaker = shapes["spk_embed_affine_layer.weight"]
    estimator = "decoder.estimator"
    levels = _count(shapes, rf"{re.escape(estimator)}\.down_blocks\.(\d+)\.")
    transformers = _count(shapes, rf"{re.escape(estimator)}\.down_blocks\.0\.1\.(\d+)\.")
    inner = shapes[f"{estimator}.down_blocks.0.1.0.attn1.to_q.weight"][0] if transformers else 0
    told = released.flow(given, inner)
    heads, head_dim = told.pop("heads"), told.pop("head_dim")
    block_size = told.pop("block_size", TokenEncoderConfig.block_size)
    return FlowConfig(
        **told,
        codes=codes,
        mels=mels,
        speaker_dim=speaker,
        code_width=code_width,
        encoder=TokenEncoderConfig(
            width=shapes["encoder.embed.out.0.weight"][0],
            heads=shapes["encoder.encoders.0.self_attn.pos_bias_u"][0],
            hidden=shapes["encoder.encoders.0.feed_forward.w_1.weight"][0],
            layers=_count(shapes, r"encoder\.encoders\.(\d+)\."),
            block_size=block_size,
        ),
        # Three numbers a layer, and a last convolution.
        regulator_layers=max(int(m[1]) for n in shapes if (m := re.match(r"length_regulator\.model\.(\d+)\.", n))) // 3,
        estimator=EstimatorConfig(
            channels=tuple(shapes[f"{estimator}.down_blocks.{n}.0.block1.block.0.weight"][0] for n in range(levels)),
            mid_blocks=_count(shapes, rf"{re.escape(estimator)}\.mid_blocks\.(\d+)\."),
            transformers=transformers,
            heads=heads,
            head_dim=head_dim,
        ),
    )


def flow_params(config: FlowConfig) -> Any:
    def init() -> Any:
        frames = config.frames(4)
        noise, mask = jnp.zeros((1, frames, config.mels)), jnp.ones((1, frames), bool)
        codes, lengths = jnp.zeros((1, 4), int), jnp.full((1,), 4)
        return FlowDecoder(config).init(jax.random.key(0), codes, lengths, noise, mask, jnp.zeros(1))["params"]

    return jax.eval_shape(init)


def _hift_sizes(shapes: Shapes, given: Mapping[str, Any]) -> HiftConfig:
    base, mels, _ = shapes["conv_pre.weight_v"]
    stages = _count(shapes, r"ups\.(\d+)\.")
    kernels = tuple(shapes[f"ups.{n}.weight_v"][2] for n in range(stages))
    blocks = _count(shapes, r"resblocks\.(\d+)\.") // max(stages, 1)

    def dilations(block: str) -> tuple[int, ...]:
        """Shapes tell how many; the released ones are 1, 3, 5."""
        return tuple(2 * n + 1 for n in range(_count(shapes, rf"{re.escape(block)}\.convs1\.(\d+)\.")))

    fields = {
        "mels": mels,
        "base_channels": base,
        "pitch_channels": shapes["f0_predictor.condnet.0.weight_v"][0],
        "pitch_layers": _count(shapes, r"f0_predictor\.condnet\.(\d+)\."),
        "upsample_rates": [kernel // 2 for kernel in kernels],
        "upsample_kernels": kernels,
        "resblock_kernels": [shapes[f"resblocks.{n}.convs1.0.weight_v"][2] for n in range(blocks)],
        "resblock_dilations": [dilations(f"resblocks.{n}") for n in range(blocks)],
        "source_kernels": [shapes[f"source_resblocks.{n}.convs1.0.weight_v"][2] for n in range(stages)],
        "source_dilations": [dilations(f"source_resblocks.{n}") for n in range(stages)],
        "harmonics": shapes["m_source.l_linear.weight"][1] - 1,
        "n_fft": shapes["conv_post.weight_v"][0] - 2,
    }
    return build(HiftConfig, fields | released.hift(given), "config.yaml: hift")


def hift_params(config: HiftConfig) -> Any:
    def init() -> Any:
        noise = draw_source_noise(jax.random.key(0), 1, 2 * config.frame_samples, config.harmonics)
        return Hift(config).init(jax.random.key(0), jnp.zeros((1, 2, config.mels)), jnp.full((1,), 2), noise)["params"]

    return jax.eval_shape(init)


COMPONENTS: dict[str, Component] = {
    component.name: component
    for component in (
        Component(
            "omni", "model.embed_tokens.weight", OmniParts, _omni_sizes, _omni_rules, _omni_abstract, _omni_json
        ),
        Component(
            "adapter", "pre_proj_layernorm.weight", AdapterConfig, _adapter_sizes, lambda c: adapter.rules(),
            adapter_params,
        ),
        Component(
            "sensevoice", "encoder.encoders0.0.norm1.weight", SpeechEncoderConfig, _sensevoice_sizes,
            lambda c: tuple(sensevoice.rules(c)), sensevoice_params,
        ),
        Component(
            "whisper_vq", "codebook.weight", WhisperVQConfig, _whisper_sizes, whisper_vq.rules, whisper_vq_params
        ),
        Component(
            "magvit", "encoder.conv_in.weight", MagvitConfig, _magvit_sizes, lambda c: kept(magvit.RULES), magvit_params
        ),
        Component(
            "flow", "decoder.estimator.time_mlp.linear_1.weight", FlowConfig, _flow_sizes, flow.rules, flow_params
        ),
        Component("hift", "f0_predictor.classifier.weight", HiftConfig, _hift_sizes, hift.rules, hift_params),
    )
}  # fmt: skip
