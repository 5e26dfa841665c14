"""The loss equals the whole-vocabulary one in value and gradient, without ever building its logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnidiff_jax.batch import Batch, ModelInputs
from omnidiff_jax.config import build
from omnidiff_jax.diffusion.alignment import ALIGNMENTS, predictors
from omnidiff_jax.diffusion.loss import LossConfig, masked_cross_entropy
from omnidiff_jax.diffusion.masking import Corrupted
from omnidiff_jax.errors import UserError

B, L, D, V, S, TASKS = 4, 24, 8, 37, 3, 5


def example(share=0.5, seed=0):
    rng = np.random.default_rng(seed)
    segments = np.repeat([1, 2, 3, 0], [9, 6, 5, 4])[None].repeat(B, 0).astype(np.int32)
    targets = (rng.random((B, L)) < 0.7) & (segments > 0)
    masked = targets & (rng.random((B, L)) < share)
    batch = Batch(
        inputs=ModelInputs(rng.integers(0, V, (B, L)).astype(np.int32), segments, np.zeros((B, L), np.int32)),
        targets=targets,
        tail_pads=targets & (rng.random((B, L)) < 0.2),
        sample_ids=np.zeros((B, S), np.uint32),
        epochs=np.zeros((B, S), np.int32),
        group_ids=rng.integers(0, TASKS, (B, S)).astype(np.int32),
    )
    ratio = rng.uniform(0.05, 1, (B, S)).astype(np.float32)
    probability = np.take_along_axis(ratio, np.maximum(segments - 1, 0), 1)
    corrupted = Corrupted(np.where(masked, V - 1, batch.inputs.tokens), masked, ratio, probability)
    hidden, head = (rng.normal(size=shape).astype(np.float32) for shape in ((B, L, D), (D, V)))
    return hidden, head, batch, corrupted


def dense(hidden, head, batch, corrupted, config):
    """The objective from all logits: (loss, -log p [B, L], scored [B, L])."""
    segments, offset = batch.inputs.segment_ids, ALIGNMENTS[config.alignment].offset
    logits = jnp.roll(hidden @ head, offset, axis=1)
    valid = segments > 0
    if offset:
        valid &= np.arange(L)[None] > 0
        if config.alignment == "shifted":
            valid &= segments == jnp.roll(segments, 1, axis=1)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch.inputs.tokens[..., None], axis=-1)[..., 0]
    scored = corrupted.masked & valid
    if config.weighting == "inverse_t":
        return jnp.where(scored, nll / corrupted.probability, 0).sum() / (batch.targets & valid).sum(), nll, scored
    if config.weighting == "sample":
        answers = batch.targets & ~batch.tail_pads
        lengths = jnp.stack([(answers & (segments == s + 1)).sum(1) for s in range(S)], 1)
        each = jnp.take_along_axis(lengths, jnp.maximum(segments - 1, 0), 1)
        return jnp.where(scored, nll / jnp.maximum(each, 1), 0).sum() / (lengths > 0).sum(), nll, scored
    return jnp.where(scored, nll, 0).sum() / scored.sum(), nll, scored


def objective(hidden, head, batch, corrupted, config):
    result = masked_cross_entropy(hidden, head, batch, corrupted, config, TASKS)
    return result.loss, result


ours = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True), static_argnums=4)
reference = jax.jit(jax.value_and_grad(lambda *args: dense(*args)[0], argnums=(0, 1)), static_argnums=4)


@pytest.mark.parametrize(
    "config",
    [
        LossConfig(chunk=7),
        LossConfig(chunk=10, groups=2, weighting="inverse_t"),
        LossConfig(chunk=10, groups=2, weighting="sample"),
        LossConfig(alignment="same_position", chunk=1000, groups=4),
        LossConfig(alignment="shifted_released", chunk=16, capacity=0.5),
    ],
    ids=lambda c: f"{c.alignment}-{c.weighting}-{c.groups}",
)
def test_equals_the_dense_loss(config):
    args = example()
    hidden, head, batch, corrupted = args
    (loss, result), gradients = ours(*args, config)
    expected, expected_gradients = reference(*args, config)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for mine, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)

    _, nll, scored = (np.asarray(x) for x in dense(*args, config))
    owner = np.maximum(batch.inputs.segment_ids - 1, 0)
    tasks = np.take_along_axis(batch.group_ids, owner, 1)
    bucket = np.minimum((np.take_along_axis(corrupted.ratio, owner, 1) * config.noise_buckets).astype(int), 3)
    logits = np.roll(hidden @ head, ALIGNMENTS[config.alignment].offset, axis=1)
    correct = logits.argmax(-1) == batch.inputs.tokens
    for task in range(TASKS):
        mine = scored & (tasks == task)
        np.testing.assert_allclose(result.group_nll[task], nll[mine].sum(), rtol=1e-5)
        assert result.group_masked[task] == mine.sum()
        assert result.group_correct[task] == correct[mine].sum()
    for i in range(config.noise_buckets):
        mine = scored & (bucket == i)
        np.testing.assert_allclose(result.noise_nll[i], nll[mine].sum(), rtol=1e-5)
        assert result.noise_masked[i] == mine.sum()
    np.testing.assert_allclose(result.nll, nll[scored].sum(), rtol=1e-5)
    np.testing.assert_allclose(result.weighted_nll, (nll / corrupted.probability)[scored].sum(), rtol=1e-5)
    assert (result.masked, result.correct, result.dropped) == (scored.sum(), correct[scored].sum(), 0)
    np.testing.assert_allclose(result.total / result.normalizer, loss)

    (evaluated, _) = jax.jit(objective, static_argnums=4)(*args, config)  # without gradients
    np.testing.assert_allclose(evaluated, loss, rtol=1e-6)


def test_overflow_is_counted_and_the_rest_scored():
    args = example(share=0.9)
    config = LossConfig(alignment="same_position", chunk=8, capacity=0.25)
    (loss, result), _ = ours(*args, config)
    assert result.masked == 24
    assert result.dropped == args[3].masked.sum() - 24
    _, nll, scored = (np.asarray(x) for x in dense(*args, config))
    np.testing.assert_allclose(loss, nll[scored][:24].mean(), rtol=1e-5)


def test_nothing_masked_costs_nothing():
    (loss, result), gradients = ours(*example(share=0.0), LossConfig())
    assert loss == 0 == result.masked
    assert not any(np.asarray(g).any() for g in gradients)


def test_bfloat16_hidden_states():
    hidden, head, batch, corrupted = example()
    config = LossConfig()
    (loss, _), (d_hidden, d_head) = ours(hidden.astype(jnp.bfloat16), head, batch, corrupted, config)
    assert (d_hidden.dtype, d_head.dtype) == (jnp.bfloat16, jnp.float32)
    expected, (e_hidden, e_head) = reference(hidden, head, batch, corrupted, config)
    np.testing.assert_allclose(loss, expected, rtol=0.02)
    np.testing.assert_allclose(d_head, e_head, atol=0.02 * np.abs(e_head).max())
    np.testing.assert_allclose(d_hidden.astype(np.float32), e_hidden, atol=0.02 * np.abs(e_hidden).max())


def test_whole_vocabulary_logits_never_exist():
    hidden, head, batch, corrupted = jax.tree.map(jnp.asarray, example())
    config = LossConfig(chunk=8)
    step = jax.grad(lambda *args: objective(*args, config)[0], argnums=(0, 1))
    largest = max(
        (var.aval.shape for jaxpr in _jaxprs(jax.make_jaxpr(step)(hidden, head, batch, corrupted).jaxpr)
         for equation in jaxpr.eqns for var in equation.outvars if V in var.aval.shape),
        key=np.prod,
    )  # fmt: skip
    assert np.prod(largest) <= 8 * V


def _jaxprs(jaxpr):
    yield jaxpr
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _jaxprs(inner)


def test_alignment():
    segments = np.array([[1, 1, 2, 2, 2, 0]], np.int32)
    for name, index, valid in (
        ("shifted", [0, 0, 1, 2, 3, 4], [0, 1, 0, 1, 1, 0]),
        ("shifted_released", [0, 0, 1, 2, 3, 4], [0, 1, 1, 1, 1, 0]),
        ("same_position", [0, 1, 2, 3, 4, 5], [1, 1, 1, 1, 1, 0]),
    ):
        found = predictors(name, segments)
        np.testing.assert_array_equal(found[0], [index], err_msg=name)
        np.testing.assert_array_equal(found[1], np.array([valid], bool), err_msg=name)
    with pytest.raises(UserError, match="unknown logit alignment 'shift'; did you mean 'shifted'"):
        predictors("shift", segments)


def test_settings_are_checked():
    with pytest.raises(UserError, match="capacity = 0.0 must be above 0"):
        build(LossConfig, {"capacity": 0.0})
    with pytest.raises(UserError, match="must be at least 1"):
        build(LossConfig, {"chunk": 0})
    with pytest.raises(ValueError, match="4 rows does not divide into 3 groups"):
        ours(*example(), dataclasses.replace(LossConfig(), groups=3))
