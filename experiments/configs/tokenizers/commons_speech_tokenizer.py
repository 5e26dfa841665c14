"""The speech tokenizer of Commons: the natural voice that answers, 12.5 codes of 10 bits a second.

    omnidiff data speak COMMONS
    omnidiff train --config=experiments/configs/tokenizers/commons_speech_tokenizer.py --workdir=DIR \
        --config.folder=COMMONS

COMMONS is a folder of `omnidiff data fetch commons` with `clips` (docs/commons.md). Sets have codes of the answering
voice alone: what is heard goes through the speech encoder. Unlike nano's, a code knows what was said before it, as in
the released model: natural words have no grid that they begin on. Goes on where it was stopped.
"""

from ml_collections import ConfigDict

from experiments.configs import commons_presets
from experiments.configs.tokenizers import speech_tokenizer


def get_config(preset: str = "") -> ConfigDict:
    config = speech_tokenizer.get_config()
    config.program = "commons_speech_tokenizer"
    config.folder = ""
    config.batch_size = 32  # pieces of `crop_codes` codes
    config.checkpoint_every = 500
    config.stages.train.steps = 14000
    config.stages.train.learning_rate = 1e-3
    config.training.crop_codes = 25
    config.training.validation_size = 100
    # Under a strong commitment features that know their neighbours fall together on few rows.
    config.training.quantizer.update({"commitment": 0.25, "restart": 1.0})
    model = config.training.model
    model.update({"width": 192, "ffn": 512, "layers": 4, "codebook_size": 1024})
    model.update({"pooling_position": 2, "quantize_position": 2})
    model.max_positions = 512  # 10 s
    model.block_size = 16  # a frame sees at most 320 ms ahead
    return commons_presets.apply(config, "commons_speech_tokenizer", preset)
