"""Corruption: the released rule to the bit, and noise that belongs to the sample, not to its place in a batch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from experiments.configs import nano
from omnidiff_jax.batch import Batch, ModelInputs
from omnidiff_jax.config import build
from omnidiff_jax.diffusion.masking import MaskingConfig, corrupt, released_forward_process
from omnidiff_jax.errors import UserError
from omnidiff_jax.runs.config import run_config
from omnidiff_jax.vocabulary import Vocabulary

VOCABULARY = Vocabulary.compact(40, 16, 16)
RELEASED = Vocabulary.released()
ROWS, LENGTH, SAMPLES = 3, 48, 4
PAPER, RELEASED_MODE = MaskingConfig(), MaskingConfig(mode="released")
forward_process = jax.jit(released_forward_process)
mask_batch = jax.jit(corrupt, static_argnums=(2, 3))


# ---- the released rule ------------------------------------------------------------------------------------


def test_released_forward_process(golden):
    fixture = np.load(golden / "forward_process.npz")
    for name, case in json.loads(str(fixture["meta"]))["cases"].items():
        labels = fixture[f"in/{name}/labels"]
        masked = forward_process(
            labels != -100,
            labels == case["special_token_id"],
            fixture[f"in/{name}/u_threshold"],
            fixture[f"in/{name}/u_decision"],
            case["eps"],
            case["special_mask_ratio"],
        )
        np.testing.assert_array_equal(masked, fixture[f"out/{name}/masked_indices"], err_msg=name)


def test_released_preprocessing(golden):
    """The masked half of `preprocess`: uniforms are drawn for the span from the first to the last label."""
    fixture = np.load(golden / "preprocess.npz")
    for name in json.loads(str(fixture["meta"]))["samples"]:
        tokens, labels = fixture[f"out/{name}/padded_input_ids"], fixture[f"out/{name}/padded_labels"]
        first, last = np.flatnonzero(labels != -100)[[0, -1]]
        draws = np.ones((2, 160), np.float32)  # one length for all samples, one compilation
        draws[:, first : last + 1] = fixture[f"in/{name}/u_threshold"], fixture[f"in/{name}/u_decision"]
        padded = np.pad(labels, (0, 160 - len(labels)), constant_values=-100)
        masked = forward_process(padded != -100, padded == RELEASED.pad, *draws, 1e-3, 0.6)[: len(labels)]
        np.testing.assert_array_equal(masked, fixture[f"out/{name}/masked_indices"], err_msg=name)
        masked = np.asarray(masked) & (labels != -100)
        np.testing.assert_array_equal(np.where(masked, RELEASED.mask, tokens), fixture[f"out/{name}/input_ids"])
        np.testing.assert_array_equal(np.where(masked, labels, -100), fixture[f"out/{name}/labels"])


# ---- batches ----------------------------------------------------------------------------------------------


def sample(sample_id, length, condition, pads):
    """Tokens and flags of one sample, a function of its id and shape: `condition` tokens, targets, tail pads."""
    rng = np.random.default_rng(sample_id)
    tokens = rng.integers(0, VOCABULARY.text_size, length).astype(np.int32)
    tokens[length - pads :] = VOCABULARY.pad
    return tokens, np.arange(length) >= condition, np.arange(length) >= length - pads


def pack(rows, epoch=0):
    """Packs rows of (sample_id, length, condition, pads)."""
    batch = Batch(
        inputs=ModelInputs(*(np.zeros((ROWS, LENGTH), np.int32) for _ in range(3))),
        targets=np.zeros((ROWS, LENGTH), bool),
        tail_pads=np.zeros((ROWS, LENGTH), bool),
        sample_ids=np.zeros((ROWS, SAMPLES), np.uint32),
        epochs=np.full((ROWS, SAMPLES), epoch, np.int32),
        group_ids=np.full((ROWS, SAMPLES), -1, np.int32),
    )
    for row, samples in enumerate(rows):
        start = 0
        for column, (sample_id, length, condition, pads) in enumerate(samples):
            place = np.s_[row, start : start + length]
            values = sample(sample_id, length, condition, pads)
            batch.inputs.tokens[place], batch.targets[place], batch.tail_pads[place] = values
            batch.inputs.segment_ids[place], batch.inputs.positions[place] = column + 1, np.arange(length)
            batch.sample_ids[row, column], batch.group_ids[row, column] = sample_id, 0
            start += length
    return batch


@st.composite
def samples(draw):
    length = draw(st.integers(3, 12))
    condition = draw(st.integers(1, length - 1))
    return draw(st.integers(0, 2**32 - 1)), length, condition, draw(st.integers(0, length - condition))


packings = st.lists(st.lists(samples(), max_size=SAMPLES), min_size=ROWS, max_size=ROWS)


@given(packings, st.integers(0, 2**31 - 1), st.sampled_from([PAPER, RELEASED_MODE]))
def test_only_targets_are_masked(rows, seed, config):
    batch = pack(rows)
    corrupted = jax.tree.map(np.asarray, mask_batch(batch, seed, config, VOCABULARY))
    assert not (corrupted.masked & ~batch.targets).any()
    np.testing.assert_array_equal(corrupted.tokens, np.where(corrupted.masked, VOCABULARY.mask, batch.inputs.tokens))
    present = batch.group_ids >= 0
    assert (corrupted.ratio[~present] == 0).all()
    if config.mode == "paper":
        assert (corrupted.ratio[present] >= config.min_noise).all()
        t = np.take_along_axis(corrupted.ratio, np.maximum(batch.inputs.segment_ids - 1, 0), axis=1)
        expected = t * np.where(batch.tail_pads, np.float32(config.tail_pad_gamma), 1)
        np.testing.assert_allclose(corrupted.probability, np.where(batch.targets, expected, 1), rtol=1e-6)
    else:
        for row, column in zip(*np.nonzero(present), strict=True):
            members = batch.targets[row] & (batch.inputs.segment_ids[row] == column + 1)
            share = corrupted.masked[row][members].mean()
            np.testing.assert_allclose(corrupted.ratio[row, column], share, rtol=1e-6)
    assert (corrupted.ratio <= 1).all()


@given(samples(), st.lists(samples(), max_size=2), st.lists(samples(), max_size=1), st.integers(0, ROWS - 1))
def test_masks_do_not_depend_on_the_packing(one, before, after, row):
    alone = mask_batch(pack([[one], [], []]), 7, PAPER, VOCABULARY)
    rows = [[(1, 5, 2, 1)] for _ in range(ROWS)]
    rows[row] = [*before, one, *after]
    together = mask_batch(pack(rows), 7, PAPER, VOCABULARY)
    start, length = sum(other[1] for other in before), one[1]
    np.testing.assert_array_equal(together.masked[row, start : start + length], alone.masked[0, :length])
    assert together.ratio[row, len(before)] == alone.ratio[0, 0]


@pytest.mark.parametrize("config", [PAPER, RELEASED_MODE], ids=["paper", "released"])
def test_noise_changes_with_epoch_seed_and_sample(config):
    rows = [[(3, 40, 4, 4)], [(4, 40, 4, 4)], []]
    first = np.asarray(mask_batch(pack(rows), 0, config, VOCABULARY).masked)
    np.testing.assert_array_equal(first, mask_batch(pack(rows), 0, config, VOCABULARY).masked)
    assert (first != np.asarray(mask_batch(pack(rows, epoch=1), 0, config, VOCABULARY).masked)).any()
    assert (first != np.asarray(mask_batch(pack(rows), 1, config, VOCABULARY).masked)).any()
    assert (first[0] != first[1]).any()


@pytest.mark.parametrize("config", [PAPER, RELEASED_MODE], ids=["paper", "released"])
def test_statistics(config):
    """Paper: the share of masks is uniform over samples. Released: about half, always; γ of it at the tail."""
    shares, pads = [], []
    for i in range(150):
        batch = pack([[(1000 * i + row, LENGTH, 0, 16)] for row in range(ROWS)])
        masked = np.asarray(mask_batch(batch, 0, config, VOCABULARY).masked)
        shares.extend(masked[:, :-16].mean(1))
        pads.extend(masked[:, -16:].mean(1))
    assert abs(np.mean(shares) - 0.5) < 0.04
    assert abs(np.mean(pads) - 0.3) < 0.04
    if config.mode == "paper":
        assert abs(np.std(shares) - np.sqrt(1 / 12)) < 0.03
        assert np.mean(np.array(shares) > 0.95) > 0.03  # nearly empty canvases are trained
    else:
        assert np.std(shares) < 0.12
        assert max(shares) < 0.95


def test_a_group_may_have_a_least_noise_of_its_own():
    rows = [[(10 * row + i, 12, 2, 0) for i in range(SAMPLES)] for row in range(ROWS)]
    batch = pack(rows)
    batch.group_ids[:] = np.arange(SAMPLES) % 3
    config = MaskingConfig(min_noise=0.4, min_noise_of_groups=(0.9, 0.01, 0.4))
    ratio, plain = (
        np.asarray(mask_batch(batch, 5, c, VOCABULARY).ratio) for c in (config, MaskingConfig(min_noise=0.4))
    )
    # The same draw of each sample, over the range of its group.
    drawn = (plain - np.float32(0.4)) / np.float32(0.6)
    least = np.array([0.9, 0.01, 0.4], np.float32)[batch.group_ids]
    np.testing.assert_allclose(ratio, least + (1 - least) * drawn, rtol=1e-5)
    assert ratio[batch.group_ids == 1].min() < 0.4


def test_least_noise_is_set_by_source_or_task():
    mapping = nano.get_config()
    mapping.data.sources["more"] = ConfigDict({"reader": "jsonl", "path": "x", "task": "t2i"})
    for stage in mapping.stages.values():
        stage.weights.more = 1.0
    mapping.min_noise_of = ConfigDict({"t2i": 0.1, "vqa": 0.2})
    config = run_config(mapping)
    masking = config.corruption(config.groups)
    assert len(masking.min_noise_of_groups) == len(config.groups)
    least = dict(zip(config.groups, masking.min_noise_of_groups, strict=True))
    assert least["t2i", "t2i"] == least["more", "t2i"] == 0.1 and least["vqa", "vqa"] == 0.2
    assert least["asr", "asr"] == config.min_noise == 0.5
    mapping.min_noise_of.more = 0.3
    config = run_config(mapping)
    least = dict(zip(config.groups, config.corruption(config.groups).min_noise_of_groups, strict=True))
    assert least["more", "t2i"] == 0.3 and least["t2i", "t2i"] == 0.1
    mapping.min_noise_of = ConfigDict({"t2l": 0.1})
    with pytest.raises(UserError, match="config.min_noise_of has 't2l'.*did you mean 't2i'"):
        run_config(mapping)
    mapping.min_noise_of = ConfigDict({"t2i": 1.0})
    with pytest.raises(UserError, match="min_noise_of"):
        run_config(mapping)
    mapping.min_noise_of, mapping.masking = ConfigDict({"t2i": 0.1}), "released"
    with pytest.raises(UserError, match='config.min_noise_of needs config.masking = "paper"'):
        run_config(mapping)


def test_settings_are_checked():
    with pytest.raises(UserError, match="'papre'; did you mean 'paper'"):
        build(MaskingConfig, {"mode": "papre"})
    with pytest.raises(UserError, match="tail_pad_gamma = 1.5 must be at most 1"):
        build(MaskingConfig, {"tail_pad_gamma": 1.5})
    for name in ("eps", "min_noise"):
        with pytest.raises(UserError, match=f"{name} = 1.0 must be below 1"):
            build(MaskingConfig, {name: 1.0})
    assert jnp.issubdtype(mask_batch(pack([[], [], []]), 0, PAPER, VOCABULARY).tokens.dtype, jnp.integer)
