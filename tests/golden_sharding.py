"""How the full-size train states lie on the meshes of the presets, as tests/golden/sharding/*.json record it.

python tests/golden_sharding.py        writes them anew, after a rule or a preset was changed on purpose
"""

import json
import math
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType

FOLDER = Path(__file__).parent / "golden" / "sharding"
sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments.common import load_config  # noqa: E402
from experiments.configs.slices import PRESETS  # noqa: E402
from omnidiff_jax.codecs.tokenizers import Sizes  # noqa: E402
from omnidiff_jax.runs.config import run_config  # noqa: E402
from omnidiff_jax.runs.opening import open_without_data  # noqa: E402
from omnidiff_jax.sharding.mesh import mesh_shape  # noqa: E402
from omnidiff_jax.sharding.rules import MESH_AXES  # noqa: E402
from omnidiff_jax.training.layout import abstract_state  # noqa: E402
from omnidiff_jax.training.optimizer import split_params  # noqa: E402

# name -> (config, overrides, devices)
CASES: dict[str, tuple[str, tuple[str, ...], int]] = {
    "dream7b.fsdp_sequence": (
        "dream7b.py",
        ("--config.sharding=fsdp_sequence", "--config.mesh.fsdp=16", "--config.mesh.sequence=4"),
        64,
    ),
    "dream7b.fsdp_tensor_sequence": (
        "dream7b.py",
        (
            "--config.sharding=fsdp_tensor_sequence",
            "--config.mesh.fsdp=8",
            "--config.mesh.tensor=4",
            "--config.mesh.sequence=2",
        ),
        64,
    ),
    **{
        f"{model}.{name.replace(':', '-')}": (
            f"{model}.py:{name}",
            (),
            math.prod(map(int, name.split(":")[1].split("x"))),
        )
        for model, rows in PRESETS.items()
        for name in rows
    },
}


def describe(case: str) -> dict:
    """Mesh, rule table, bytes of state on a device, and of every parameter its shape, dtype and mesh axes."""
    file, overrides, devices = CASES[case]
    config = run_config(load_config(f"experiments/configs/{file}", overrides))
    inner, outer = mesh_shape(config.mesh, devices)
    sizes = [a * b for a, b in zip(inner, outer, strict=True)]
    mesh = AbstractMesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    optimizer = config.optimizer_used
    state = abstract_state(open_without_data(config, Sizes(), mesh))
    parameters = split_params(state.params, ())[0]
    trained = split_params(state.params, optimizer.frozen)[0]
    moments = state.opt_state[1][0]
    for moment in (moments.mu, moments.nu):
        assert {k: v.sharding for k, v in moment.items()} == {k: v.sharding for k, v in trained.items()}
    leaves = jax.tree.leaves(state)
    on_device = [math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize for x in leaves]
    return {
        "mesh": dict(zip(MESH_AXES, sizes, strict=True)),
        "sharding": config.sharding,
        "state_bytes_per_device": sum(on_device),
        "parameters": {
            name: f"{x.dtype}{list(x.shape)} over {[p or None for p in x.sharding.spec]}"
            for name, x in sorted(parameters.items())
        },
    }


def write() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        (FOLDER / f"{case}.json").write_text(json.dumps(describe(case), indent=1) + "\n", encoding="utf-8")
        print(FOLDER / f"{case}.json")


if __name__ == "__main__":
    write()
