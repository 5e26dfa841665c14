"""Backbone fixtures: inference, packed training rows with loss and gradients, speech vectors in a prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omnidiff_jax.batch import Batch, ModelInputs
from omnidiff_jax.conversion import dream, released
from omnidiff_jax.conversion.components import backbone_params
from omnidiff_jax.conversion.rules import to_torch
from omnidiff_jax.diffusion.loss import LossConfig, masked_cross_entropy
from omnidiff_jax.diffusion.masking import Corrupted
from omnidiff_jax.models.backbone import Backbone, BackboneConfig
from omnidiff_jax.models.omni import OmniConfig, OmniModel, place
from omnidiff_jax.parity.check import Check
from omnidiff_jax.parity.fixtures import Fixture, FixtureSet

GRADIENTS = "out/train_row0_grad/"
NORMS = "out/train_row0_grad_l2/"


def released_backbone(cfg: Mapping[str, Any]) -> BackboneConfig:
    """The released model of these sizes, its quirks on, in float32."""
    return released.backbone(
        cfg, dtype="float32", remat="none", padding_idx=cfg.get("pad_token_id"), padding_visible=True
    )


def segments(positions: np.ndarray, attention_mask: np.ndarray) -> Any:
    """Released segments: a new one at each position 0; padding (mask 0) is a key of the last one only."""
    return np.cumsum(positions == 0, axis=1, dtype=np.int32) * (attention_mask != 0)


def dream_backbone(fixture: Fixture, check: Check, _: FixtureSet) -> None:
    config = released_backbone(fixture.setting("cfg"))
    params = check.converted(dream.rules(config), fixture.tensors, backbone_params(config))
    _inference(fixture, check, config, params)
    _training(fixture, check, config, params)


def _inference(fixture: Fixture, check: Check, config: BackboneConfig, params: dict) -> None:
    model = Backbone(config)

    @jax.jit
    def run(params: dict, tokens: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        embeds = model.apply({"params": params}, tokens, method="embed")
        hidden, state = model.apply(
            {"params": params}, embeds, positions, jnp.ones_like(tokens), mutable=["intermediates"]
        )
        inputs = state["intermediates"]["layers"]["input"][0]
        return model.apply({"params": params}, hidden, method="logits"), jnp.concatenate([inputs, hidden[None]])

    tokens = fixture["in/dream_ids"].astype(np.int32)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    logits, hidden = run(params, tokens, positions)
    check.relative("out/dream_logits", logits)
    check.relative("out/dream_hidden_states", hidden)
    logits, _ = run(params, tokens, fixture["in/dream_shifted_position_ids"].astype(np.int32))
    check.relative("out/dream_logits_shifted_positions", logits)


def _training(fixture: Fixture, check: Check, config: BackboneConfig, params: dict) -> None:
    model, loss_config = Backbone(config), LossConfig(alignment="shifted_released")
    tokens, labels, positions = (
        fixture[f"in/train_{name}"].astype(np.int32) for name in ("ids", "labels", "position_ids")
    )
    owners = segments(positions, fixture["in/train_attention_mask"])

    @jax.jit
    def run(
        params: dict, tokens: jax.Array, labels: jax.Array, positions: jax.Array, owners: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], dict]:
        def loss(params: dict) -> tuple[jax.Array, jax.Array]:
            embeds = model.apply({"params": params}, tokens, method="embed")
            hidden = model.apply({"params": params}, embeds, positions, owners)
            scored, none = labels != -100, jnp.zeros((1, 1), jnp.int32)
            clean = ModelInputs(jnp.where(scored, labels, 0), owners, positions)
            batch = Batch(clean, scored, jnp.zeros_like(scored), none.astype(jnp.uint32), none, none)
            corrupted = Corrupted(tokens, scored, jnp.ones((1, 1)), jnp.ones(tokens.shape))
            result = masked_cross_entropy(hidden, params["head"], batch, corrupted, loss_config, 1)
            return result.loss, model.apply({"params": params}, hidden, method="logits")

        return jax.value_and_grad(loss, has_aux=True)(params)

    losses, logits = [], []
    for row in range(len(tokens)):
        (value, scores), gradients = run(params, *(x[row : row + 1] for x in (tokens, labels, positions, owners)))
        losses.append(float(value))
        logits.append(scores)
        if row == 0:
            _gradients(check, to_torch(dream.rules(config), jax.tree.map(np.asarray, gradients)))
    check.relative("out/train_logits", np.concatenate(logits))
    check.relative("out/train_loss_per_row", np.asarray(losses))


def _gradients(check: Check, gradients: Mapping[str, np.ndarray]) -> None:
    """`out/train_row0_grad_l2/NAME`, `out/train_row0_grad/NAME`, and `.../NAME_rowsA_B` for some of its rows."""
    for output in check.fixture.outputs:
        if output.startswith(NORMS):
            gradient = gradients.get(output.removeprefix(NORMS))
            if gradient is not None:
                check.relative(output, np.linalg.norm(gradient.astype(np.float64)))
        elif output.startswith(GRADIENTS):
            name = output.removeprefix(GRADIENTS)
            rows = re.fullmatch(r"(.*)_rows(\d+)_(\d+)", name)
            if rows:
                name = rows[1]
            if name in gradients:
                gradient = gradients[name]
                check.relative(output, gradient[int(rows[2]) : int(rows[3])] if rows else gradient)


def audio_prompt(fixture: Fixture, check: Check, _: FixtureSet) -> None:
    """The recorded speech vectors take their tokens' places; everything else is ours."""
    config = released_backbone(fixture.setting("cfg"))
    params = {"backbone": check.converted(dream.rules(config), fixture.tensors, backbone_params(config))}
    positions = fixture["in/position_ids"].astype(np.int32)
    owners = segments(positions, fixture["in/attention_mask"])
    inputs = ModelInputs(fixture["in/ids"].astype(np.int32), owners, positions)
    spans = fixture.group("in/audio_positions")
    slots: Any = np.concatenate([spans[name] for name in sorted(spans)])[None].astype(np.int32)
    vectors = fixture["out/inputs_embeds"][:, slots[0]]
    model = OmniModel(OmniConfig(backbone=config, speech_encoder=None))

    @jax.jit
    def run(params: dict, vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
        def forward(model: OmniModel) -> tuple[jax.Array, jax.Array]:
            embeds = place(model.embed_inputs(inputs), vectors, slots)
            return embeds, model.logits(model.backbone(embeds, inputs.positions, inputs.segment_ids))

        return model.apply({"params": params}, method=forward)

    embeds, logits = run(params, vectors)
    check.exact("out/inputs_embeds", embeds)
    check.relative("out/logits", logits)
