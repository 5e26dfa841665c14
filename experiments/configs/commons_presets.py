"""Presets of Commons: what differs from what its configs plan. One table for all of them.

`--config=experiments/configs/commons.py:miniature` applies a row; `omnidiff commons --preset=miniature` all of one
preset, each to its config.

- `miniature`: the whole training, meant for twenty minutes of two quiet CPU cores. It shows that every step works on
  this machine, and what each leaves; what comes out of it has learned next to nothing.
- `gpu`: the backbone for one GPU of 80 GB. Tokenizers are trained as planned.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from omnidiff_jax.config import choose

_SHORT = {"stages.train.steps": 100, "checkpoint_every": 50}
_STAGES = ("stage1_visual_language", "stage2_speech_vision_language", "stage3_speech_driven_visual")

# Preset -> config -> values by their dotted keys.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "miniature": {
        "commons_image": _SHORT | {"training.spread_steps": 100, "training.validation_size": 64},
        "commons_speech_encoder": _SHORT
        | {"training.utterances": 800, "training.cmvn_utterances": 32, "training.validation_size": 12},
        "commons_speech_tokenizer": _SHORT | {"training.validation_size": 12},
        "commons_speech_decoder": _SHORT | {"training.utterances": 64, "training.validation_size": 6},
        # Critics are felt from half of it on.
        "commons_vocoder": _SHORT
        | {"stages.train.steps": 50, "training.start": 25, "training.utterances": 64, "training.validation_size": 6},
        "commons": {"checkpoint_every": 50} | dict.fromkeys((f"stages.{name}.steps" for name in _STAGES), 50),
    },
    "gpu": {
        "commons": {
            "batch_size": 64,
            "dtype": "bfloat16",
            "model.width": 768,
            "model.layers": 12,
            "model.heads": 12,
            "model.kv_heads": 12,
            "model.head_dim": 64,
            "model.hidden": 2048,
            "model.attention": "xla",  # rows of 288 positions are too short for cuDNN to matter
            "model.scan_layers": True,
            "optimizer.newton_schulz_steps": 5,
        }
    },
}
# Of the samples that `commons.py` makes of each source.
SHARES: dict[str, float] = {"miniature": 0.05}
# What `clips/speech.json` says beside who speaks (docs/commons.md), of presets that do with fewer voices.
PLANNED: Mapping[str, Any] = {"voices": 48}
VOICES: dict[str, Mapping[str, Any]] = {
    # Three learned voices and the one that answers; the fourth is for exams.
    "miniature": {"voices": 4, "held_out": 0.25, "voices_of_name": 2, "names": 0.05, "sentences": 60},
}


def apply(config: ConfigDict, name: str, preset: str) -> ConfigDict:
    """Writes the row of a preset into a config.

    Args:
        config: that is changed.
        name: of its file, without the ending.
        preset: a row of `PRESETS`; "" changes nothing.

    Raises:
        UserError: no such preset; the nearest is named.
    """
    if preset:
        config.update_from_flattened_dict(choose(PRESETS, preset, "preset of Commons").get(name, {}))
    return config
