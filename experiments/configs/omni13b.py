"""A 13B-class backbone: the dimensions of Qwen2.5-14B under Omni-Diffusion's vocabulary; the rest as `dream7b.py`."""

from ml_collections import ConfigDict

from experiments.configs import dream7b, slices


def get_config(slice_name: str = "") -> ConfigDict:
    config = dream7b.base()
    config.model.update({"width": 5120, "layers": 48, "heads": 40, "kv_heads": 8, "hidden": 13824})
    return slices.apply(config, "omni13b", slice_name) if slice_name else config
