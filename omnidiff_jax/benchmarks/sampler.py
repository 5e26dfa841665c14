"""Speed of the sampler: the same answers filled in several ways with the same weights, in turn, and tokens compared."""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import numpy as np

from omnidiff_jax.benchmarks.fillers import Filled, Filler, Loop, Opener, Plain, Torch, Work, why_no_torch
from omnidiff_jax.benchmarks.stream import Stream
from omnidiff_jax.config import choose
from omnidiff_jax.errors import UserError
from omnidiff_jax.sampling import Candidates, PromptCache, RestrictedCandidates, SamplerConfig, Threshold
from omnidiff_jax.training.operations.goodput import Compilations


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to do the work.

    Attributes:
        name: on the command line and in the results.
        open: makes it ready.
        rows: canvases at once, or slots of the engine; the first canvas is the same in all variants.
        equals: earlier rows of the table whose tokens are compared with its own, as far as they run.
    """

    name: str
    open: Opener
    rows: int = 1
    equals: tuple[str, ...] = ()


def changed(**others: Any) -> Callable[[SamplerConfig], SamplerConfig]:
    """A sampler with other strategies."""
    return lambda sampler: dataclasses.replace(sampler, **others)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("released", Torch),
        Variant("released-style", Plain, equals=("released",)),
        Variant("exact", Loop, equals=("released", "released-style")),
        Variant("rolled", functools.partial(Loop, scan_layers=True), equals=("exact",)),
        # Only what may stand at a position is chosen; then, the rest is not computed either.
        Variant("allowed", functools.partial(Loop, change=changed(candidates=Candidates()), restricted=True)),
        Variant(
            "restricted",
            functools.partial(Loop, change=changed(candidates=RestrictedCandidates()), restricted=True),
            equals=("allowed",),
        ),
        Variant("fast", functools.partial(Loop, change=changed(reveal=Threshold()))),
        Variant("cached", functools.partial(Loop, change=changed(cache=PromptCache()))),
        Variant("int8", functools.partial(Loop, quantize="int8"), equals=("exact",)),
        Variant("batch8", Loop, rows=8, equals=("exact",)),
        Variant("engine", Stream, rows=8),
    )
}
"""The order of a run. Another sampler of ours is a row like `functools.partial(Loop, change=...)`."""


@dataclasses.dataclass(frozen=True)
class SamplerSpeed:
    """What one variant was measured at.

    Attributes:
        name: of the variant.
        seconds_per_sample: median of the measured calls, over the canvases of a call.
        seconds_per_step: of a call over its steps.
        floor_seconds: what a sample cannot undercut at the measured rates: in each step the larger of the operations
            that the masked rows need and the weights read once.
        times_floor: seconds_per_sample over floor_seconds.
        peak_bytes: held at most, weights included: of compiled programs by the compiler's plan, of another process
            all that it held, libraries included.
        compile_seconds: the first step, less the same again.
        compilations_after_warmup: programs compiled in the measured calls, whose prompts differ; 0 is right.
        tokens_equal_to: variant -> whether all calls fill the first canvas with the same tokens; `alone` -> whether
            every request of the stream is answered as it is alone.
        calls: seconds of each measured call; variants take turns.
        steps, rows: of a call.
        steps_taken: fewer than `steps` where the rest of a call's seconds is extrapolated.
        stream: what the engine counted in the last call; None for other variants.
    """

    name: str
    seconds_per_sample: float
    seconds_per_step: float
    floor_seconds: float
    times_floor: float
    peak_bytes: int
    compile_seconds: float
    compilations_after_warmup: int
    tokens_equal_to: dict[str, bool]
    calls: tuple[float, ...]
    steps: int
    rows: int
    steps_taken: int
    stream: Mapping[str, float] | None = None


def choose_variants(names: Sequence[str], torch_python: str) -> tuple[list[Variant], list[str]]:
    """Rows of `VARIANTS` in its order, and why others are left out.

    Args:
        names: asked for; empty = all that can run.
        torch_python: the interpreter that `released` would run in.

    Raises:
        UserError: an unknown name, or one asked for that cannot run.
    """
    wanted = {choose(VARIANTS, name, "variant").name for name in names} or set(VARIANTS)
    left_out = {}
    if "released" in wanted and (why := why_no_torch(torch_python)) is not None:
        left_out["released"] = f"needs torch on this device, {torch_python} says: {why}; name another by --torch_python"
    if "int8" in wanted and find_spec("qwix") is None:
        left_out["int8"] = "needs qwix (extra `quantize`)"
    whys = [f"variant {name} {why}" for name, why in left_out.items()]
    if names and whys:
        raise UserError(whys[0])
    return [variant for variant in VARIANTS.values() if variant.name in wanted - set(left_out)], whys


def bench_sampler(
    chosen: Sequence[Variant], work: Work, calls: int, ceiling: float, bandwidth: float
) -> list[SamplerSpeed]:
    """Warms every variant up, then measures them in turn.

    Args:
        chosen: in the order of `VARIANTS`.
        work: what they do.
        calls: measured of each, each with another prompt.
        ceiling: `matmul_flops` of the device.
        bandwidth: `memory_bandwidth` of it.

    Raises:
        UserError: a variant follows another one that is not there.
    """
    with ExitStack() as stack:
        fillers: dict[str, Filler] = {}
        filled: dict[str, list[Filled]] = {}
        warming: dict[str, float] = {}
        compiled = dict.fromkeys((variant.name for variant in chosen), 0)
        for variant in chosen:
            filler = fillers[variant.name] = variant.open(work, variant.rows)
            stack.callback(filler.close)
            if filler.follows and filler.follows not in (other.name for other in chosen):
                raise UserError(
                    f"variant {variant.name} in released_steps = {work.released_steps} follows variant "
                    f"{filler.follows}, which is not among the variants: name it too, or set released_steps = 0"
                )
            warming[variant.name] = filler.warm()
            filled[variant.name] = []
        for seed in range(1, calls + 1):
            past: dict[str, Filled] = {}
            for name, filler in sorted(fillers.items(), key=lambda item: bool(item[1].follows)):
                with Compilations() as compilations:
                    past[name] = filler.fill(seed, past)
                compiled[name] += compilations.count
                filled[name].append(past[name])

        def same(name: str, other: str) -> bool:
            pairs = zip(filled[name], filled[other], strict=True)
            return all(np.array_equal(a.tokens[0], b.tokens[0]) for a, b in pairs)

        results = []
        for variant in chosen:
            seconds = tuple(call.seconds for call in filled[variant.name])
            last, median = filled[variant.name][-1], statistics.median(seconds)
            answers, floor = len(last.tokens), last.need.seconds(ceiling, bandwidth)
            equal = {name: same(variant.name, name) for name in variant.equals if name in fillers}
            if last.alone is not None:
                equal["alone"] = all(bool(call.alone) for call in filled[variant.name])
            results.append(
                SamplerSpeed(
                    name=variant.name,
                    seconds_per_sample=median / answers,
                    seconds_per_step=median / last.steps,
                    floor_seconds=floor / answers,
                    times_floor=median / floor,
                    peak_bytes=fillers[variant.name].peak_bytes(),
                    compile_seconds=warming[variant.name],
                    compilations_after_warmup=compiled[variant.name],
                    tokens_equal_to=equal,
                    calls=seconds,
                    steps=last.steps,
                    rows=variant.rows,
                    steps_taken=last.taken or last.steps,
                    stream=last.details,
                )
            )
        return results
