"""The programs worth compiling before booking: the real train step, and the real sampler, on abstract arguments."""

from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta
from jax.sharding import Mesh, NamedSharding

from omnidiff_jax.batch import Batch, ModelInputs, SpeechFrames
from omnidiff_jax.data.packing import PackingConfig
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.flops import forward_flops, train_flops
from omnidiff_jax.models.omni import OmniConfig, OmniModel, init_params
from omnidiff_jax.models.quantized import quantize_params
from omnidiff_jax.preflight.report import Job
from omnidiff_jax.runs.opening import ModelRun
from omnidiff_jax.sampling.candidates import Span
from omnidiff_jax.sampling.canvas import Canvas
from omnidiff_jax.sampling.config import SamplerConfig
from omnidiff_jax.sampling.denoiser import module_denoiser
from omnidiff_jax.sampling.loop import compiled, trace_sampler
from omnidiff_jax.sharding.mesh import batch_parts, batch_sharding
from omnidiff_jax.sharding.rules import logical_rules, param_specs
from omnidiff_jax.training.layout import abstract_state, jitted_step


def abstract_batch(rows: int, packing: PackingConfig, hears: bool, sharding: NamedSharding) -> Batch:
    """A packed batch without contents."""

    def array(*shape: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding)

    tokens, frames, samples = array(packing.length), array(packing.frames), array(packing.samples)
    flags = array(packing.length, dtype=jnp.bool_)
    features = array(packing.frames, packing.speech.width, dtype=jnp.float32)
    speech: Any = SpeechFrames(features, frames, frames, frames, frames) if hears else None
    inputs: Any = ModelInputs(tokens, tokens, tokens, speech)
    ids: Any = array(packing.samples, dtype=jnp.uint32)
    return Batch(inputs, flags, flags, ids, samples, samples)


def train_job(run: ModelRun, packing: PackingConfig) -> Job:
    """The step that `training.loop.train` runs, optimizer and masking included.

    Args:
        run: of an `OmniProgram`, on devices that need not be there.
        packing: sizes of a row.

    Raises:
        UserError: a batch that the mesh or the microbatches do not divide.
    """
    config, program, mesh = run.config, run.program, run.mesh
    config.check_batch(mesh)
    model = program.model

    def trace() -> Any:
        state = abstract_state(run)
        batch = abstract_batch(config.batch_size, packing, model.speech_encoder is not None, batch_sharding(mesh))
        return jitted_step(run, state).trace(state, batch)

    positions = config.batch_size * packing.length
    chunk = program.loss_config.chunk
    return Job(
        "train",
        trace,
        mesh,
        useful_flops=train_flops(model.backbone, positions, packing.length),
        # The loss ends with the last masked row: half of all positions, on average over t.
        trips=(max(0.5 * positions / config.accumulate / program.loss_config.groups / chunk, 1.0),),
        vocabulary=model.backbone.vocab_size,
        width=model.backbone.width,
    )


def sample_job(
    model: OmniConfig,
    config: SamplerConfig,
    mesh: Mesh,
    *,
    rows: int,
    length: int,
    answer: int,
    strategy: str,
    mask_id: int,
    span: Span | None = None,
    quantize: str = "",
) -> Job:
    """The sampler's whole loop over `rows` canvases of `length` positions, `answer` of them to be generated.

    Weights are held in the compute dtype, those of `quantize` in its own. The numbers of a step are those of one round
    of the loop, as long as every position is masked.

    Args:
        span: ids whose logits are computed, None = all.
        quantize: one of `models.quantized.QUANTIZATIONS`, "" = none.
    """
    shards = batch_parts(mesh)
    if rows % shards:
        raise UserError(f"batch of {rows} canvases cannot be split over {shards} devices; use a multiple of {shards}")
    guided = 2 if config.guidance.scale > 0 else 1
    by_row = batch_sharding(mesh)

    def array(*shape: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=by_row)

    def trace() -> Any:
        boxed = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
        specs = param_specs(boxed, strategy, mesh)
        params = jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(x.shape, model.backbone.dtype, sharding=NamedSharding(mesh, spec)),
            meta.unbox(boxed),
            specs,
        )
        if quantize:
            params = quantize_params(params, quantize)
        all_rows = guided * rows
        tokens = array(all_rows, length)
        canvas = Canvas(
            inputs=ModelInputs(tokens, tokens, tokens, None),
            generate=array(all_rows, length, dtype=jnp.bool_),
            answer_start=array(all_rows),
            answer_length=array(all_rows),
            groups=tokens,
            allowed=None,
            example_ids=array(all_rows, dtype=jnp.uint32),
            mask_id=mask_id,
        )
        with logical_rules(strategy):
            denoiser = module_denoiser(OmniModel(model), params)
            return trace_sampler(denoiser, canvas, config, rows=rows, answer=answer, span=span)

    layers = forward_flops(model.backbone, 1, length) - _head(model)
    ids = model.backbone.vocab_size if span is None else span.stop - span.start
    per_step = rows * (guided * length * layers + answer * _head(model) * ids / model.backbone.vocab_size)
    # A round of the loop, and in it the chunks of rows before the last one.
    chunk = compiled(config, rows * answer, rows * length, span).chunk
    trips = 1.0, float((rows * answer * config.drafting.rows - 1) // chunk)
    width = model.backbone.width
    return Job("sample", trace, mesh, useful_flops=per_step, trips=trips, vocabulary=0, width=width, rounds_only=True)


def _head(model: OmniConfig) -> float:
    return 2.0 * model.backbone.width * model.backbone.vocab_size
