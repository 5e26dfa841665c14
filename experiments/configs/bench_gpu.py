"""The largest part of the 7B backbone that one GPU trains with AdamW: `--shrink_to_fit` takes layers away.

omnidiff bench train --config=experiments/configs/bench_gpu.py --shrink_to_fit --json
"""

from ml_collections import ConfigDict

from experiments.configs import dream7b


def get_config() -> ConfigDict:
    config = dream7b.get_config()
    config.batch_size = 4
    config.model.attention = "cudnn"
    return config
