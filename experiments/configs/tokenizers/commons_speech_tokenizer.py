"""The speech tokenizer of Commons: the natural voice that answers, 12.5 codes of 10 bits a second.

    omnidiff data speak COMMONS
    omnidiff train --config=experiments/configs/tokenizers/commons_speech_tokenizer.py --workdir=DIR \
        --config.folder=COMMONS

COMMONS is a folder of `omnidiff data fetch commons` with `clips` (docs/commons.md). Sets have codes of the answering
voice alone: what is heard goes through the speech encoder. As nano's, a code is a function of its own 80 ms, and what
is said begins on their grid. Goes on where it was stopped.
"""

from ml_collections import ConfigDict

from experiments.configs import commons_presets
from experiments.configs.tokenizers import speech_tokenizer


def get_config(preset: str = "") -> ConfigDict:
    config = speech_tokenizer.get_config()
    config.program = "commons_speech_tokenizer"
    config.folder = ""
    config.checkpoint_every = 500
    config.stages.train.steps = 2000
    config.stages.train.learning_rate = 3e-3
    # Features must move more slowly than the rows of the codebook: they run away from most of 1,024 otherwise.
    config.optimizer.slow = ("encoder/layers*", "encoder/conv*", "encoder/*positions")
    config.optimizer.slow_rate = 0.03
    config.training.validation_size = 100
    config.training.model.update({"width": 192, "ffn": 512, "layers": 2, "codebook_size": 1024})
    config.training.model.update({"pooling_position": 2, "quantize_position": 2})
    return commons_presets.apply(config, "commons_speech_tokenizer", preset)
