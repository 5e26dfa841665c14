"""The HiFT vocoder of Commons, for the natural voice that answers.

    omnidiff train --config=experiments/configs/tokenizers/commons_vocoder.py --workdir=DIR \
        --config.folder=COMMONS --config.speech_decoder=MEL/export

COMMONS is a folder of `omnidiff data fetch commons` with `clips` (docs/commons.md), MEL the workdir of
`commons_speech_decoder.py`; DIR/export is that decoder with this vocoder. Sizes are those of `vocoder.py`. Validates by
the Whisper of COMMONS/whisper, if it is there, with Griffin-Lim beside it. Goes on where it was stopped.
"""

from ml_collections import ConfigDict

from experiments.configs import commons_presets
from experiments.configs.tokenizers import vocoder


def get_config(preset: str = "") -> ConfigDict:
    config = vocoder.get_config()
    config.program = "commons_vocoder"
    config.folder = ""
    config.speech_decoder = ""  # a folder: whose spectrograms are made audible
    config.training.utterances = 1500
    return commons_presets.apply(config, "commons_vocoder", preset)
