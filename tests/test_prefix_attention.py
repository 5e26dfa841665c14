"""`attention_mask = "prefix"`: the condition sees itself only, answers see all; on every backend, packed or not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import meta

from omnidiff_jax.batch import Batch, ModelInputs
from omnidiff_jax.config import build, difference, to_dict
from omnidiff_jax.diffusion.loss import LossConfig
from omnidiff_jax.diffusion.masking import MaskingConfig
from omnidiff_jax.models.attention import Sight, attend
from omnidiff_jax.models.backbone import Backbone, BackboneConfig
from omnidiff_jax.models.omni import OmniConfig
from omnidiff_jax.training.model_program import OmniProgram
from omnidiff_jax.vocabulary import Vocabulary

VOCABULARY = Vocabulary.compact(36, 8, 8)
PREFIX = BackboneConfig(
    vocab_size=VOCABULARY.size, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, hidden=32, dtype="float32",
    remat="none", init_stddev=0.3, embed_stddev=1.0, attention_mask="prefix",
)  # fmt: skip
SEGMENTS = np.repeat([1, 2, 0], [9, 5, 2])[None].astype(np.int32)
POSITIONS = np.concatenate([np.arange(9), np.arange(5), np.zeros(2)])[None].astype(np.int32)
# Two turns in the first sample.
TARGETS = np.zeros((1, 16), bool)
TARGETS[0, [3, 4, 7, 8, 12, 13]] = True


def dense(q, k, v, segments, given):
    k, v = (np.repeat(x, 2, axis=2) for x in (k, v))
    scores = np.einsum("blhd,bshd->bhls", q, k) / np.sqrt(q.shape[-1])
    same = (segments[:, :, None] == segments[:, None]) & (segments > 0)[:, :, None]
    visible = (same & (~given[:, :, None] | given[:, None]))[:, None]
    weights = np.where(visible, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    return np.einsum("bhls,bshd->blhd", weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30), v)


@pytest.mark.parametrize("backend", ["xla", "chunked", "rows", "splash"])
def test_every_backend_has_the_mask(backend):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 16, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    out = jax.jit(lambda *x: attend(*x, Sight(SEGMENTS, SEGMENTS, ~TARGETS, ~TARGETS), backend=backend))(q, k, v)
    np.testing.assert_allclose(out, dense(q, k, v, SEGMENTS, ~TARGETS), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def params():
    return meta.unbox(jax.jit(OmniProgram.init, static_argnums=0)(program(), jax.random.key(0)))


class _Identity(OmniProgram):
    __hash__ = object.__hash__


def program():
    config = OmniConfig(PREFIX, speech_encoder=None)
    return _Identity(config, VOCABULARY, MaskingConfig(), LossConfig(chunk=8), (("own", "text_qa"),), lambda seed: None)


def test_the_condition_feels_no_answer(params):
    """Neither in its hidden states nor in its gradients; and a packed sample is what it is alone."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1, 16, 16)).astype(np.float32)
    backbone, given = Backbone(PREFIX), ~TARGETS

    @jax.jit
    def run(x):
        return backbone.apply({"params": params["backbone"]}, x, POSITIONS, SEGMENTS, given)

    felt = jax.jit(jax.grad(lambda x: (run(x)[0, :9] ** 3 * given[0, :9, None]).sum()))(x)
    assert (np.abs(felt[0, :9]).max(axis=-1) > 1e-4).tolist() == given[0, :9].tolist()
    assert not np.asarray(felt[0, 9:]).any()
    felt = jax.jit(jax.grad(lambda x: (run(x)[0, 3] ** 3).sum()))(x)
    assert (np.abs(felt[0]).max(axis=-1) > 1e-6).tolist() == [True] * 9 + [False] * 7
    alone = backbone.apply(
        {"params": params["backbone"]}, x[:, 9:14], POSITIONS[:, 9:14], SEGMENTS[:, 9:14], given[:, 9:14]
    )
    np.testing.assert_allclose(alone, run(x)[:, 9:14], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="needs to know which positions are given"):
        jax.eval_shape(lambda: backbone.apply({"params": params["backbone"]}, x, POSITIONS, SEGMENTS))


def test_it_trains(params):
    rows = 4
    tokens = np.random.default_rng(0).integers(0, 36, (rows, 16)).astype(np.int32)
    whole = (np.repeat(x, rows, axis=0) for x in (SEGMENTS, POSITIONS, TARGETS))
    segments, positions, targets = whole
    ids = np.arange(2 * rows, dtype=np.uint32).reshape(rows, 2)
    batch = Batch(
        ModelInputs(tokens, segments, positions), targets, np.zeros_like(targets), ids, np.zeros((rows, 2), np.int32),
        np.zeros((rows, 2), np.int32),
    )  # fmt: skip
    ours, optimizer = program(), optax.adam(3e-3)

    @jax.jit
    def train(params):
        def step(carry, number):
            params, state = carry
            this = dataclasses.replace(batch, epochs=jnp.full((rows, 2), number))
            loss, gradients = jax.value_and_grad(lambda p: ours.loss(p, this, jax.random.key(0), number)[0])(params)
            updates, state = optimizer.update(gradients, state)
            finite = jnp.isfinite(optax.global_norm(gradients))
            return (optax.apply_updates(params, updates), state), (loss, finite)

        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(20))[1]

    losses, finite = train(params)
    assert np.isfinite(losses).all() and np.asarray(finite).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_the_default_is_full_and_part_of_what_a_run_is():
    stored = to_dict(BackboneConfig())
    assert stored.pop("attention_mask") == "full"
    old = build(BackboneConfig, stored)
    assert old == BackboneConfig() and difference(old, BackboneConfig()) is None
    assert difference(old, dataclasses.replace(old, attention_mask="prefix")) == ("attention_mask", "full", "prefix")
    with pytest.raises(ValueError, match="attention_mask = 'prefx'; did you mean 'prefix'"):
        BackboneConfig(attention_mask="prefx")
