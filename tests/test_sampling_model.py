"""`module_denoiser` on a whole model with heard speech."""

import dataclasses

import jax
import numpy as np
from flax.linen import meta
from sampling_toys import VOCABULARY

from omnidiff_jax.models.adapter import AdapterConfig
from omnidiff_jax.models.backbone import BackboneConfig, layers_apart
from omnidiff_jax.models.omni import OmniConfig, OmniModel, init_params
from omnidiff_jax.models.sanm import SpeechEncoderConfig
from omnidiff_jax.sampling import (
    Guidance,
    Prompt,
    SamplerConfig,
    blank,
    build_canvas,
    module_denoiser,
    sample,
    unconditional_canvas,
)

CONFIG = OmniConfig(
    BackboneConfig(
        vocab_size=VOCABULARY.size, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, hidden=16, init_stddev=0.5,
        dtype="float32", remat="none",
    ),
    SpeechEncoderConfig(features=6, width=8, heads=2, ffn=8, blocks=1, tp_blocks=0, kernel=3, vocab_size=4),
    AdapterConfig(inputs=8, outputs=16, init_stddev=0.5, dtype="float32"),
)  # fmt: skip

SPEECH = CONFIG.speech_encoder.layout


def test_hidden_is_the_models_and_batches_do_not_matter():
    model, params = OmniModel(CONFIG), meta.unbox(jax.jit(lambda key: init_params(CONFIG, key))(jax.random.key(0)))
    denoiser = module_denoiser(model, params)
    rng = np.random.default_rng(0)
    heard = Prompt(np.full(6, VOCABULARY.context_audio, np.int32), rng.normal(size=(2, 6)), (2,))
    read = Prompt(np.array([1, 2], np.int32))
    canvas = build_canvas([heard, read], [blank(5, VOCABULARY.mask)] * 2, VOCABULARY, speech=SPEECH, multiple=16)

    tokens = np.array(canvas.inputs.tokens)
    tokens[0, 7], tokens[1, 3] = 4, 5
    context = jax.jit(denoiser.prepare)(params, canvas)
    ours = jax.jit(denoiser.hidden)(params, tokens, context)
    inputs = dataclasses.replace(canvas.inputs, tokens=tokens)
    theirs = jax.jit(model.apply)({"params": params}, inputs)
    real = np.asarray(canvas.inputs.segment_ids) > 0
    np.testing.assert_allclose(np.asarray(ours)[real], np.asarray(theirs)[real], rtol=1e-5, atol=1e-5)

    config = SamplerConfig(steps=3, guidance=Guidance(1.0))
    other = unconditional_canvas(canvas, [Prompt(np.array([1], np.int32))] * 2, VOCABULARY, speech=SPEECH, multiple=16)
    together = sample(denoiser, canvas, config, unconditional=other)
    alone = build_canvas([heard], [blank(5, VOCABULARY.mask)], VOCABULARY, speech=SPEECH, multiple=16)
    other = unconditional_canvas(alone, [Prompt(np.array([1], np.int32))], VOCABULARY, speech=SPEECH, multiple=16)
    np.testing.assert_array_equal(sample(denoiser, alone, config, unconditional=other).tokens[0], together.tokens[0])
    assert module_denoiser(OmniModel(CONFIG), params).hidden is denoiser.hidden  # equal modules share compiled code


def test_layers_apart_are_the_same_model():
    """Where the loop over them is unrolled, and then none is copied."""
    backbone = dataclasses.replace(CONFIG.backbone, layers=3, scan_layers=False)
    config = OmniConfig(backbone, speech_encoder=None)
    params = meta.unbox(init_params(config, jax.random.key(0)))
    apart = layers_apart(params, backbone)
    assert layers_apart(params, dataclasses.replace(backbone, scan_layers=True)) is params
    kernels = apart["backbone"]["layers"]["mlp"]["gate"]["kernel"]
    assert isinstance(kernels, tuple) and len(kernels) == 3
    canvas = build_canvas([Prompt(np.array([1, 2], np.int32))], [blank(5, VOCABULARY.mask)], VOCABULARY)
    found = []
    for these in (params, apart):
        denoiser = module_denoiser(OmniModel(config), these)
        context = denoiser.prepare(these, canvas)
        step = jax.jit(denoiser.hidden).lower(these, canvas.inputs.tokens, context).compile()
        found.append(np.asarray(step(these, canvas.inputs.tokens, context)))
    np.testing.assert_array_equal(*found)
    assert f"f32[3,{backbone.width}" not in step.as_text()
