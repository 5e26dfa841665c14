"""The speech encoder of Commons: SAN-M with CTC on natural voices that ask.

    omnidiff data speak COMMONS
    omnidiff train --config=experiments/configs/tokenizers/commons_speech_encoder.py --workdir=DIR \
        --config.folder=COMMONS

COMMONS is a folder of `omnidiff data fetch commons` with `clips` (docs/commons.md). Learns sentences that are joined of
the clips there are, and whole ones; validates on whole ones in voices never learned, which are spoken then where they
are missing. Goes on where it was stopped.
"""

from ml_collections import ConfigDict

from experiments.configs import commons_presets
from experiments.configs.tokenizers import speech_encoder


def get_config(preset: str = "") -> ConfigDict:
    config = speech_encoder.get_config()
    config.program = "commons_speech_encoder"
    config.folder = ""
    config.stages.train.steps = 5000
    config.stages.train.learning_rate = 1e-3
    config.optimizer.warmup_fraction = 0.05
    config.pieces = ConfigDict({"kind": "bpe", "size": 640, "phrases": ()})  # 256 of them bytes
    config.training.utterances = 12000
    config.training.validation_size = 200
    config.training.encoder.update({"width": 192, "ffn": 512, "blocks": 5})
    return commons_presets.apply(config, "commons_speech_encoder", preset)
