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

import dataclasses
import json
import sys
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.common import Command
from experiments.programs.omni import (
    check_config,
    decoding_settings,
    frozen_optimizer,
    no_data,
    omni_program,
    packing_config,
)
from experiments.programs.run import loop_config, stage_plans
from experiments.programs.scaling import record
from experiments.programs.tokenizers import Sizes, config_sizes
from omnidiff_jax.config import build
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.attention import BACKENDS
from omnidiff_jax.models.flops import kept_projections
from omnidiff_jax.preflight.advice import Settings, advise, per_device
from omnidiff_jax.preflight.jobs import sample_job, train_job
from omnidiff_jax.preflight.report import Job, Report, compile_job
from omnidiff_jax.preflight.targets import GIB, Target, parse_target, prepare, target_mesh
from omnidiff_jax.sharding.mesh import MeshConfig
from omnidiff_jax.training.layout import abstract_state
from omnidiff_jax.training.optimizer import split_params

COMMAND = Command("preflight", __doc__)
CONFIG = COMMAND.config("experiments/configs/dream7b.py")
TOPOLOGY = COMMAND.string("topology", "v5p:4x4x4, v6e:8x8*2, h100:8x4, cpu:8 (default: the config's slice)")
WHAT = COMMAND.choice("what", "the program", ("train", "sample"), default="train")
TASK = COMMAND.string("task", "whose decoding settings the sampler is compiled with", default="t2i")
ROWS = COMMAND.integer("rows", "canvases of the sampler, all devices together (default: one a device)", minimum=1)
LENGTH = COMMAND.integer("length", "positions of a canvas", default=384, minimum=8)
ANSWER = COMMAND.integer("answer", "positions to generate in a canvas", default=258, minimum=1)
RECORD = COMMAND.string("record", "Markdown file whose table gets this result as a row, such as docs/scaling.md")
JSON = COMMAND.switch("json", "ends with one line of JSON")


def run() -> None:
    config = CONFIG.value
    topology = TOPOLOGY.value or config.get("slice", "")
    if not topology:
        raise UserError("--topology is missing: --topology=v5p:4x4x4, or a config with a preset (dream7b.py:v5p:4x4x4)")
    asked = Sampling(str(TASK.value), ROWS.value or 0, int(LENGTH.value or 384), int(ANSWER.value or 258))
    result = preflight(config, topology, str(WHAT.value), asked)
    print(render(result))
    if RECORD.value:
        record(RECORD.value, CONFIG.name, result)
    if JSON.value:
        print(json.dumps(result))
    if not result["fits"] or result["logits_collectives"]:
        sys.exit(3)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What the sampler is compiled for: a task, canvases (0 = one a shard), positions of a canvas and of its answer."""

    task: str = "t2i"
    rows: int = 0
    length: int = 384
    answer: int = 258


def preflight(
    config: ConfigDict, topology: str, what: str = "train", sampling: Sampling = Sampling()
) -> dict[str, Any]:
    """Compiles a config's program for a topology; the result is what `--json` prints."""
    check_config(config)
    target = parse_target(topology)
    prepare(target)
    if target.stand_in or (target.kind == "cpu" and BACKENDS[config.model.attention].home):
        config = config.copy_and_resolve_references()
        config.model.attention = "chunked"
    mesh = target_mesh(build(MeshConfig, config.mesh, "config.mesh"), target)
    sizes = config_sizes(config)
    job, settings = _train(config, sizes, mesh) if what == "train" else (_sample(config, sizes, mesh, sampling), None)
    report = compile_job(job, target)
    return _result(config, target, mesh, job, report, settings, sampling)


def _train(config: ConfigDict, sizes: Sizes, mesh: Mesh) -> tuple[Job, Settings]:
    program = omni_program(config, sizes, mesh, no_data)
    loop, optimizer, stages = loop_config(config), frozen_optimizer(config), stage_plans(config)
    packing = packing_config(config, sizes)
    job = train_job(program, loop, optimizer, stages, mesh, rows=config.batch_size, packing=packing)
    with jax.set_mesh(mesh):
        state = abstract_state(program, loop, optimizer, stages, mesh)
    backbone = program.model.backbone
    rows = config.batch_size // loop.accumulate // program.loss_config.groups
    ways = {axis: mesh.shape[axis] if axis in config.sharding else 1 for axis in ("tensor", "sequence")}
    positions = rows * packing.length / ways["sequence"]
    return job, Settings(
        remat=backbone.remat,
        attention=backbone.attention,
        rows=rows,
        accumulate=loop.accumulate,
        chunk=program.loss_config.chunk,
        vocabulary=backbone.vocab_size // ways["tensor"],
        width=backbone.width,
        trainable=per_device(split_params(state.params, optimizer.frozen)[0]),
        dots=positions * kept_projections(backbone, ways["tensor"]) * jnp.dtype(backbone.dtype).itemsize,
        optimizer=optimizer,
        sharding=config.sharding,
    )


