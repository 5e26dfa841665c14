"""Measures speed, with its floor beside it: `bench train`, `bench input`, `bench sampler` and `bench checkpoint`.

    omnidiff bench train --config=experiments/configs/bench_mid.py                   MFU against measured products
    omnidiff bench train --config=experiments/configs/bench_mid.py --against=torch   beside plain PyTorch, in turn
    omnidiff bench train --config=experiments/configs/bench_gpu.py:dots --shrink_to_fit    what fits this GPU
    omnidiff bench input --config=experiments/configs/dream7b.py                     tokens/s a core, how full rows are
    omnidiff bench sampler --config=experiments/configs/bench_mid.py --sampler_steps=50    an image, in variants
    omnidiff bench sampler --setting=s2i --variants=exact,released --torch_python=PYTHON       two of them
    omnidiff bench checkpoint --config=experiments/configs/bench_mid.py --folder=DIR       how long training stands

`train` measures the config's backbone under the released vocabulary, without a speech encoder, on one packed batch of
a long-tailed mixture. MFU counts the layers, the head and full attention at every position that holds something; what
this code skips (unmasked positions' logits, other segments' keys) it is credited with, as other stacks are.

`sampler` fills the same answers with the same random weights in each variant, in turn: `released`, the released
algorithm in plain PyTorch (where --torch_python has it); `released-style`, the same in plain JAX; `exact`, our sampler
of it; `rolled`, with the layers in a loop; `allowed`, where only tokens of the answer's kind may stand, and
`restricted`, which computes no others; `fast`, which reveals whatever it is sure of; `cached`, with the prompt's keys
and values kept; `int8`, weights and activations in eight bits; `batch8`, eight answers at once; `engine`, eight slots
under a Poisson stream of mixed requests. All take the most likely token. With --released_steps `released` takes some of
its steps, on the canvases of `exact`, and its time is extrapolated. A floor is that of all positions at every step.
"""

import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

from experiments.common import Command
from omnidiff_jax.benchmarks.backbone import (
    TORCH_STEP,
    VOCABULARY,
    backbone_config,
    backbone_trainer,
    loading,
    torch_settings,
)
from omnidiff_jax.benchmarks.checkpoint import bench_checkpoint
from omnidiff_jax.benchmarks.fillers import Work, random_params
from omnidiff_jax.benchmarks.input import H200_TOKENS_PER_SECOND, bench_input
from omnidiff_jax.benchmarks.matmul import matmul_flops, memory_bandwidth
from omnidiff_jax.benchmarks.sampler import VARIANTS, SamplerSpeed, bench_sampler, choose_variants
from omnidiff_jax.benchmarks.settings import SETTINGS
from omnidiff_jax.benchmarks.train import Trainer, TrainSpeed, device_bytes, measure, peak_bytes
from omnidiff_jax.benchmarks.versus import Side, compare
from omnidiff_jax.buckets import is_remote
from omnidiff_jax.config import choose
from omnidiff_jax.errors import UserError
from omnidiff_jax.runs.config import RunConfig, run_config

COMMAND = Command("bench", __doc__, arguments="WHAT")
CONFIG = COMMAND.config("experiments/configs/bench_mid.py")
STEPS = COMMAND.integer("steps", "steps measured, after two to warm up", 5, minimum=1)
AGAINST = COMMAND.choice("against", "what runs beside the training step", ("torch",))
TORCH_PYTHON = COMMAND.string("torch_python", "the interpreter that has torch, where it is not this one")
SHRINK = COMMAND.switch("shrink_to_fit", "take layers away until the step fits the device's memory")
BATCHES = COMMAND.integer("batches", "batches measured by `input`", 20, minimum=1)
EXAMPLES = COMMAND.integer("examples", "distinct samples of `input`'s set", 4000, minimum=1)
SETTING = COMMAND.choice("setting", "what `sampler` fills", tuple(SETTINGS), default="t2i")
CHOSEN = COMMAND.string(
    "variants", f"of `sampler`, with commas between; all that run if left out: {', '.join(VARIANTS)}"
)
RELEASED_STEPS = COMMAND.integer("released_steps", "steps that `released` takes, evenly spaced; 0 = all", 0, minimum=0)
REQUESTS = COMMAND.integer("requests", "of `engine`'s stream", 200, minimum=1)
SAMPLER_STEPS = COMMAND.integer("sampler_steps", "steps of `sampler`", default=10, minimum=1)
CALLS = COMMAND.integer("calls", "calls measured by `sampler`", default=3, minimum=1)
SAVES = COMMAND.integer("saves", "saves measured by `checkpoint`", 3, minimum=1)
FOLDER = COMMAND.string(
    "folder",
    "of `checkpoint` and `input`, on the storage to be measured, for `input` also a bucket (default: the "
    "system's for temporary files)",
)
CONSUMPTION = COMMAND.number("consumption", "tokens/s that the device uses up", H200_TOKENS_PER_SECOND)
JSON = COMMAND.switch("json", "end with one line of JSON")
SIDE = COMMAND.switch("side", "used by --against: one of the two processes")


