"""A config's train step or sampler compiled for devices that need not be there: what `omnidiff preflight` prints."""

import dataclasses
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from omnidiff_jax.codecs.tokenizers import Sizes, sizes
from omnidiff_jax.config import choose, to_dict
from omnidiff_jax.models.attention import BACKENDS
from omnidiff_jax.models.flops import kept_projections
from omnidiff_jax.preflight.advice import Settings, advise, per_device
from omnidiff_jax.preflight.jobs import sample_job, train_job
from omnidiff_jax.preflight.report import Job, Report, compile_job
from omnidiff_jax.preflight.targets import GIB, Target, parse_target, prepare, target_mesh
from omnidiff_jax.runs.config import RunConfig
from omnidiff_jax.runs.opening import open_without_data
from omnidiff_jax.sampling.candidates import RestrictedCandidates, Span
from omnidiff_jax.sharding.mesh import batch_parts
from omnidiff_jax.tasks.registry import task
from omnidiff_jax.training.layout import abstract_state
from omnidiff_jax.training.optimizer import split_params


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What the sampler is compiled for: a task, canvases (0 = one a shard), positions of a canvas and of its answer,
    and how the large matrices are held (`models.quantized`)."""

    task: str = "t2i"
    rows: int = 0
    length: int = 384
    answer: int = 258
    quantize: str = ""


def preflight(config: RunConfig, topology: str, what: str = "train", sampling: Sampling = Sampling()) -> dict[str, Any]:
    """Compiles a config's program for a topology; the result is what `--json` prints."""
    target = parse_target(topology)
    prepare(target)
    if target.stand_in or (target.kind == "cpu" and BACKENDS[config.model.attention].home):
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="chunked"))
    mesh = target_mesh(config.mesh, target)
    known = sizes(config.tokenizers)
    job, settings = _train(config, known, mesh) if what == "train" else (_sample(config, known, mesh, sampling), None)
    report = compile_job(job, target)
    return _result(config, target, mesh, job, report, settings, sampling)


def _train(config: RunConfig, known: Sizes, mesh: Mesh) -> tuple[Job, Settings]:
    run = open_without_data(config, known, mesh)
    program = run.program
    packing, optimizer = config.packing(known), config.optimizer_used
    job = train_job(run, packing)
    with jax.set_mesh(mesh):
        state = abstract_state(run)
    backbone = program.model.backbone
    rows = config.batch_size // config.accumulate // program.loss_config.groups
    ways = {axis: mesh.shape[axis] if axis in config.sharding else 1 for axis in ("tensor", "sequence")}
    positions = rows * packing.length / ways["sequence"]
    return job, Settings(
        remat=backbone.remat,
        attention=backbone.attention,
        rows=rows,
        accumulate=config.accumulate,
        chunk=program.loss_config.chunk,
        vocabulary=backbone.vocab_size // ways["tensor"],
        width=backbone.width,
        trainable=per_device(split_params(state.params, optimizer.frozen)[0]),
        dots=positions * kept_projections(backbone, ways["tensor"]) * jnp.dtype(backbone.dtype).itemsize,
        optimizer=optimizer,
        sharding=config.sharding,
    )


def _sample(config: RunConfig, known: Sizes, mesh: Mesh, asked: Sampling) -> Job:
    model, sampler = config.omni(known), choose(config.decoding, asked.task, "task").sampler
    codes, span = known.vocabulary.image, None
    if isinstance(sampler.candidates, RestrictedCandidates) and task(asked.task).answer in ("image", "hole"):
        span = Span(codes.start, codes.stop, True)
    return sample_job(
        dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, remat="none")),
        sampler,
        mesh,
        rows=asked.rows or batch_parts(mesh),
        length=asked.length,
        answer=asked.answer,
        strategy=config.sharding,
        mask_id=known.vocabulary.mask,
        span=span,
        quantize=asked.quantize,
    )


def _result(
    config: RunConfig,
    target: Target,
    mesh: Mesh,
    job: Job,
    report: Report,
    settings: Settings | None,
    sampling: Sampling,
) -> dict[str, Any]:
    devices = "CPU devices in place of GPUs (attention chunked)" if target.stand_in else target.kind
    decoding = config.decoding.get(sampling.task)
    return {
        "what": job.name,
        "task": None if job.name == "train" or decoding is None else sampling.task,
        "candidates": None if job.name == "train" or decoding is None else to_dict(decoding.sampler)["candidates"],
        "quantize": sampling.quantize if job.name != "train" else "",
        "topology": target.topology,
        "devices": target.devices,
        "compiled_for": devices,
        "sharding": config.sharding,
        "mesh": {name: size for name, size in mesh.shape.items() if size > 1},
        "attention": config.model.attention,
        "remat": config.model.remat,
        "batch_size": config.batch_size if job.name == "train" else sampling.rows or batch_parts(mesh),
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
