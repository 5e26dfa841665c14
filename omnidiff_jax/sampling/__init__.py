"""Masked-diffusion sampling. `sample(denoiser, canvas, SamplerConfig, seed)` fills a canvas of masks.

Each group of `SamplerConfig` is a strategy: a frozen dataclass, the default of its group or a subclass of it.
A canvas is built from prompts and answers (`build_canvas`), a denoiser from a model (`module_denoiser`).
"""

from omnidiff_jax.sampling.cache import Cache
from omnidiff_jax.sampling.candidates import Candidates, ReleasedCandidates, RestrictedCandidates
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
from omnidiff_jax.sampling.confidence import Confidence, Halton, MaskgitPlus, RandomOrder, TopkMargin
from omnidiff_jax.sampling.config import ASR_LENGTH, TTS_LENGTH, LengthRule, PromptLength, SamplerConfig
from omnidiff_jax.sampling.denoiser import Denoiser, module_denoiser
from omnidiff_jax.sampling.drafting import Drafting, Verify
from omnidiff_jax.sampling.filters import Filters
from omnidiff_jax.sampling.guidance import Guidance, ReleasedGuidance, random_text_prompt, unconditional_canvas
from omnidiff_jax.sampling.keeping import DualCache, FeatureCache, PromptCache
from omnidiff_jax.sampling.loop import sample
from omnidiff_jax.sampling.penalties import (
    PaperPosition,
    Position,
    ReleasedPosition,
    ReleasedRepetition,
    Repetition,
)
from omnidiff_jax.sampling.results import SampleResult, film, finish_reasons
from omnidiff_jax.sampling.reveal import EntropyBound, Klass, Reveal, Revise, Stable, Threshold
from omnidiff_jax.sampling.schedule import Blocks, CosineSchedule, ReleasedBlocks, Schedule
from omnidiff_jax.sampling.shadow import ShadowBlock
from omnidiff_jax.sampling.stopping import Stopping

__all__ = [
    "ASR_LENGTH",
    "TTS_LENGTH",
    "AllowedSets",
    "Answer",
    "Blocks",
    "Cache",
    "Candidates",
    "Canvas",
    "Confidence",
    "CosineSchedule",
    "Denoiser",
    "Drafting",
    "DualCache",
    "EntropyBound",
    "FeatureCache",
    "Filters",
    "Guidance",
    "Halton",
    "Klass",
    "LengthRule",
    "MaskgitPlus",
    "PaperPosition",
    "Position",
    "Prefill",
    "Prompt",
    "PromptCache",
    "PromptLength",
    "RandomOrder",
    "ReleasedBlocks",
    "ReleasedCandidates",
    "ReleasedGuidance",
    "ReleasedPosition",
    "ReleasedRepetition",
    "Repetition",
    "RestrictedCandidates",
    "Reveal",
    "Revise",
    "SampleResult",
    "SamplerConfig",
    "Schedule",
    "ShadowBlock",
    "Stable",
    "Stopping",
    "Threshold",
    "TopkMargin",
    "Verify",
    "answer_tokens",
    "blank",
    "build_canvas",
    "film",
    "finish_reasons",
    "infill",
    "known",
    "module_denoiser",
    "random_text_prompt",
    "sample",
    "unconditional_canvas",
]
