"""The speech decoder of Commons: codes of its speech tokenizer to 80-bin log-mel at 22.05 kHz, then Griffin-Lim.

    omnidiff train --config=experiments/configs/tokenizers/commons_speech_decoder.py --workdir=DIR \
        --config.folder=COMMONS --config.speech_tokenizer=CODES/export

COMMONS is a folder of `omnidiff data fetch commons` with `clips` (docs/commons.md), CODES the workdir of
`commons_speech_tokenizer.py`. Validates by the Whisper of COMMONS/whisper, if it is there. One voice, as in
`speech_decoder.py`, so the same choices. Goes on where it was stopped.
"""

from ml_collections import ConfigDict

from experiments.configs import commons_presets
from experiments.configs.tokenizers import speech_decoder


def get_config(preset: str = "") -> ConfigDict:
    config = speech_decoder.get_config()
    config.program = "commons_speech_decoder"
    config.folder = ""
    config.checkpoint_every = 500
    config.stages.train.steps = 6000
    config.stages.train.learning_rate = 1e-3
    config.speech_tokenizer = ""  # a folder: whose codes are learned
    config.joined = 2  # utterances of a row
    config.training.utterances = 3000
    config.training.validation_size = 24
    config.training.model.griffin_lim_iterations = 32
    flow = config.training.model.flow
    flow.update({"codes": 1024, "steps": 6})
    flow.update({"mel_mean": -4.9, "mel_std": 2.2})  # of the answering voice: -4.87 and 2.24
    flow.encoder.update({"width": 128, "hidden": 384, "layers": 3})
    flow.estimator.update({"channels": (128, 128), "mid_blocks": 2, "heads": 4})
    return commons_presets.apply(config, "commons_speech_decoder", preset)