def run(what: str) -> None:
    benchmarks = {"train": train, "input": read, "sampler": fill, "checkpoint": save}
    result = choose(benchmarks, what, "benchmark")(run_config(CONFIG.value))
    if JSON.value and result is not None:
        print(json.dumps(result))


def train(config: RunConfig) -> dict | None:
    if SIDE.value:
        step_by_step(config)
        return None
    if AGAINST.value:
        return versus(config)
    ceiling = matmul_flops(config.dtype)
    try:
        trainer, layers, compile_seconds = fitting(config)
        speed = measure(trainer, STEPS.value or 1, layers, compile_seconds, ceiling)
    except jax.errors.JaxRuntimeError as error:
        layers = config.model.layers - 1
        if "RESOURCE_EXHAUSTED" not in str(error) or not SHRINK.value or not layers:
            raise
        # The plan fitted, the allocator's pieces did not. A new process has neither those nor their peak.
        print(f"out of memory; {layers} layers next", file=sys.stderr, flush=True)
        words = [word for word in sys.argv[1:] if not word.startswith("--config.model.layers=")]
        command = [sys.executable, "-m", "experiments.bench", *words, f"--config.model.layers={layers}"]
        os.execv(sys.executable, command)
    print(describe(speed))
    return dataclasses.asdict(speed)


def fitting(config: RunConfig) -> tuple[Trainer, int, float]:
    """The compiled trainer, with fewer layers where asked to and needed; its layers, and the seconds of compiling."""
    limit = device_bytes()
    if SHRINK.value and limit is None:
        raise UserError("--shrink_to_fit: this device does not tell how much memory it has; leave the flag out")
    while True:
        trainer = backbone_trainer(config)
        seconds, needed = trainer.compile()
        if limit is None or needed <= limit:
            return trainer, config.model.layers, seconds
        layers = config.model.layers
        print(f"{layers} layers need {needed / 2**30:.1f} GiB of {limit / 2**30:.1f}", file=sys.stderr, flush=True)
        if not SHRINK.value or layers == 1:
            raise UserError(
                f"config.model.layers = {layers} needs {needed / 2**30:.1f} GiB, the device has {limit / 2**30:.1f}; "
                "use fewer, or --shrink_to_fit"
            )
        # What a layer takes tells how many are too many.
        fewer = max(1, min(layers - 1, int(layers * limit / needed) + 1))
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, layers=fewer))


def describe(speed: TrainSpeed) -> str:
    return (
        f"{speed.tokens_per_second:.0f} tokens/s, {speed.step_seconds:.3f} s a step of {speed.tokens} tokens, "
        f"{speed.layers} layers, {speed.devices} x {speed.device}\n"
        f"MFU {speed.mfu:.1%} of {speed.matmul_flops_measured / 1e12:.2f} TFLOP/s a device (measured matrix products)"
        f"{'' if speed.mfu_of_peak is None else f', {speed.mfu_of_peak:.1%} of the data sheet'}; "
        f"{speed.flops_per_step / 1e12:.2f} TFLOP a step: {speed.flops_count}\n"
        f"peak memory {speed.peak_bytes / 2**30:.2f} GiB, compiled in {speed.compile_seconds:.1f} s, "
        f"{speed.recompilations} recompilations after step 2"
    )


def step_by_step(config: RunConfig) -> None:
    """Our side of `--against`."""
    trainer = backbone_trainer(config)
    trainer.compile()  # as `fitting` does: a compiler beside the state would be counted as the step's memory
    trainer.start()
    print(json.dumps({"ready": f"jax {jax.__version__}"}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"seconds": trainer.step()}), flush=True)
    print(json.dumps({"peak_bytes": peak_bytes()}), flush=True)


def versus(config: RunConfig) -> dict:
    if config.accumulate != 1:
        raise UserError(f"--against=torch takes whole batches; config.accumulate = {config.accumulate} must be 1")
    threads = len(os.sched_getaffinity(0))
    mine = ("--against", "--json", "--torch_python")
    words = [word for word in sys.argv[1:] if not word.startswith(mine) and word != "train"]
    ours = [sys.executable, "-m", "experiments.bench", "train", "--side", *words]
    python = TORCH_PYTHON.value or sys.executable
    theirs = [python, str(TORCH_STEP), json.dumps(torch_settings(config, threads))]
    sides = [Side("jax", ours), Side("torch", theirs)]
    result = compare(sides, STEPS.value or 1)
    jax_side, torch_side = result["jax"], result["torch"]
    ratio = torch_side["step_seconds"] / jax_side["step_seconds"]
    memory = jax_side["peak_bytes"] / torch_side["peak_bytes"]
    for name, side in result.items():
        print(f"{name:6} {side['step_seconds']:.2f} s a step, {side['peak_bytes'] / 2**30:.2f} GiB  ({side['ready']})")
    print(f"{ratio:.2f} times as fast, {memory:.0%} of the memory; {threads} cores, {STEPS.value} steps each, in turn")
    return {"sides": result, "times_as_fast": ratio, "share_of_memory": memory}


