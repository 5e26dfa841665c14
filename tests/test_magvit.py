"""MAGVIT-v2 against the released code's numbers, and the quantizer's losses."""

import dataclasses
import functools
import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnidiff_jax.conversion import magvit as conversion
from omnidiff_jax.conversion.rules import to_flax, to_torch, torch_shapes
from omnidiff_jax.models import lfq
from omnidiff_jax.models.magvit import Magvit, MagvitConfig

GOLDEN = Path(__file__).parent / "golden"


def abstract_params(config: MagvitConfig, size: int = 32):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(Magvit(config).init, jax.random.key(0), image)["params"]


def weights_by_rule(meta: dict) -> dict[str, np.ndarray]:
    """The seeded weights of fixtures that store none (`meta["weights_rule"]`)."""
    weights = {}
    for name, shape in meta["param_shapes"].items():
        if name.startswith("quantize."):
            continue
        z = np.random.default_rng([meta["seed"], zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
        if "norm" in name:
            weights[name] = 1 + 0.1 * z if name.endswith("weight") else 0.1 * z
        else:
            weights[name] = 0.05 * z if name.endswith("bias") else z * np.float32(1 / np.sqrt(np.prod(shape[1:])))
    return weights


@pytest.mark.parametrize("name", ["magvitv2_small_stored", "magvitv2_full_structure_ch32"])
def test_matches_released(name):
    data = np.load(GOLDEN / f"{name}.npz")
    meta = json.loads(str(data["meta"]))
    config = MagvitConfig(
        channels=meta["ch"],
        encoder_multipliers=tuple(meta["encoder_ch_mult"]),
        encoder_blocks=tuple(meta["encoder_num_res_blocks"]),
        encoder_kernels=(3,) * len(meta["encoder_ch_mult"]),
        decoder_multipliers=tuple(meta["decoder_ch_mult"]),
        decoder_blocks=tuple(meta["decoder_num_res_blocks"]),
        code_bits=meta["z_channels"],
    )
    if "weights_rule" in meta:
        weights = weights_by_rule(meta)
        for key, total in meta["param_sums"].items():
            if key in weights:
                np.testing.assert_allclose(weights[key].sum(dtype=np.float64), total, rtol=1e-3, atol=1e-3)
    else:
        weights = {k.removeprefix("params/"): data[k] for k in data.files if k.startswith("params/")}
    params = to_flax(conversion.RULES, weights, like=abstract_params(config))
    back = to_torch(conversion.RULES, params)
    assert back.keys() == weights.keys() and all(np.array_equal(back[k], weights[k]) for k in weights)

    model = Magvit(config)
    images = data["in/image"].transpose(0, 2, 3, 1)
    batch, grid = len(images), images.shape[1] // config.downsampling

    @jax.jit
    def run(params, images, random_codes):
        z = model.apply({"params": params}, images, method="features")
        codes = lfq.bits_to_codes(z)
        stacked = jnp.concatenate([codes, random_codes])
        return z, codes, model.apply({"params": params}, stacked, method="decode")

    with jax.default_matmul_precision("highest"):
        z, codes, decoded = run(params, images, data["in/random_codes"].reshape(batch, grid, grid))
    np.testing.assert_allclose(z.transpose(0, 3, 1, 2), data["out/encoder_z"], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(codes.reshape(batch, -1), data["out/codes"])
    decoded = decoded.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(decoded[:batch], data["out/decoded_from_codes"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(decoded[batch:], data["out/decoded_from_random_codes"], rtol=1e-4, atol=1e-4)


def test_full_size_names_and_shapes():
    manifest = json.loads((GOLDEN / "manifests" / "magvitv2.json").read_text())["tensors"]
    shapes = {k: list(v) for k, v in torch_shapes(conversion.RULES, abstract_params(MagvitConfig())).items()}
    shapes |= {k: list(v.shape) for k, v in conversion.buffers(13).items()}
    assert shapes == manifest


def test_codes_are_bit_patterns_most_significant_first():
    codes = jnp.arange(8192)
    bits = lfq.codes_to_bits(codes, 13)
    np.testing.assert_array_equal(bits[4096], [1.0] + [-1.0] * 12)
    np.testing.assert_array_equal(bits, conversion.buffers(13)["quantize.embedding"])
    np.testing.assert_array_equal(lfq.bits_to_codes(bits * 0.3), codes)
    expected = np.load(GOLDEN / "magvitv2_small_stored.npz")["out/codebook_rows_0_1_2_4096_8191"]
    np.testing.assert_array_equal(bits[jnp.array([0, 1, 2, 4096, 8191])], expected)


def test_quantize_passes_gradients_straight_through():
    z = jnp.array([[0.2, -3.0, 0.0]])
    value, pullback = jax.vjp(lfq.quantize, z)
    np.testing.assert_allclose(value, [[1.0, -1.0, -1.0]], atol=1e-6)
    np.testing.assert_array_equal(pullback(jnp.full((1, 3), 2.0))[0], jnp.full((1, 3), 2.0))


def test_factorised_entropies_equal_the_whole_codebook():
    """Against a softmax over distances to all 2**K codebook entries."""
    bits, temperature = 5, 0.7
    z = jax.random.normal(jax.random.key(0), (3, 4, bits))
    losses = jax.jit(lfq.lfq_losses, static_argnums=1)
    _, parts = losses(z, lfq.LfqLossConfig(temperature=temperature, group_bits=bits))
    entries = lfq.codes_to_bits(jnp.arange(2**bits), bits)
    distances = jnp.sum(jnp.square(z.reshape(-1, 1, bits) - entries[None]), axis=-1)
    p = jax.nn.softmax(-distances / temperature, axis=-1)
    entropy = lambda q: -jnp.sum(q * jnp.log(q), axis=-1)  # noqa: E731
    np.testing.assert_allclose(parts["sample_entropy"], entropy(p).mean(), rtol=1e-5)
    np.testing.assert_allclose(parts["batch_entropy"], entropy(p.mean(0)), rtol=1e-5)
    _, grouped = losses(z, lfq.LfqLossConfig(temperature=temperature, group_bits=2))
    assert grouped["batch_entropy"] >= parts["batch_entropy"]


def test_position_norm_and_kernel_one_keep_codes_local():
    """A patch's features must not move when any other patch does; the released layout lets them."""
    wide = MagvitConfig(
        channels=8,
        encoder_multipliers=(1, 2),
        encoder_blocks=(1, 1),
        encoder_kernels=(3, 3),
        decoder_multipliers=(1, 1),
        decoder_blocks=(0, 0),
        decoder_middle=False,
        patch=4,
        norm_groups=4,
    )
    strict = dataclasses.replace(
        wide, encoder_kernels=(1, 1), downsample_kernel=2, encoder_middle=False, norm_scope="position"
    )
    assert strict.downsampling == wide.downsampling == 8
    image = jax.random.uniform(jax.random.key(1), (1, 16, 16, 3))
    changed = image.at[:, 8:, :8].set(0.0)
    both = jnp.concatenate([image, changed])
    for config, moves in ((strict, False), (wide, True)):
        model = Magvit(config)
        params = jax.jit(model.init)(jax.random.key(0), image)
        z, other = jnp.split(jax.jit(functools.partial(model.apply, method="features"))(params, both), 2)
        assert bool(jnp.any(z[:, 0, 0] != other[:, 0, 0])) is moves
        assert bool(jnp.any(z[:, 1, 0] != other[:, 1, 0]))


def test_config_refuses_levels_that_disagree():
    with pytest.raises(ValueError, match="decoder_blocks has 1 levels"):
        MagvitConfig(decoder_blocks=(1,))
    with pytest.raises(ValueError, match="norm_groups 32 does not divide"):
        MagvitConfig(channels=24)
