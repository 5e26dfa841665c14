"""The any-to-any model: tokens and heard speech in, hidden states of one masked-token predictor out.

Parameter tree, top level: `backbone`, and where the model hears, `speech_encoder` and `adapter`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from omnidiff_jax.batch import ModelInputs, SpeechFrames
from omnidiff_jax.models.adapter import Adapter, AdapterConfig
from omnidiff_jax.models.backbone import Backbone, BackboneConfig
from omnidiff_jax.models.sanm import SpeechEncoder, SpeechEncoderConfig
from omnidiff_jax.sharding import axes
from omnidiff_jax.sharding.axes import constrain


@dataclasses.dataclass(frozen=True)
class OmniConfig:
    """Sizes of the whole model.

    Attributes:
        backbone: the transformer.
        speech_encoder: None for a model that hears nothing.
        adapter: from the encoder's width to the backbone's; unused without an encoder.
    """

    backbone: BackboneConfig = BackboneConfig()
    speech_encoder: SpeechEncoderConfig | None = SpeechEncoderConfig()
    adapter: AdapterConfig = AdapterConfig()

    def __post_init__(self):
        if self.speech_encoder is not None and self.adapter.outputs != self.backbone.width:
            raise ValueError(
                f"adapter.outputs = {self.adapter.outputs} must equal backbone.width = {self.backbone.width}"
            )


class OmniModel(nn.Module):
    """Backbone with an ear. Frozen parts are a rule of training, not of the model."""

    config: OmniConfig

    def setup(self):
        self.backbone = Backbone(self.config.backbone)
        if self.config.speech_encoder is not None:
            self.speech_encoder = SpeechEncoder(self.config.speech_encoder)
            self.adapter = Adapter(self.config.adapter)

    def __call__(self, inputs: ModelInputs) -> jax.Array:
        """Hidden states [B, L, D] after the final norm, in the compute dtype."""
        return self.backbone(self.embed_inputs(inputs), inputs.positions, inputs.segment_ids, inputs.given)

    def embed_inputs(self, inputs: ModelInputs) -> jax.Array:
        """Token embeddings [B, L, D], with the rows that stand for heard speech replaced."""
        embeds = self.backbone.embed(inputs.tokens)
        if inputs.speech is not None:
            if self.config.speech_encoder is None:
                raise ValueError("the inputs hold speech, but this model's speech_encoder is None")
            vectors = self.speech_embeddings(inputs.speech).astype(embeds.dtype)
            embeds = place(embeds, vectors, inputs.speech.slots)
        return constrain(embeds, axes.BATCH, axes.LENGTH, axes.ACT_EMBED)

    def speech_embeddings(self, speech: SpeechFrames) -> jax.Array:
        """Encoded and projected frames, [B, T, D]."""
        return self.adapter(self.speech_encoder(speech))

    def logits(self, hidden: jax.Array, start: int = 0, stop: int | None = None) -> jax.Array:
        """float32 [..., V] from hidden states [..., D], or those of the ids start .. stop - 1 alone."""
        return self.backbone.logits(hidden, start, stop)


def place(embeds: jax.Array, vectors: jax.Array, slots: jax.Array) -> jax.Array:
    """Overwrites rows of `embeds` [B, L, D] by `vectors` [B, T, D]; `slots` int32 [B, T] says where, -1 = nowhere."""
    slots = jnp.where(slots < 0, embeds.shape[1], slots)  # out of range, hence dropped
    # Row by row: with rows as indices the compiler gathers the whole batch on every device.
    return jax.vmap(lambda row, at, values: row.at[at].set(values, mode="drop"))(embeds, slots, vectors)


def example_inputs(config: OmniConfig) -> ModelInputs:
    """The smallest inputs that touch every parameter, for initialisation."""
    ints = jnp.ones((1, 1), jnp.int32)
    speech = None
    if config.speech_encoder is not None:
        features = jnp.zeros((1, 1, config.speech_encoder.features))
        speech = SpeechFrames(features=features, segment_ids=ints, positions=ints, queries=ints, slots=ints - 1)
    return ModelInputs(tokens=ints, segment_ids=ints, positions=ints - 1, speech=speech, given=ints > 0)


def init_params(config: OmniConfig, key: jax.Array) -> dict:
    """Initial float32 parameters, boxed with their logical axis names (`flax.linen.meta.unbox` removes them)."""
    # Parameters do not depend on the attention backend; the reference runs wherever this is called.
    config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, attention="xla"))
    return OmniModel(config).init(key, example_inputs(config))["params"]
