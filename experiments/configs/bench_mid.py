"""The mid-size comparison: a Qwen2-shaped backbone under the released vocabulary, small enough for two CPU cores.

omnidiff bench train --config=experiments/configs/bench_mid.py
omnidiff bench train --config=experiments/configs/bench_mid.py --against=torch
"""

from ml_collections import ConfigDict

from experiments.configs import dream7b


def get_config() -> ConfigDict:
    config = dream7b.get_config()
    config.batch_size = 2
    config.dtype = "float32"
    config.loss.chunk = 256
    config.model.update(
        {
            "width": 512,
            "layers": 8,
            "heads": 8,
            "kv_heads": 2,
            "head_dim": 64,
            "hidden": 2688,
            "attention": "xla",
            "remat": "full",
        }
    )
    config.data.update({"length": 1024, "samples": 32})
    return config