def _sample(config: ConfigDict, sizes: Sizes, mesh: Mesh, asked: Sampling) -> Job:
    program = omni_program(config, sizes, mesh, no_data)
    decoding = decoding_settings(config)
    if asked.task not in decoding:
        raise UserError(f"unknown task {asked.task!r}; known: {', '.join(decoding)}")
    backbone = dataclasses.replace(program.model.backbone, remat="none")
    return sample_job(
        dataclasses.replace(program.model, backbone=backbone),
        decoding[asked.task].sampler,
        mesh,
        rows=asked.rows or mesh.shape["data"] * mesh.shape["fsdp"],
        length=asked.length,
        answer=asked.answer,
        strategy=config.sharding,
        mask_id=sizes.vocabulary.mask,
    )


def _result(
    config: ConfigDict,
    target: Target,
    mesh: Mesh,
    job: Job,
    report: Report,
    settings: Settings | None,
    sampling: Sampling,
) -> dict[str, Any]:
    devices = "CPU devices in place of GPUs (attention chunked)" if target.stand_in else target.kind
    return {
        "what": job.name,
        "topology": target.topology,
        "devices": target.devices,
        "compiled_for": devices,
        "sharding": config.sharding,
        "mesh": {name: size for name, size in mesh.shape.items() if size > 1},
        "attention": config.model.attention,
        "remat": config.model.remat,
        "batch_size": config.batch_size,
        "length": config.data.length if job.name == "train" else sampling.length,
        "accumulate": config.accumulate,
        "fits": report.fits,
        "peak_bytes_per_device": int(report.peak_bytes),
        "device_bytes": int(report.device_bytes),
        "argument_bytes_per_device": int(report.argument_bytes),
        "flops_per_device": report.flops_per_device,
        "useful_flops_per_device": report.useful_flops_per_device,
        "bytes_accessed_per_device": report.bytes_accessed,
        "collectives": None if report.collectives is None else [dataclasses.asdict(c) for c in report.collectives],
        "logits_collectives": [dataclasses.asdict(c) for c in report.logits],
        "roofline_seconds": report.seconds,
        "step_seconds_estimate": report.step_seconds,
        "mfu_ceiling": report.mfu_ceiling,
        "compile_seconds": report.compile_seconds,
        "problem": report.problem,
        "advice": advise(report, settings, target) if settings else [],
    }


def render(result: dict[str, Any]) -> str:
    """A result for reading."""
    r = result
    mesh = " ".join(f"{name}={size}" for name, size in r["mesh"].items()) or "one device"
    used = r["peak_bytes_per_device"] / GIB
    lines = [
        f"{r['what']} on {r['topology']}: {r['devices']} devices, {r['sharding']} ({mesh}), "
        f"attention {r['attention']}, remat {r['remat']}, {r['batch_size']} rows of {r['length']}",
        f"  memory      {used:.2f} of {r['device_bytes'] / GIB:.2f} GiB a device "
        f"({r['argument_bytes_per_device'] / GIB:.2f} of it arguments): {'fits' if r['fits'] else 'DOES NOT FIT'}",
        f"  operations  {r['flops_per_device'] / 1e12:.1f} T a device in matrix products "
        f"({r['useful_flops_per_device'] / 1e12:.1f} T without recomputation)",
    ]
    if r["bytes_accessed_per_device"] is not None:
        lines.append(f"  traffic     {r['bytes_accessed_per_device'] / 1e9:.1f} GB a device to and from memory")
    bounds = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in r["roofline_seconds"].items())
    least = f"at least {r['step_seconds_estimate']:.3g} s ({bounds})"
    lines.append(f"  a step      {least}; MFU at most {r['mfu_ceiling']:.0%}")
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for c in r["collectives"] or ():
        totals[c["kind"]][0] += c["count"]
        totals[c["kind"]][1] += c["bytes"]
    for kind, (count, moved) in sorted(totals.items(), key=lambda item: -item[1][1]):
        lines.append(f"  {kind:<19} {count:>6.0f} a step, {moved / 1e9:.3f} GB sent by a device")
    for c in (r["collectives"] or ())[:5]:
        where = f"among {c['group']}{' between slices' if c['crosses'] else ''}"
        size = f"{c['count']:.0f} times, {c['bytes'] / 1e9:.3f} GB"
        lines.append(f"    {c['kind']} of {c['shape'][:60]} {where}: {size}")
    if r["what"] == "train" and r["collectives"] is not None:
        found = "; ".join(f"{c['kind']} of {c['shape']}" for c in r["logits_collectives"])
        lines.append(f"  whole-vocabulary logits between devices: {found or 'none'}")
    if r["problem"]:
        lines.append(f"  the compiler: {r['problem']}")
    lines += [f"  {'there is room for' if r['fits'] else 'would help'}: {line}" for line in r["advice"]]
    lines.append(f"  compiled in {r['compile_seconds']:.0f} s for {r['compiled_for']}")
    return "\n".join(lines)


if __name__ == "__main__":
    COMMAND.main(run)
