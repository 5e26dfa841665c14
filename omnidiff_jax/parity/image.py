"""MAGVIT-v2 fixtures: image to codes and back."""

from __future__ import annotations

import math
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from omnidiff_jax.conversion import magvit as conversion
from omnidiff_jax.conversion import released
from omnidiff_jax.conversion.components import magvit_params
from omnidiff_jax.errors import UserError
from omnidiff_jax.models import lfq
from omnidiff_jax.models.magvit import Magvit
from omnidiff_jax.parity.check import Check
from omnidiff_jax.parity.fixtures import Fixture, FixtureSet


def magvitv2(fixture: Fixture, check: Check, _: FixtureSet) -> None:
    keys = ("ch", "encoder_ch_mult", "encoder_num_res_blocks", "decoder_ch_mult", "decoder_num_res_blocks")
    config = released.magvit(*(fixture.setting(key) for key in (*keys, "z_channels")))
    model = Magvit(config)
    tensors = fixture.tensors or seeded_weights(fixture)
    constants = {name: tensors.pop(name) for name in conversion.BUFFERS if name in tensors}
    for name, value in conversion.buffers(config.code_bits).items():
        if name in constants and not np.array_equal(constants[name], value):
            check.fail(f"params/{name}", "is not the constant of a look-up-free quantizer")
    params = check.converted(conversion.RULES, tensors, magvit_params(config))

    pixels = fixture["in/image"].transpose(0, 2, 3, 1)

    @jax.jit
    def encode(params: dict, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = model.apply({"params": params}, pixels, method="features")
        return z, lfq.bits_to_codes(z)

    @jax.jit
    def decode(params: dict, codes: jax.Array) -> jax.Array:
        return model.apply({"params": params}, codes, method="decode").transpose(0, 3, 1, 2)

    z, codes = encode(params, pixels)
    check.relative("out/encoder_z", z.transpose(0, 3, 1, 2))
    check.exact("out/quantized", lfq.codes_to_bits(codes, config.code_bits).transpose(0, 3, 1, 2))
    check.exact("out/codes", np.asarray(codes).reshape(len(pixels), -1))
    # Its own codes, so that one flipped bit does not hide what the decoder does.
    for output, given in (
        ("out/decoded_from_codes", "out/codes"),
        ("out/decoded_from_random_codes", "in/random_codes"),
    ):
        grid = _grid(fixture, output, fixture[given].shape[1], config.downsampling)
        check.relative(output, decode(params, fixture[given].reshape(-1, *grid)))
    for output in fixture.outputs:
        if match := re.fullmatch(r"out/codebook_rows_(\d+(?:_\d+)*)", output):
            rows = np.array([int(n) for n in match[1].split("_")])
            check.exact(output, lfq.codes_to_bits(jnp.asarray(rows), config.code_bits))


def _grid(fixture: Fixture, output: str, count: int, downsampling: int) -> tuple[int, int]:
    """(rows, columns) of row-major codes: those of the recorded picture, else square, as `decode_code` takes them."""
    side = math.isqrt(count)
    grid = (side, side)
    if output in fixture:
        grid = fixture[output].shape[2] // downsampling, fixture[output].shape[3] // downsampling
    if grid[0] * grid[1] != count:
        raise UserError(f"{count} codes do not fill the grid {grid} of {output}")
    return grid


def seeded_weights(fixture: Fixture) -> dict[str, np.ndarray]:
    """Weights of a fixture that stores none but their rule (`meta.weights_rule`), checked against `meta.param_sums`."""
    fixture.setting("weights_rule")
    seed, weights = fixture.setting("seed"), {}
    for name, shape in fixture.setting("param_shapes").items():
        if name.startswith("quantize."):
            continue
        z = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
        if "norm" in name:
            weights[name] = 1 + 0.1 * z if name.endswith("weight") else 0.1 * z
        elif name.endswith("bias"):
            weights[name] = 0.05 * z
        else:
            weights[name] = z * np.float32(1 / np.sqrt(np.prod(shape[1:])))
    for name, total in fixture.meta.get("param_sums", {}).items():
        if name in weights and not np.isclose(weights[name].sum(dtype=np.float64), total, rtol=1e-3, atol=1e-3):
            raise UserError(f"the weights rule gives another {name} than the one recorded")
    return weights
