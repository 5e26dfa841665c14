"""The backbone: the released numbers, segments that cannot see each other, and its switches."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from omnidiff_jax.batch import Batch, ModelInputs
from omnidiff_jax.config import build
from omnidiff_jax.conversion import dream
from omnidiff_jax.conversion import rules as conversion
from omnidiff_jax.diffusion.loss import LossConfig, masked_cross_entropy
from omnidiff_jax.diffusion.masking import Corrupted
from omnidiff_jax.errors import UserError
from omnidiff_jax.models import attention as attentions
from omnidiff_jax.models import chunked_attention
from omnidiff_jax.models.backbone import Backbone, BackboneConfig

RELEASED_TINY = BackboneConfig(
    vocab_size=512, width=64, layers=3, heads=4, kv_heads=2, head_dim=16, hidden=160, dtype="float32",
    remat="none", padding_idx=500, padding_visible=True,
)  # fmt: skip
TINY = BackboneConfig(
    vocab_size=50, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, hidden=48, dtype="float32", remat="none"
)
# Kernels of particular devices: tests/test_device_attention.py.
BACKENDS = sorted(attentions.BACKENDS.keys() - {"cudnn", "splash"})


def shapes(config):
    """Abstract parameters with their logical axis names."""

    def init(key):
        ones = jnp.ones((1, 1), jnp.int32)
        return Backbone(config).init(key, jnp.ones((1, 1, config.width)), ones, ones)["params"]

    return jax.eval_shape(init, jax.random.key(0))


def random_params(config):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0.1, 0.3, x.shape).astype(x.dtype), meta.unbox(shapes(config)))


def forward(config, params, tokens, positions, segment_ids):
    model = Backbone(config)
    embeds = model.apply({"params": params}, tokens, method="embed")
    return model.apply({"params": params}, embeds, positions, segment_ids)


def logits(config, params, hidden):
    return Backbone(config).apply({"params": params}, hidden, method="logits")


def close(actual, expected, tolerance=1e-4):
    """Largest error relative to the largest value."""
    error = np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()
    assert error < tolerance, error


# ---- the released model -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fixture(golden):
    return np.load(golden / "dream_backbone.npz")


@pytest.fixture(scope="module")
def tensors(fixture):
    return {k.removeprefix("params/"): fixture[k] for k in fixture.files if k.startswith("params/")}


@pytest.fixture(scope="module")
def params(tensors):
    rules = dream.rules(RELEASED_TINY)
    params = conversion.to_flax(rules, tensors, like=shapes(RELEASED_TINY))
    for name, tensor in conversion.to_torch(rules, params).items():
        np.testing.assert_array_equal(tensor, tensors[name])
    return params


@pytest.mark.parametrize("scan_layers", [True, False])
def test_released_inference(fixture, params, scan_layers):
    config = dataclasses.replace(RELEASED_TINY, scan_layers=scan_layers)
    model = Backbone(config)

    @jax.jit
    def run(tokens, positions):
        embeds = model.apply({"params": params}, tokens, method="embed")
        hidden, state = model.apply(
            {"params": params}, embeds, positions, jnp.ones_like(tokens), mutable=["intermediates"]
        )
        return logits(config, params, hidden), hidden, state["intermediates"]["layers"]["input"][0]

    tokens = fixture["in/dream_ids"]
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    scores, last, inputs = run(tokens, positions)
    close(scores, fixture["out/dream_logits"])
    close(np.concatenate([inputs, last[None]]), fixture["out/dream_hidden_states"])
    scores, _, _ = run(tokens, fixture["in/dream_shifted_position_ids"])
    close(scores, fixture["out/dream_logits_shifted_positions"])


def test_released_training(fixture, params, tensors):
    """Packed rows whose padding the last sample sees; labels at segment starts scored from the sample before."""
    config = RELEASED_TINY
    positions = fixture["in/train_position_ids"]
    segments = np.cumsum(positions == 0, axis=1, dtype=np.int32) * fixture["in/train_attention_mask"]
    loss_config = LossConfig(alignment="shifted_released", chunk=20)

    def loss(params, tokens, labels, positions, segments):
        hidden = forward(config, params, tokens, positions, segments)
        scored, zeros = labels != -100, jnp.zeros((1, 3), jnp.int32)
        clean = ModelInputs(jnp.where(scored, labels, 0), segments, positions)
        batch = Batch(clean, scored, jnp.zeros_like(scored), zeros.astype(jnp.uint32), zeros, zeros)
        corrupted = Corrupted(tokens, scored, jnp.ones((1, 3)), jnp.ones(tokens.shape))
        result = masked_cross_entropy(hidden, params["head"], batch, corrupted, loss_config, 1)
        return result.loss, logits(config, params, hidden)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    rows = (fixture["in/train_ids"], fixture["in/train_labels"], positions, segments)
    (loss0, scores0), gradients = step(params, *(x[:1] for x in rows))
    (loss1, scores1), _ = step(params, *(x[1:] for x in rows))
    close(np.concatenate([scores0, scores1]), fixture["out/train_logits"])
    np.testing.assert_allclose([loss0, loss1], fixture["out/train_loss_per_row"], rtol=1e-4)
    gradients = conversion.to_torch(dream.rules(config), jax.tree.map(np.asarray, gradients))
    assert gradients.keys() == tensors.keys()
    for name, gradient in gradients.items():
        norm = fixture[f"out/train_row0_grad_l2/{name}"]
        np.testing.assert_allclose(np.linalg.norm(gradient), norm, rtol=1e-4, err_msg=name)
    close(gradients["lm_head.weight"][:8], fixture["out/train_row0_grad/lm_head.weight_rows0_8"])
    query = "model.layers.0.self_attn.q_proj.weight"
    close(gradients[query], fixture[f"out/train_row0_grad/{query}"])
    assert not gradients["model.embed_tokens.weight"][RELEASED_TINY.padding_idx].any()


def test_full_size_has_the_released_tensors(golden):
    manifest = json.loads((golden / "manifests" / "dream7b_backbone_with_projection.json").read_text())["tensors"]
    config = BackboneConfig()
    found = conversion.torch_shapes(dream.rules(config), shapes(config))
    expected = {name: tuple(shape) for name, shape in manifest.items() if "audio_projection" not in name}
    assert found == expected
    released = json.loads((golden / "manifests" / "dream7b_config.json").read_text())
    assert (config.norm_epsilon, config.rope_theta) == (released["rms_norm_eps"], released["rope_theta"])


# ---- attention --------------------------------------------------------------------------------------------


def packed(seed, batch=6, length=37, heads=4, kv_heads=2, width=8):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(batch, length, n, width)).astype(np.float32) for n in (heads, kv_heads, kv_heads))
    row = np.repeat([1, 2, 3, 0], [9, 1, 20, length - 30]).astype(np.int32)
    return q, k, v, np.stack([np.roll(row, shift) for shift in range(batch)])  # rows that cannot be confused


def dense(q, k, v, sq, sk):
    """Attention spelled out with a mask, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (x.repeat(q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = np.einsum("blhd,bshd->bhls", q, k) / np.sqrt(q.shape[-1])
    visible = ((sq[:, :, None] == sk[:, None]) & (sq[:, :, None] > 0))[:, None]
    weights = np.where(visible, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    return np.einsum("bhls,bshd->blhd", weights, v)


def attend(backend):
    return jax.jit(functools.partial(attentions.attention, backend=backend))


@pytest.fixture()
def small_blocks(monkeypatch):
    """Several blocks, the last ones partly filled, in rows this short."""
    monkeypatch.setattr(chunked_attention, "QUERY_BLOCK", 8)
    monkeypatch.setattr(chunked_attention, "KEY_BLOCK", 16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_is_exact(backend, small_blocks):
    q, k, v, segments = packed(0)
    out = attend(backend)(q, k, v, segments, segments)
    np.testing.assert_allclose(out, dense(q, k, v, segments, segments), atol=2e-6)
    assert not np.asarray(out)[segments == 0].any()
    everything = np.ones_like(segments)
    open_ = attend(backend)(q, k, v, None, None)
    np.testing.assert_allclose(open_, dense(q, k, v, everything, everything), atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_gradients(backend, small_blocks):
    """Against autodiff of the reference, with keys and values of another length than the queries."""
    q, k, v, segments = packed(1)
    probe = np.random.default_rng(2).normal(size=q.shape).astype(np.float32)
    k, v, key_segments = k[:, :31], v[:, :31], segments[:, :31]

    def gradients(function):
        return jax.jit(jax.grad(lambda *qkv: (function(*qkv) * probe).sum(), argnums=(0, 1, 2)))(q, k, v)

    def reference(q, k, v):
        k, v = (jnp.repeat(x, 2, axis=2) for x in (k, v))
        scores = jnp.einsum("blhd,bshd->bhls", q, k) / np.sqrt(q.shape[-1])
        visible = ((segments[:, :, None] == key_segments[:, None]) & (segments[:, :, None] > 0))[:, None]
        weights = jnp.where(visible, jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True))), 0)
        total = weights.sum(-1, keepdims=True)
        return jnp.einsum("bhls,bshd->blhd", weights / jnp.where(total > 0, total, 1), v)

    ours = gradients(lambda q, k, v: attentions.attention(q, k, v, segments, key_segments, backend=backend))
    for mine, theirs in zip(ours, gradients(reference), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_in_bfloat16(backend):
    q, k, v, segments = packed(3)
    out = attend(backend)(*(x.astype(jnp.bfloat16) for x in (q, k, v)), segments, segments)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), dense(q, k, v, segments, segments), atol=0.05)


def test_attention_refusals(monkeypatch):
    q, k, v, segments = packed(0)
    with pytest.raises(UserError, match="unknown attention backend 'chunkd'; did you mean 'chunked'"):
        attentions.attention(q, k, v, segments, segments, backend="chunkd")
    with pytest.raises(ValueError, match="both queries and keys"):
        attentions.attention(q, k, v, segments, None, backend="xla")
    with pytest.raises(ValueError, match="4 query heads cannot share 3 key heads"):
        attentions.attention(q, q[:, :, :3], q[:, :, :3], segments, segments, backend="xla")
    blind = attentions.Backend(attentions.xla_attention, honours_segments=False)
    monkeypatch.setitem(attentions.BACKENDS, "blind", blind)
    attentions.attention(q, k, v, None, None, backend="blind")
    with pytest.raises(UserError, match="'blind' ignores segment ids"):
        attentions.attention(q, k, v, segments, segments, backend="blind")


# ---- packing ----------------------------------------------------------------------------------------------

LENGTHS = (5, 7, 4)  # samples of the packed row; two pads follow


def packed_row():
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, (1, 18)).astype(np.int32)
    segments = np.repeat([1, 2, 3, 0], [*LENGTHS, 2])[None].astype(np.int32)
    positions = np.concatenate([np.arange(n) for n in (*LENGTHS, 2)])[None].astype(np.int32)
    return tokens, positions, segments


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_position_sees_its_whole_segment_and_nothing_else(backend):
    """By the gradient of each output with respect to each input."""
    config = dataclasses.replace(TINY, attention=backend)
    params = random_params(config)
    _, positions, segments = packed_row()
    embeds = np.random.default_rng(1).normal(size=(1, 18, config.width)).astype(np.float32)

    @jax.jit
    @jax.jacrev
    def seen(embeds):
        hidden = Backbone(config).apply({"params": params}, embeds, positions, segments)
        return (hidden[0] ** 3).sum(-1)

    influence = np.abs(seen(embeds)[:, 0]).max(-1)
    own = (segments[0][:, None] == segments[0]) & (segments[0] > 0)
    own |= np.eye(18, dtype=bool)  # padding still passes its own row through
    assert (influence[own] > 1e-6).all()
    assert (influence[~own] == 0).all()


