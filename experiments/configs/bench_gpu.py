"""What one GPU is measured on: as much of the 7B backbone as it trains with AdamW, and the whole of it sampled.

omnidiff bench train --config=experiments/configs/bench_gpu.py:dots --shrink_to_fit     nothing computed twice
omnidiff bench train --config=experiments/configs/bench_gpu.py:full --shrink_to_fit     the most layers
omnidiff bench sampler --config=experiments/configs/bench_gpu.py:sampler                random weights
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import dream7b
from omnidiff_jax.config import choose

# Projections of 2 x 3072 positions are 17 GB of 28 layers; the first moment in bfloat16 makes as much room.
# Rows of 300 positions are too short for cuDNN to matter.
SETTINGS: dict[str, dict[str, Any]] = {
    "dots": {"rows": 2, "moment_dtype": "bfloat16", "remat": "dots", "attention": "cudnn"},
    "full": {"rows": 4, "moment_dtype": "float32", "remat": "full", "attention": "cudnn"},
    "sampler": {"rows": 1, "moment_dtype": "float32", "remat": "none", "attention": "xla"},
}


def get_config(setting: str = "dots") -> ConfigDict:
    config = dream7b.get_config()
    chosen = choose(SETTINGS, setting, "setting of bench_gpu")
    config.batch_size = chosen["rows"]
    config.optimizer.moment_dtype = chosen["moment_dtype"]
    config.model.attention = chosen["attention"]
    config.model.remat = chosen["remat"]
    return config
