"""The largest part of the 7B backbone that one GPU trains with AdamW: `--shrink_to_fit` takes layers away.

omnidiff bench train --config=experiments/configs/bench_gpu.py:dots --shrink_to_fit     nothing computed twice
omnidiff bench train --config=experiments/configs/bench_gpu.py:full --shrink_to_fit     the most layers
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import dream7b
from omnidiff_jax.config import choose

# Projections of 2 x 3072 positions are 17 GB of 28 layers; the first moment in bfloat16 makes as much room.
SETTINGS: dict[str, dict[str, Any]] = {
    "dots": {"rows": 2, "moment_dtype": "bfloat16"},
    "full": {"rows": 4, "moment_dtype": "float32"},
}


def get_config(remat: str = "dots") -> ConfigDict:
    config = dream7b.get_config()
    chosen = choose(SETTINGS, remat, "setting of bench_gpu")
    config.batch_size = chosen["rows"]
    config.optimizer.moment_dtype = chosen["moment_dtype"]
    config.model.attention = "cudnn"
    config.model.remat = remat
    return config
