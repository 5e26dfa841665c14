"""The text tokenizer of Commons: SentencePiece over its names, questions and definitions.

    omnidiff train --config=experiments/configs/tokenizers/commons_text.py --workdir=DIR --config.folder=COMMONS

COMMONS is a folder of `omnidiff data fetch commons`. Takes seconds.
"""

from ml_collections import ConfigDict

from experiments.configs import commons_presets


def get_config(preset: str = "") -> ConfigDict:
    config = ConfigDict()
    config.program = "commons_text_tokenizer"
    config.folder = ""
    config.records = 400  # of each written task that the sentences are taken from
    config.tokenizer = ConfigDict({"kind": "bpe", "size": 2048, "phrases": ()})
    return commons_presets.apply(config, "commons_text", preset)
