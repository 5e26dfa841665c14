"""Speed of the sampler on one image: a text prompt, 258 positions to fill, in variants whose tokens are compared."""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from omnidiff_jax.benchmarks.train import planned_bytes
from omnidiff_jax.models.backbone import BackboneConfig
from omnidiff_jax.models.flops import forward_flops, matrix_parameters
from omnidiff_jax.models.omni import OmniConfig, OmniModel, init_params
from omnidiff_jax.sampling import (
    Canvas,
    Guidance,
    Prompt,
    SamplerConfig,
    SampleResult,
    blank,
    build_canvas,
    module_denoiser,
    sample,
    unconditional_canvas,
)
from omnidiff_jax.sampling.guidance import stack_canvases
from omnidiff_jax.sampling.loop import trace_sampler
from omnidiff_jax.training.operations.goodput import Compilations
from omnidiff_jax.vocabulary import Vocabulary

PROMPT, ANSWER = 42, 258  # 300 positions: a picture of 256 codes from a caption


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to do the same work.

    Attributes:
        name: in the results.
        sampler: how to decode.
        backbone: the model; parameters are the same for all variants.
        rows: canvases at once; the first one is the same in all variants.
        equals: names of earlier variants that fill the first canvas with the same tokens, or are asked whether.
    """

    name: str
    sampler: SamplerConfig
    backbone: BackboneConfig
    rows: int = 1
    equals: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class SamplerSpeed:
    """What one variant of the sampler was measured at.

    Attributes:
        name: of the variant.
        seconds_per_sample: median of the measured calls, over the canvases of a call.
        seconds_per_step: of a call over its steps.
        floor_seconds: what a sample cannot undercut at the measured rates: in each step the larger of the operations
            that the masked rows need and the weights read once.
        peak_bytes: that the compiled loop holds at most, weights included.
        compile_seconds: the first call, less a later one.
        compilations_after_warmup: programs compiled in the measured calls, whose prompts differ; 0 is right.
        tokens_equal_to: variant -> whether the first canvas has the same tokens.
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
    steps: int
    rows: int


def variants(backbone: BackboneConfig, steps: int) -> tuple[Variant, ...]:
    """The layer loop unrolled and rolled, eight canvases at once, and guidance (twice the rows)."""
    plain = SamplerConfig(steps=steps)
    unrolled = dataclasses.replace(backbone, remat="none", scan_layers=False)
    rolled = dataclasses.replace(unrolled, scan_layers=True)
    return (
        Variant("unrolled", plain, unrolled),
        Variant("rolled", plain, rolled, equals=("unrolled",)),
        Variant("batch8", plain, unrolled, rows=8, equals=("unrolled",)),
        Variant("guided", dataclasses.replace(plain, guidance=Guidance(1.0)), unrolled),
    )


def bench_sampler(
    chosen: Sequence[Variant], vocabulary: Vocabulary, calls: int, ceiling: float, bandwidth: float
) -> list[SamplerSpeed]:
    """Measures variants one after another, with random weights in the compute dtype.

    Args:
        calls: measured, each with another prompt.
        ceiling: `matmul_flops` of the device.
        bandwidth: `memory_bandwidth` of it.
    """
    results: list[SamplerSpeed] = []
    first_tokens: dict[str, np.ndarray] = {}
    params = _params(chosen[0].backbone)
    for variant in chosen:
        denoiser = module_denoiser(OmniModel(_model(variant.backbone)), params)

        def run(seed: int, variant: Variant = variant, denoiser: Any = denoiser) -> tuple[float, SampleResult]:
            canvas, other = _canvases(variant, vocabulary, seed)
            began = time.perf_counter()
            result = jax.block_until_ready(sample(denoiser, canvas, variant.sampler, 0, other))
            return time.perf_counter() - began, result

        first, result = run(0)
        again, result = run(0)
        first_tokens[variant.name] = np.asarray(result.tokens)[0]
        with Compilations() as compilations:
            seconds = statistics.median(run(seed)[0] for seed in range(1, calls + 1))
        steps = int(np.asarray(result.steps).max())
        results.append(
            SamplerSpeed(
                variant.name,
                seconds / variant.rows,
                seconds / steps,
                _floor(variant, result, ceiling, bandwidth) / variant.rows,
                _peak_bytes(denoiser, variant, vocabulary),
                max(first - again, 0.0),
                compilations.count,
                {name: bool((first_tokens[name] == first_tokens[variant.name]).all()) for name in variant.equals},
                steps,
                variant.rows,
            )
        )
    return results


def _model(backbone: BackboneConfig) -> OmniConfig:
    return OmniConfig(backbone, speech_encoder=None)


def _params(backbone: BackboneConfig) -> Any:
    def make(key: jax.Array) -> Any:
        return jax.tree.map(lambda x: x.astype(backbone.dtype), meta.unbox(init_params(_model(backbone), key)))

    return jax.block_until_ready(jax.jit(make)(jax.random.key(0)))


def _canvases(variant: Variant, vocabulary: Vocabulary, seed: int) -> tuple[Canvas, Canvas | None]:
    """`variant.rows` prompts, the first of which depends on the seed alone; and under guidance others beside them."""

    def prompts(offset: int) -> list[Prompt]:
        draws = [np.random.default_rng((seed, offset, row)) for row in range(variant.rows)]
        return [Prompt(rng.integers(vocabulary.text.start, vocabulary.text.stop, PROMPT, np.int32)) for rng in draws]

    answers = [blank(ANSWER, vocabulary.mask)] * variant.rows
    canvas = build_canvas(prompts(0), answers, vocabulary)
    if variant.sampler.guidance.scale == 0:
        return canvas, None
    return canvas, unconditional_canvas(canvas, prompts(1), vocabulary)


def _floor(variant: Variant, result: SampleResult, ceiling: float, bandwidth: float) -> float:
    """Seconds of a call."""
    backbone, passes = variant.backbone, 2 if variant.sampler.guidance.scale > 0 else 1
    length = PROMPT + ANSWER
    head = 2.0 * backbone.width * backbone.vocab_size
    layers = variant.rows * passes * length * (forward_flops(backbone, 1, length) - head)
    committed = np.asarray(result.committed).sum(axis=0)
    committed = committed[: np.flatnonzero(committed).max(initial=-1) + 1]
    masked = passes * (variant.rows * ANSWER - np.concatenate([[0], np.cumsum(committed)[:-1]]))
    read = matrix_parameters(backbone) * jnp.dtype(backbone.dtype).itemsize / bandwidth
    return float(np.maximum((layers + masked * head) / ceiling, read).sum())


def _peak_bytes(denoiser: Any, variant: Variant, vocabulary: Vocabulary) -> int:
    canvas, other = _canvases(variant, vocabulary, 0)
    if other is not None:
        canvas = stack_canvases(canvas, other)
    traced = trace_sampler(denoiser, canvas, variant.sampler, rows=variant.rows, answer=ANSWER)
    return planned_bytes(traced.lower().compile())
