"""The nano text tokenizer: SentencePiece over the sentences of Scenes; every word and every place is one piece.

    omnidiff train --config=experiments/configs/tokenizers/text.py --workdir=DIR

Takes two seconds. Byte pairs rather than unigram: over so few words unigram stops short of whole words. A place is one
thing said in two words; as one piece it is found by one look (docs/performance.md).
"""

from ml_collections import ConfigDict

from data_pipelines.scenes.scene import PLACES


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.program = "text_tokenizer"
    config.records = 400  # Scenes records of each task that the sentences are taken from
    config.tokenizer = ConfigDict({"kind": "bpe", "size": 768, "phrases": PLACES})
    return config
