"""Converts checkpoints between the released form and Orbax, streaming: memory does not grow with the model.

omnidiff convert --from=released --to=orbax SRC DST
omnidiff convert --from=released --to=orbax --mesh=fsdp=8 --dtype=float32 SRC DST
omnidiff convert --from=orbax --to=released SRC DST
omnidiff convert --from=run --to=released --dtype=bfloat16 WORKDIR DST
omnidiff convert --from=run --to=released --dtype=int8 WORKDIR DST

The released form is a folder of config.json and *.safetensors (one, or shards with an index), *.bin or *.pt; the
Orbax form is what StandardCheckpointer().restore(DST) reads; a run is the newest checkpoint of a training workdir.
What is converted is told from the tensors' names.
"""

import re
import sys
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from experiments.common import Command
from omnidiff_jax.conversion.arrays import ABOUT
from omnidiff_jax.conversion.components import COMPONENTS
from omnidiff_jax.conversion.parts import Summary
from omnidiff_jax.conversion.to_orbax import Layout, to_orbax
from omnidiff_jax.conversion.to_released import SHARD, to_released
from omnidiff_jax.errors import UserError
from omnidiff_jax.fetching import local_copy
from omnidiff_jax.files import written
from omnidiff_jax.runs.stored import export_newest
from omnidiff_jax.sharding.rules import MESH_AXES, STRATEGIES

SOURCES = ("released", "orbax", "run")
TARGETS = ("released", "orbax")
DTYPES = {
    "keep": None,
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "int8": np.dtype(np.int8),
}

COMMAND = Command("convert", __doc__, arguments="SRC DST")
FROM = COMMAND.choice("from", "form of SRC", SOURCES, required=True)
TO = COMMAND.choice("to", "form of DST", TARGETS, required=True)
COMPONENT = COMMAND.choice("component", "what SRC is (default: told from its tensors)", tuple(COMPONENTS))
DTYPE = COMMAND.choice(
    "dtype", "of floating-point tensors; int8: matrices, with scales, in released files", tuple(DTYPES), "keep"
)
MESH = COMMAND.string("mesh", "cut the arrays for a device mesh, such as fsdp=8,tensor=2")
SHARDING = COMMAND.choice("sharding", "how the mesh splits parameters", tuple(STRATEGIES), "fsdp")
SHARD_SIZE = COMMAND.integer("shard_size", "most bytes of a safetensors file that is split anew", SHARD, minimum=1)
ALLOW_NAN = COMMAND.switch("allow_nan", "convert tensors that hold NaN or infinities")


def run(source: str, target: str) -> None:
    started, dtype = time.monotonic(), DTYPES[str(DTYPE.value)]
    if FROM.value == TO.value:
        raise UserError(f"--from and --to are both {FROM.value}; one must be released, the other orbax")
    if TO.value == "orbax" and FROM.value == "run":
        raise UserError("--from=run goes to the released form; convert that with --from=released --to=orbax")
    # Of a folder in a bucket the config is written last: until then it is no checkpoint.
    with written(target, ABOUT if TO.value == "orbax" else "config.json") as place:
        summary = convert(source, place, dtype)
    if summary.assumed:
        said = ", ".join(f"{name} = {value!r}" for name, value in summary.assumed.items())
        print(f"convert: neither tensors nor config tell {said}; assumed as released", file=sys.stderr)
    seconds = time.monotonic() - started
    rate = summary.bytes / 1e6 / max(seconds, 1e-9)
    print(f"{summary.component}: {summary.tensors} tensors, {summary.bytes / 1e9:.2f} GB, {rate:.0f} MB/s -> {target}")


def convert(source: str, target: Path, dtype: np.dtype | None) -> Summary:
    """Moves the weights as the flags say."""
    if TO.value == "orbax":
        if dtype == np.int8:
            raise UserError("--dtype=int8 is a form of released files; Orbax arrays are float32, bfloat16 or float16")
        return to_orbax(
            local_copy(source),
            target,
            component=COMPONENT.value,
            dtype=dtype,
            allow_nan=ALLOW_NAN.value,
            layout=Layout(parse_mesh(MESH.value), str(SHARDING.value)) if MESH.value else None,
        )
    if MESH.value:
        raise UserError(f"--mesh={MESH.value} cuts Orbax arrays; it has no meaning with --to=released")
    wanted: dict[str, Any] = {"dtype": dtype, "allow_nan": ALLOW_NAN.value, "shard_bytes": SHARD_SIZE.value or SHARD}
    if FROM.value == "run":
        return export_newest(source, target, **wanted)
    return to_released(local_copy(source), target, **wanted)


def parse_mesh(text: str) -> dict[str, int]:
    """Sizes by axis of "fsdp=8,tensor=2".

    Raises:
        UserError: an unknown axis, or a size that is not a positive number.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*=\s*([1-9]\d*)\s*", part)
        if not match or match[1] not in MESH_AXES or match[1] in sizes:
            raise UserError(f"--mesh={text} must be AXIS=SIZE,... with axes {', '.join(MESH_AXES)}, such as fsdp=8")
        sizes[match[1]] = int(match[2])
    return sizes


if __name__ == "__main__":
    COMMAND.main(run)
