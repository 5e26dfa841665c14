"""Speed of the sampler: the same answers filled in several ways with the same weights, in turn, and tokens compared."""

import dataclasses
import functools
import statistics
from collections.abc import Sequence
from contextlib import ExitStack

import jax.numpy as jnp
import numpy as np

from omnidiff_jax.benchmarks.fillers import Filled, Filler, Loop, Opener, Plain, Torch, Work, why_no_torch
from omnidiff_jax.config import choose
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.flops import forward_flops, matrix_parameters
from omnidiff_jax.training.operations.goodput import Compilations


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to do the work.

    Attributes:
        name: on the command line and in the results.
        open: makes it ready.
        rows: canvases at once; the first one is the same in all variants.
        equals: earlier rows of the table whose tokens are compared with its own, as far as they run.
    """

    name: str
    open: Opener
    rows: int = 1
    equals: tuple[str, ...] = ()


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("released", Torch),
        Variant("released-style", Plain, equals=("released",)),
        Variant("exact", Loop, equals=("released", "released-style")),
        Variant("rolled", functools.partial(Loop, scan_layers=True), equals=("exact",)),
        Variant("batch8", Loop, rows=8, equals=("exact",)),
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
        peak_bytes: held at most, weights included: of compiled programs by the compiler's plan, of another process
            all that it held, libraries included.
        compile_seconds: the first call, less a later one.
        compilations_after_warmup: programs compiled in the measured calls, whose prompts differ; 0 is right.
        tokens_equal_to: variant -> whether all calls fill the first canvas with the same tokens.
        calls: seconds of each measured call; variants take turns.
        steps, rows: of a call.
    """

    name: str
    seconds_per_sample: float
    seconds_per_step: float
    floor_seconds: float
    peak_bytes: int
    compile_seconds: float
    compilations_after_warmup: int
    tokens_equal_to: dict[str, bool]
    calls: tuple[float, ...]
    steps: int
    rows: int


def choose_variants(names: Sequence[str], torch_python: str) -> tuple[list[Variant], str | None]:
    """Rows of `VARIANTS` in its order, and why one of them is left out.

    Args:
        names: asked for; empty = all that can run.
        torch_python: the interpreter that `released` would run in.

    Raises:
        UserError: an unknown name, or one asked for that cannot run.
    """
    wanted = {choose(VARIANTS, name, "variant").name for name in names} or set(VARIANTS)
    why = why_no_torch(torch_python) if "released" in wanted else None
    if why is not None:
        why = f"variant released needs torch on this device, {torch_python} says: {why}; name another by --torch_python"
        if names:
            raise UserError(why)
        wanted.remove("released")
    return [variant for variant in VARIANTS.values() if variant.name in wanted], why


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
    """
    with ExitStack() as stack:
        fillers: dict[str, Filler] = {}
        filled: dict[str, list[Filled]] = {}
        warming: dict[str, float] = {}
        compiled = dict.fromkeys((variant.name for variant in chosen), 0)
        for variant in chosen:
            filler = fillers[variant.name] = variant.open(work, variant.rows)
            stack.callback(filler.close)
            first, again = filler.fill(0), filler.fill(0)
            warming[variant.name] = max(first.seconds - again.seconds, 0.0)
            filled[variant.name] = []
        for seed in range(1, calls + 1):
            for name, filler in fillers.items():
                with Compilations() as compilations:
                    filled[name].append(filler.fill(seed))
                compiled[name] += compilations.count

        def same(name: str, other: str) -> bool:
            pairs = zip(filled[name], filled[other], strict=True)
            return all(np.array_equal(a.tokens[0], b.tokens[0]) for a, b in pairs)

        results = []
        for variant in chosen:
            seconds = tuple(call.seconds for call in filled[variant.name])
            last, median = filled[variant.name][-1], statistics.median(seconds)
            results.append(
                SamplerSpeed(
                    variant.name,
                    median / variant.rows,
                    median / last.steps,
                    _floor(work, variant.rows, last.committed, ceiling, bandwidth) / variant.rows,
                    fillers[variant.name].peak_bytes(),
                    warming[variant.name],
                    compiled[variant.name],
                    {name: same(variant.name, name) for name in variant.equals if name in fillers},
                    seconds,
                    last.steps,
                    variant.rows,
                )
            )
        return results


def _floor(work: Work, rows: int, committed: np.ndarray, ceiling: float, bandwidth: float) -> float:
    """Seconds of a call."""
    backbone, setting = work.backbone, work.setting
    passes = 2 if setting.guidance > 0 else 1
    length = setting.prompt + setting.answer
    head = 2.0 * backbone.width * backbone.vocab_size
    layers = rows * passes * length * (forward_flops(backbone, 1, length) - head)
    masked = passes * (rows * setting.answer - np.concatenate([[0], np.cumsum(committed)[:-1]]))
    read = matrix_parameters(backbone) * jnp.dtype(backbone.dtype).itemsize / bandwidth
    return float(np.maximum((layers + masked * head) / ceiling, read).sum())
