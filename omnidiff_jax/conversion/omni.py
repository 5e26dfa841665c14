"""The released Omni-Diffusion checkpoint <-> `OmniModel`: backbone, speech encoder and adapter in one table."""

import dataclasses
from collections.abc import Iterable

from omnidiff_jax.conversion import adapter, dream, sensevoice
from omnidiff_jax.conversion.rules import DROPPED, Rule
from omnidiff_jax.models.omni import OmniConfig


def rules(config: OmniConfig) -> tuple[Rule, ...]:
    """The table for a model of this size; without a speech encoder, that of the backbone alone."""
    table = _under("backbone", dream.rules(config.backbone))
    if config.speech_encoder is not None:
        table += _under("speech_encoder", sensevoice.rules(config.speech_encoder, "model.audio_model.model."))
        table += _under("adapter", adapter.rules("model.audio_projection."))
    return tuple(table)


def _under(part: str, table: Iterable[Rule]) -> list[Rule]:
    return [
        rule if rule.target == DROPPED else dataclasses.replace(rule, target=f"{part}/{rule.target}") for rule in table
    ]