def read(config: RunConfig) -> dict:
    with _place() as folder:
        speed = bench_input(
            folder,
            VOCABULARY,
            loading(config),
            BATCHES.value or 1,
            EXAMPLES.value or 1,
            float(CONSUMPTION.value or H200_TOKENS_PER_SECOND),
        )
    print(
        f"{speed.tokens_per_second_per_core:.0f} tokens/s, {speed.examples_per_second_per_core:.0f} samples/s a core; "
        f"rows of {config.data.length} are {speed.packing_efficiency:.2%} full\n"
        f"eight cores supply {speed.times_consumption:.0f} times the {speed.consumption:.0f} tokens/s of the device"
    )
    if speed.fetch_seconds:
        first = speed.first_pass_tokens_per_second_per_core
        print(f"{speed.fetch_seconds:.2f} s of a core to fetch the set: {first:.0f} tokens/s a core in the first pass")
    return dataclasses.asdict(speed)


@contextlib.contextmanager
def _place() -> Iterator[str]:
    """A folder of `--folder` for a set; in a bucket it stays there."""
    if is_remote(FOLDER.value or ""):
        yield str(FOLDER.value)
        return
    with tempfile.TemporaryDirectory(dir=FOLDER.value) as folder:
        yield folder


def fill(config: RunConfig) -> dict:
    """A setting's answers filled in by the config's backbone, in variants."""
    python = TORCH_PYTHON.value or sys.executable
    names = [name.strip() for name in (CHOSEN.value or "").split(",") if name.strip()]
    chosen, left_out = choose_variants(names, python)
    for why in left_out:
        print(f"left out: {why}", file=sys.stderr, flush=True)
    backbone, setting = backbone_config(config), str(SETTING.value)
    work = Work(
        SETTINGS[setting],
        SAMPLER_STEPS.value or 1,
        backbone,
        random_params(backbone),
        VOCABULARY,
        torch_python=python,
        released_steps=RELEASED_STEPS.value or 0,
        requests=REQUESTS.value or 1,
    )
    ceiling, bandwidth = matmul_flops(config.dtype), memory_bandwidth()
    speeds = bench_sampler(chosen, work, CALLS.value or 1, ceiling, bandwidth)
    for speed in speeds:
        same = "".join(f"; tokens of {name}: {'as' if so else 'OTHERS'}" for name, so in speed.tokens_equal_to.items())
        print(
            f"{speed.name:14} {speed.seconds_per_sample:.2f} s a sample ({speed.seconds_per_step:.3f} s a step, "
            f"{steps_of(speed)} steps), {speed.times_floor:.1f} times the floor of "
            f"{speed.floor_seconds:.2f} s; {speed.peak_bytes / 2**30:.2f} GiB, compiled in {speed.compile_seconds:.0f} "
            f"s, {speed.compilations_after_warmup} compilations later{same}"
        )
        if speed.stream:
            print("               " + ", ".join(f"{name} {value:.3g}" for name, value in speed.stream.items()))
    rates = {"matmul_flops_measured": ceiling, "memory_bandwidth_measured": bandwidth}
    return {"setting": setting, "variants": [dataclasses.asdict(speed) for speed in speeds]} | rates


def steps_of(speed: SamplerSpeed) -> str:
    if speed.steps_taken == speed.steps:
        return str(speed.steps)
    return f"{speed.steps_taken} measured, extrapolated to {speed.steps}"


def save(config: RunConfig) -> dict:
    """Saves and restores of the config's backbone and its optimizer, beside training steps."""
    trainer, _, _ = fitting(config)
    with tempfile.TemporaryDirectory(dir=FOLDER.value) as folder:
        speed = bench_checkpoint(trainer, Path(folder), SAVES.value or 1)
    gib = speed.bytes / 2**30
    print(
        f"{gib:.2f} GiB of state: a save stands for {speed.stall_seconds:.2f} s (a copy takes {speed.copy_seconds:.2f})"
        f" and is whole after {speed.save_seconds:.2f} s (writing as much takes {speed.write_seconds:.2f})\n"
        f"a step takes {speed.step_seconds:.2f} s, beside a save {speed.step_seconds_saving or float('nan'):.2f} s\n"
        f"restored in {speed.restore_seconds:.2f} s, {speed.verify_seconds:.2f} of it for checksums (reading the files "
        f"takes {speed.read_seconds:.2f}); just written, so from the host's cache where they fit"
    )
    return dataclasses.asdict(speed)


if __name__ == "__main__":
    COMMAND.main(run)
