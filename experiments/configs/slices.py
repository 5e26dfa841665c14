"""Presets per common slice or node: what differs from a model's config there. One table for all models.

`--config=experiments/configs/dream7b.py:v5p:4x4x4` applies a row. A row is the mesh, the rule table and the knobs of
memory; attention follows from the kind of device. docs/scaling.md has what the rows come to (`make scaling`).
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from omnidiff_jax.config import choose

ATTENTION = {"v5e": "splash", "v5p": "splash", "v6e": "splash", "h100": "cudnn", "h200": "cudnn"}


def _row(
    sharding: str = "fsdp", remat: str = "dots", accumulate: int = 1, nodes: int = 1, **mesh: int
) -> dict[str, Any]:
    """`nodes`: parts of the batch that lie on nodes of their own, so that only gradients go between them."""
    dcn = {"dcn": {"data": nodes}} if nodes > 1 else {}
    return {"sharding": sharding, "remat": remat, "accumulate": accumulate, "mesh": mesh} | dcn


# `data=2` or `tensor` keep a shard of the width (3584, 5120, 8192) a multiple of 16 rows, a TPU's tile; 3584 / 64 = 56
# is none, and was gathered by all-reduce (docs/scaling.md). Layers are computed twice ("full") where memory asks it.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "dream7b": {
        "v5e:16x16": _row("fsdp_tensor", data=2, fsdp=32, tensor=4),
        "v5p:4x4x4": _row(data=2, fsdp=32),
        "v6e:8x8": _row("fsdp_tensor", fsdp=32, tensor=2),
        "h100:8x8": _row(fsdp=8, nodes=8),
        "h200:8x8": _row(fsdp=8, nodes=8),
    },
    "omni13b": {
        "v5e:16x16": _row("fsdp_tensor", fsdp=64, tensor=4),
        "v5p:4x4x4": _row("fsdp_tensor", fsdp=32, tensor=2),
        "v6e:16x16": _row("fsdp_tensor", fsdp=64, tensor=4),
        "h100:8x8": _row(remat="full", fsdp=8, nodes=8),
        "h200:8x8": _row(fsdp=8, nodes=8),
    },
    "omni70b": {
        "v5e:16x16": _row("fsdp_tensor", "full", accumulate=4, fsdp=32, tensor=8),
        "v5p:8x8x8": _row("fsdp_tensor", fsdp=128, tensor=4),
        "v6e:16x16": _row("fsdp_tensor", "full", fsdp=64, tensor=4),
        "h100:8x8": _row("fsdp_tensor", "full", accumulate=4, fsdp=8, tensor=8),
        "h200:8x8": _row("fsdp_tensor", "full", accumulate=2, fsdp=8, tensor=8),
    },
}


def apply(config: ConfigDict, model: str, slice_name: str) -> ConfigDict:
    """Writes the row of a model and slice into the model's config.

    Raises:
        UserError: no such row; the nearest is named.
    """
    row = choose(PRESETS[model], slice_name, f"slice of {model}")
    config.slice = slice_name
    config.sharding, config.accumulate = row["sharding"], row["accumulate"]
    mesh: Mapping[str, int] = row["mesh"]
    config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1} | dict(mesh))
    config.mesh.dcn.update(row.get("dcn", {}))
    config.model.remat = row["remat"]
    config.model.attention = ATTENTION[slice_name.partition(":")[0]]
    return config
