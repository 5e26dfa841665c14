"""A 70B-class backbone: the dimensions of Qwen2.5-72B under Omni-Diffusion's vocabulary; the rest as `dream7b.py`."""

from ml_collections import ConfigDict

from experiments.configs import dream7b, slices


def get_config(slice_name: str = "") -> ConfigDict:
    config = dream7b.base()
    config.model.update({"width": 8192, "layers": 80, "heads": 64, "kv_heads": 8, "hidden": 29568})
    return slices.apply(config, "omni70b", slice_name) if slice_name else config
