"""Masked-diffusion sampling. `sample(denoiser, canvas, SamplerConfig, seed)` fills a canvas of masks.

A canvas is built from prompts and answers (`build_canvas`), a denoiser from a model (`module_denoiser`).
"""

from omnidiff_jax.sampling.canvas import (
    AllowedSets,
    Answer,
    Canvas,
    Prefill,
    Prompt,
    answer_tokens,
    blank,
    build_canvas,
    infill,
    known,
)
from omnidiff_jax.sampling.config import (
    ASR_LENGTH,
    TTS_LENGTH,
    Blocks,
    Confidence,
    Filters,
    Guidance,
    LengthRule,
    Position,
    Repetition,
    SamplerConfig,
    Schedule,
    Stopping,
)
from omnidiff_jax.sampling.denoiser import Denoiser, module_denoiser
from omnidiff_jax.sampling.guidance import random_text_prompt, unconditional_canvas
from omnidiff_jax.sampling.loop import SampleResult, film, sample

__all__ = [
    "ASR_LENGTH",
    "TTS_LENGTH",
    "AllowedSets",
    "Answer",
    "Blocks",
    "Canvas",
    "Confidence",
    "Denoiser",
    "Filters",
    "Guidance",
    "LengthRule",
    "Position",
    "Prefill",
    "Prompt",
    "Repetition",
    "SampleResult",
    "SamplerConfig",
    "Schedule",
    "Stopping",
    "answer_tokens",
    "blank",
    "build_canvas",
    "film",
    "infill",
    "known",
    "module_denoiser",
    "random_text_prompt",
    "sample",
    "unconditional_canvas",
]
