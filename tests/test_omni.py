"""The whole model: heard speech takes its tokens' places, and the released prompt gives the released logits."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from omnidiff_jax.batch import ModelInputs
from omnidiff_jax.config import build
from omnidiff_jax.conversion import dream
from omnidiff_jax.conversion import rules as conversion
from omnidiff_jax.conversion.components import COMPONENTS, OmniParts
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.adapter import AdapterConfig
from omnidiff_jax.models.backbone import BackboneConfig
from omnidiff_jax.models.omni import OmniConfig, OmniModel, init_params, place
from omnidiff_jax.models.sanm import SpeechEncoderConfig
from omnidiff_jax.speech_frames import packed_frames
from omnidiff_jax.training.model_program import OmniProgram

TINY = OmniConfig(
    backbone=BackboneConfig(
        vocab_size=40, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, hidden=24, dtype="float32", remat="none"
    ),
    speech_encoder=SpeechEncoderConfig(
        features=12, width=8, heads=2, ffn=16, blocks=1, tp_blocks=0, vocab_size=5, num_queries=2, queries=(0, 1)
    ),
    adapter=AdapterConfig(inputs=8, outputs=16, dtype="float32"),
)


def shapes(config):
    return jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0.1, 0.3, x.shape).astype(x.dtype), meta.unbox(shapes(TINY)))


def test_released_audio_prompt(golden):
    """The fixture's audio vectors, placed on its tokens; the rest is the backbone."""
    fixture = np.load(golden / "audio_prompt.npz")
    config = BackboneConfig(
        vocab_size=256, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, hidden=160, dtype="float32", remat="none"
    )
    omni = OmniConfig(backbone=config, speech_encoder=None)
    tensors = {k.removeprefix("params/"): fixture[k] for k in fixture.files if k.startswith("params/")}
    params = {"backbone": conversion.to_flax(dream.rules(config), tensors)}
    positions = fixture["in/position_ids"]
    inputs = ModelInputs(fixture["in/ids"], np.cumsum(positions == 0, axis=1, dtype=np.int32), positions)
    slots = np.concatenate([fixture["in/audio_positions0"], fixture["in/audio_positions1"]])[None]
    vectors = fixture["out/inputs_embeds"][:, slots[0]]

    @jax.jit
    def run(inputs):
        def forward(model):
            embeds = place(model.embed_inputs(inputs), vectors, slots)
            return embeds, model.logits(model.backbone(embeds, inputs.positions, inputs.segment_ids))

        return OmniModel(omni).apply({"params": params}, method=forward)

    embeds, logits = run(inputs)
    np.testing.assert_array_equal(embeds, fixture["out/inputs_embeds"])
    np.testing.assert_allclose(logits, fixture["out/logits"], atol=1e-4 * np.abs(fixture["out/logits"]).max())


def test_speech_fills_its_slots(params):
    """Two utterances in one row and one in the other: the slots hold adapter(encoder(...)), other rows the table's."""
    rng = np.random.default_rng(1)
    first, second, third = (rng.normal(size=(n, 12)).astype(np.float32) for n in (3, 2, 4))
    layout = TINY.speech_encoder.layout
    speech = packed_frames([[(first, 2), (second, 9)], [(third, 0)]], 16, layout)
    tokens = rng.integers(0, 40, (2, 15)).astype(np.int32)
    ones = np.ones_like(tokens)
    inputs = ModelInputs(tokens, ones, np.broadcast_to(np.arange(15, dtype=np.int32), tokens.shape), speech)
    model = OmniModel(TINY)

    def run(method, *args):
        return jax.jit(lambda params: model.apply({"params": params}, *args, method=method))(params)

    embeds = np.asarray(run("embed_inputs", inputs))
    plain = np.asarray(run("embed_inputs", inputs.replace(speech=None)))
    heard = np.zeros(tokens.shape, bool)
    for row, start, frames in ((0, 2, first), (0, 9, second), (1, 0, third)):
        part = np.s_[row, start : start + layout.slots(len(frames))]
        alone = run("speech_embeddings", packed_frames([[(frames, 0)]], 16, layout))[0, : len(frames) + 2]
        np.testing.assert_allclose(embeds[part], alone, atol=1e-5)
        heard[part] = True
    np.testing.assert_array_equal(embeds[~heard], plain[~heard])
    assert run("__call__", inputs).shape == (2, 15, 16)


def test_place_is_differentiable():
    embeds, vectors = jnp.ones((1, 4, 2)), jnp.full((1, 3, 2), 2.0)
    slots = jnp.array([[3, -1, 0]])
    weight = jnp.arange(8.0).reshape(1, 4, 2)
    d_embeds, d_vectors = jax.jit(jax.grad(lambda e, v: (place(e, v, slots) * weight).sum(), argnums=(0, 1)))(
        embeds, vectors
    )
    np.testing.assert_array_equal(d_embeds, [[[0, 0], [2, 3], [4, 5], [0, 0]]])
    np.testing.assert_array_equal(d_vectors, [[[6, 7], [0, 0], [0, 1]]])


def test_parameter_tree(params):
    assert params.keys() == {"backbone", "speech_encoder", "adapter"}
    assert shapes(dataclasses.replace(TINY, speech_encoder=None)).keys() == {"backbone"}
    tokens = np.zeros((1, 3), np.int32)
    speech = packed_frames([[]], 4, TINY.speech_encoder.layout)
    deaf = OmniModel(dataclasses.replace(TINY, speech_encoder=None))
    with pytest.raises(ValueError, match="speech_encoder is None"):
        jax.eval_shape(deaf.apply, {"params": params}, ModelInputs(tokens, tokens, tokens, speech))
    with pytest.raises(UserError, match=r"adapter.outputs = 3584 must equal backbone.width = 64"):
        build(OmniConfig, {"backbone": {"width": 64}})


def test_full_size_has_the_released_tensors(golden):
    manifest = json.loads((golden / "manifests" / "dream7b_full.json").read_text())
    config = OmniConfig()
    parts = OmniParts(config.backbone, config.speech_encoder, config.adapter)
    found = conversion.torch_shapes(COMPONENTS["omni"].rules(parts), shapes(config))
    assert found == {name: tuple(shape) for name, shape in manifest["tensors"].items()}
    assert sum(int(np.prod(shape)) for shape in found.values()) == manifest["n_values"]


def test_a_refused_batch_is_named_by_its_samples():
    """Empty places of a row name none."""
    ids = np.array([[7, 0], [4000000000, 9]], np.uint32)
    batch = types.SimpleNamespace(group_ids=np.array([[0, -1], [2, 1]]), sample_ids=ids)
    assert OmniProgram.describe(None, batch) == "sample ids [7, 4000000000, 9]"
