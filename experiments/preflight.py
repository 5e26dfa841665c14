"""Compiles the real train step, or the sampler, for devices that need not be there, and says whether it fits.

    omnidiff preflight --config=experiments/configs/dream7b.py --topology=v5p:4x4x4
    omnidiff preflight --config=experiments/configs/dream7b.py:v6e:8x8          (a preset: its mesh, its slice)
    omnidiff preflight --config=experiments/configs/nano.py --topology=cpu:8 --what=sample

Topologies: v5e, v5p and v6e slices (v5p:4x4x4, v5e:16x16*2 for two slices), GPU nodes (h100:8, h200:8x4) and cpu:N.
TPU programs are compiled by libtpu (extra `tpu`, no TPU needed). GPU programs are partitioned as they would be, but
compiled for as many virtual CPU devices, with chunked attention in place of cuDNN: their memory is an estimate, on the
high side. Nothing is executed. Operations are those of matrix products in the traced program, bytes and collectives
those of the compiled one, loops counted as often as they run; the time is what no run can undercut. With --json the
last line is one JSON object. Exit status: 0 = fits and moves no whole-vocabulary logits between devices, 3 = does not.
"""

import json
import sys

from experiments.common import Command
from experiments.named_model import quantize_flag
from omnidiff_jax.errors import UserError
from omnidiff_jax.preflight.compile import Sampling, preflight, render
from omnidiff_jax.preflight.table import record
from omnidiff_jax.runs.config import run_config

COMMAND = Command("preflight", __doc__)
CONFIG = COMMAND.config("experiments/configs/dream7b.py")
TOPOLOGY = COMMAND.string("topology", "v5p:4x4x4, v6e:8x8*2, h100:8x4, cpu:8 (default: the config's slice)")
WHAT = COMMAND.choice("what", "the program", ("train", "sample"), default="train")
TASK = COMMAND.string("task", "whose decoding settings the sampler is compiled with", default="t2i")
ROWS = COMMAND.integer("rows", "canvases of the sampler, all devices together (default: one a device)", minimum=1)
LENGTH = COMMAND.integer("length", "positions of a canvas", default=384, minimum=8)
ANSWER = COMMAND.integer("answer", "positions to generate in a canvas", default=258, minimum=1)
QUANTIZE = quantize_flag(COMMAND)
RECORD = COMMAND.string("record", "Markdown file whose table gets this result as a row, such as docs/scaling.md")
JSON = COMMAND.switch("json", "ends with one line of JSON")


def run() -> None:
    config = run_config(CONFIG.value)
    topology = TOPOLOGY.value or config.slice
    if not topology:
        raise UserError("--topology is missing: --topology=v5p:4x4x4, or a config with a preset (dream7b.py:v5p:4x4x4)")
    asked = Sampling(
        str(TASK.value), ROWS.value or 0, int(LENGTH.value or 384), int(ANSWER.value or 258), QUANTIZE.value or ""
    )
    result = preflight(config, topology, str(WHAT.value), asked)
    print(render(result))
    if RECORD.value:
        record(RECORD.value, CONFIG.name, result)
    if JSON.value:
        print(json.dumps(result))
    if not result["fits"] or result["logits_collectives"]:
        sys.exit(3)


if __name__ == "__main__":
    COMMAND.main(run)