@pytest.mark.parametrize(("backend", "remat"), [("xla", "full"), ("chunked", "dots"), ("rows", "attention")])
def test_packed_equals_unpacked(backend, remat, unpacked):
    """In loss and gradients, whatever is rematerialised."""
    config = dataclasses.replace(TINY, attention=backend, remat=remat)
    packed = loss_and_gradients(config, *packed_row())
    for mine, theirs in zip(jax.tree.leaves(packed), jax.tree.leaves(unpacked), strict=True):
        close(mine, np.asarray(theirs), 1e-5)


@pytest.fixture(scope="module")
def unpacked():
    """Loss and gradients of the same samples, each in a row of its own."""
    tokens, positions, _ = packed_row()
    apart = np.zeros((3, 3, max(LENGTHS)), np.int32)
    start = 0
    for row, length in enumerate(LENGTHS):
        part = np.s_[0, start : start + length]
        apart[:, row, :length] = tokens[part], positions[part], np.ones(length)
        start += length
    return loss_and_gradients(dataclasses.replace(TINY, scan_layers=False), *apart)


def loss_and_gradients(config, tokens, positions, segments):
    def loss(params):
        hidden = forward(config, params, tokens, positions, segments)
        nll = -jax.nn.log_softmax(logits(config, params, hidden))
        return jnp.where(segments > 0, jnp.take_along_axis(nll, (tokens * 7 % 50)[..., None], -1)[..., 0], 0).sum()

    return jax.jit(jax.value_and_grad(loss))(random_params(TINY))


# ---- settings ---------------------------------------------------------------------------------------------


def test_compute_dtype_and_parameters():
    config = dataclasses.replace(TINY, dtype="bfloat16")
    params = random_params(config)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    tokens, positions, segments = packed_row()
    hidden = jax.jit(functools.partial(forward, config))(params, tokens, positions, segments)
    assert hidden.dtype == jnp.bfloat16
    assert jax.eval_shape(functools.partial(logits, config), params, hidden).dtype == jnp.float32
    exact = jax.jit(functools.partial(forward, TINY))(params, tokens, positions, segments)
    close(hidden.astype(np.float32), np.asarray(exact), 0.05)


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="heads = 4 must be a multiple of kv_heads = 3"):
        build(BackboneConfig, {"heads": 4, "kv_heads": 3})
    with pytest.raises(UserError, match="head_dim = 7 must be even"):
        build(BackboneConfig, {"head_dim": 7})
    with pytest.raises(UserError, match="unknown remat policy 'ful'; did you mean 'full'"):
        shapes(dataclasses.replace(TINY, remat="ful"))
