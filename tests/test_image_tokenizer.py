"""The image tokenizer: its folder on disk, batching, pixels, training program, and the shipped nano weights."""

import functools
import json

import efficientnet_toys as toys
import jax
import numpy as np
import optax
import pytest
from PIL import Image

from data_pipelines.scenes.tokenizers.image import ImageTokenizerRun, scene_pictures
from experiments.common import load_config
from omnidiff_jax.config import build
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.efficientnet import efficientnet_params
from omnidiff_jax.models.lfq import LfqLossConfig
from omnidiff_jax.models.magvit import Magvit, MagvitConfig
from omnidiff_jax.models.patchgan import DiscriminatorConfig
from omnidiff_jax.tokenizers import assets
from omnidiff_jax.tokenizers import image as image_tokenizer
from omnidiff_jax.tokenizers.image import ImageTokenizer, fit, to_pixels, to_unit
from omnidiff_jax.training.loop import train
from omnidiff_jax.training.optimizer import OptimizerConfig, make_optimizer, split_params
from omnidiff_jax.training.step import init_state, make_train_step
from omnidiff_jax.training.tokenizers.image import (
    FROZEN,
    AdversarialConfig,
    ImageTokenizerProgram,
    ImageTokenizerTraining,
    Network,
)

TINY = MagvitConfig(
    channels=8,
    encoder_multipliers=(1, 2),
    encoder_blocks=(0, 1),
    encoder_kernels=(1, 1),
    downsample_kernel=2,
    decoder_multipliers=(1, 2),
    decoder_blocks=(0, 1),
    encoder_middle=False,
    decoder_middle=False,
    patch=2,
    code_bits=5,
    norm_groups=1,
    norm_scope="position",
)


@functools.cache
def tiny() -> ImageTokenizer:
    params = jax.jit(Magvit(TINY).init)(jax.random.key(0), np.zeros((1, 4, 4, 3), np.float32))["params"]
    return ImageTokenizer(TINY, params, batch_sizes=(1, 4))


def random_images(count: int, height: int = 16, width: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


# ---- on disk ---------------------------------------------------------------------------------------------------


def test_folder_round_trip_is_float16(tmp_path):
    tiny().save(tmp_path)
    loaded = ImageTokenizer.load(tmp_path)
    assert loaded.config == TINY
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    for a, b in zip(jax.tree.leaves(tiny().params), jax.tree.leaves(loaded.params), strict=True):
        assert b.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(a, np.float16), b)


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="config.json.*No such file"):
        ImageTokenizer.load(tmp_path)
    tiny().save(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    good = json.loads(config.read_text())

    config.write_text(json.dumps(good | {"code_bits": 6}))
    with pytest.raises(UserError, match=r"model.safetensors: tensor 'decoder/conv_in/kernel'.*has shape.*not"):
        ImageTokenizer.load(tmp_path)
    config.write_text(json.dumps(good | {"decoder_blocks": [0, 2]}))
    with pytest.raises(UserError, match="model.safetensors lacks tensor 'decoder/up_1_block_1"):
        ImageTokenizer.load(tmp_path)
    config.write_text(json.dumps(good | {"decoder_blocks": [0, 0]}))
    with pytest.raises(UserError, match="model.safetensors holds an unknown tensor"):
        ImageTokenizer.load(tmp_path)
    config.write_text(json.dumps(good | {"code_bit": 6}))
    with pytest.raises(UserError, match="config.json.code_bit; did you mean 'code_bits'"):
        ImageTokenizer.load(tmp_path)
    config.write_text("[]")
    with pytest.raises(UserError, match="config.json must hold a JSON object"):
        ImageTokenizer.load(tmp_path)
    config.write_text("{")
    with pytest.raises(UserError, match="config.json is not JSON"):
        ImageTokenizer.load(tmp_path)

    config.write_text(json.dumps(good))
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match="model.safetensors is not a readable safetensors file"):
        ImageTokenizer.load(tmp_path)


# ---- pixels and codes ------------------------------------------------------------------------------------------


def test_fit_resizes_the_short_side_and_crops_the_centre():
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 20:60] = 200
    assert fit(picture, 20).shape == (20, 20, 3)
    assert (fit(picture, 20)[:, 2:-2] == 200).all()
    resized = np.asarray(Image.fromarray(picture).resize((40, 20), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(fit(picture, 20), resized[:, 10:30])
    square = random_images(1)[0]
    assert fit(square, 16) is square


def test_pixels_are_clamped_and_truncated():
    assert to_unit(np.array([0, 255], np.uint8)).tolist() == [-1.0, 1.0]
    # 0.999 * 255 = 254.7: truncated, not rounded.
    values = to_pixels(np.array([-3.0, -1.0, 0.998, 1.0, 2.0], np.float32))
    assert values.tolist() == [0, 0, 254, 255, 255]


def test_batches_of_any_length_agree_and_do_not_compile_again():
    tokenizer, images = tiny(), random_images(11)
    tokenizer.decode(tokenizer.encode(images[:1]))
    codes = tokenizer.encode(images)
    assert codes.shape == (11, 16) and codes.dtype == np.int32 and codes.min() >= 0 and codes.max() < 32
    drawn = tokenizer.decode(codes)
    assert drawn.shape == images.shape and drawn.dtype == np.uint8
    compiled = image_tokenizer._encode._cache_size(), image_tokenizer._decode._cache_size()
    for start, stop in ((0, 1), (0, 2), (3, 10), (5, 5)):
        np.testing.assert_array_equal(tokenizer.encode(images[start:stop]), codes[start:stop])
        np.testing.assert_array_equal(tokenizer.decode(codes[start:stop]), drawn[start:stop])
    assert (image_tokenizer._encode._cache_size(), image_tokenizer._decode._cache_size()) == compiled


def test_oblong_pictures_need_their_grid():
    images = random_images(2, 8, 24)
    codes = tiny().encode(images)
    assert tiny().grid(8, 24) == (2, 6)
    assert tiny().decode(codes, (2, 6)).shape == images.shape
    with pytest.raises(UserError, match=r"12 image codes do not fill a grid of 3x3; give grid=\(rows, columns\)"):
        tiny().decode(codes)


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="image is 10x16; sides must be multiples of 4 pixels"):
        tiny().encode(random_images(1, 10, 16))
    with pytest.raises(UserError, match=r"image codes must lie in 0..31, found -1..40"):
        tiny().decode(np.array([[0, -1, 40, 3]]))
    with pytest.raises(ValueError, match="uint8"):
        tiny().encode(np.zeros((1, 16, 16, 3), np.float32))


# ---- training --------------------------------------------------------------------------------------------------


def blocks(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of 4x4 patches, each of one of eight colours; what is seen is noisy, what is wanted is not."""
    rng = np.random.default_rng([first, count])
    colors = rng.integers(0, 2, (count, 4, 4, 3)) * 255
    wanted = np.kron(colors, np.ones((1, 4, 4, 1))).astype(np.uint8)
    noise = rng.integers(-20, 21, wanted.shape)
    return np.clip(wanted + noise, 0, 255).astype(np.uint8), wanted


def same_colors(originals: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    centre = (slice(None), slice(1, None, 4), slice(1, None, 4))
    return np.all((originals[centre] > 127) == (drawn[centre] > 127), axis=(1, 2, 3))


def run(training: ImageTokenizerTraining, steps: int, rate: float):
    program = ImageTokenizerProgram(training, blocks, lambda first, n: blocks(10**9 + first, n), same_colors)
    optimizer = OptimizerConfig()
    tx = make_optimizer(optimizer, lambda step: rate)
    state = init_state(jax.jit(program.init)(jax.random.key(0)), tx, optimizer)
    step = jax.jit(make_train_step(program.loss, tx, optimizer, seed=0))
    batches = program.batches(0)
    for _ in range(steps):
        state, metrics = step(state, next(batches))
    return program, state.params, {k: float(v) for k, v in metrics.items()}


def test_training_learns_the_pictures_and_exports(tmp_path):
    training = ImageTokenizerTraining(
        TINY,
        LfqLossConfig(temperature=1.0, group_bits=5),
        spread_steps=150,
        agreement=0.1,
        batch_size=16,
        validation_size=64,
    )
    program, params, metrics = run(training, 150, 1e-2)
    assert metrics["finite"]
    before = program.validate(jax.jit(program.init)(jax.random.key(0)))
    after = program.validate(params)
    assert after["psnr"] > before["psnr"] + 8 and after["psnr"] > 15
    assert after["survival"] > 0.9 > before["survival"]
    assert after["code_agreement"] > 0.95 and 8 <= after["codes_used"] <= 32

    program.export(params, tmp_path)
    exported = ImageTokenizer.load(tmp_path)
    seen, _ = blocks(5, 4)
    direct = ImageTokenizer(TINY, params["tokenizer"])
    assert np.mean(exported.encode(seen) == direct.encode(seen)) > 0.95


def test_factors_part_what_a_code_says():
    """Two bits for brightness, three for hue: codes agree with partners that share one of them."""
    levels, hues = np.array([90, 160, 210, 255]), np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])

    def draw(first: int, count: int, level: int, hue: int) -> np.ndarray:
        shape = (count, 4, 4)
        bright = np.random.default_rng([first, count, level]).integers(0, 4, shape)
        color = np.random.default_rng([first, count, hue, 7]).integers(0, 4, shape)
        patches = levels[bright][..., None] * hues[color]
        return np.kron(patches, np.ones((1, 4, 4, 1))).astype(np.uint8)

    def pictures(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        drawn = draw(first, count, 0, 0)
        return drawn, drawn

    def partners(first: int, count: int) -> np.ndarray:
        return np.stack([draw(first, count, 0, 1), draw(first, count, 1, 0)])

    training = ImageTokenizerTraining(
        TINY,
        LfqLossConfig(temperature=1.0, group_bits=5),
        spread_steps=200,
        factors=(2, 3),
        factor_agreement=0.1,
        batch_size=16,
        validation_size=32,
    )
    later = 10**9
    program = ImageTokenizerProgram(
        training,
        pictures,
        lambda first, n: pictures(later + first, n),
        None,
        partners,
        lambda first, n: partners(later + first, n),
    )
    optimizer = OptimizerConfig()
    tx = make_optimizer(optimizer, lambda step: 1e-2)
    params = jax.jit(program.init)(jax.random.key(0))
    before = program.validate(params)
    state, step = init_state(params, tx, optimizer), jax.jit(make_train_step(program.loss, tx, optimizer, seed=0))
    batches = program.batches(0)
    for _ in range(200):
        state, metrics = step(state, next(batches))
    after = program.validate(state.params)
    assert after["factor_agreement"] > before["factor_agreement"] + 0.15 and after["codes_used"] >= 8
    with pytest.raises(ValueError, match="must add up to model.code_bits = 5"):
        ImageTokenizerTraining(TINY, factors=(2, 2))
    with pytest.raises(UserError, match="needs pictures that share one factor each"):
        ImageTokenizerProgram(training, pictures, pictures)


@pytest.mark.slow
def test_adversarial_term_trains_both_players():
    training = ImageTokenizerTraining(
        TINY,
        adversarial=AdversarialConfig(weight=0.5, start=100, discriminator=DiscriminatorConfig(channels=8, layers=2)),
        batch_size=8,
    )
    program, params, metrics = run(training, 40, 3e-3)
    assert metrics["finite"] and metrics["discriminator"] < 0.9, "alone, it learns to tell drawn from real"

    batch = next(program.batches(0))
    grad = jax.jit(jax.grad(lambda params, step: program.loss(params, batch, jax.random.key(0), step)[0]))
    other = params | {"discriminator": jax.tree.map(lambda x: -x, params["discriminator"])}

    def change(step: int) -> float:
        """How much the tokenizer's gradient depends on the discriminator."""
        pair = (grad(p, step)["tokenizer"] for p in (params, other))
        return float(optax.tree.norm(jax.tree.map(lambda x, y: x - y, *pair)))

    assert change(99) == 0.0, "before its start the term must not reach the decoder"
    assert change(100) > 1e-3, "from its start on it must"


def test_stream_goes_back_to_a_state():
    program = ImageTokenizerProgram(ImageTokenizerTraining(TINY, batch_size=2), blocks, blocks)
    stream = program.batches(3)
    next(stream)
    state = stream.get_state()
    expected = next(stream)
    other = program.batches(3)
    other.set_state(state)
    np.testing.assert_array_equal(next(other)["seen"], expected["seen"])
    assert not np.array_equal(next(program.batches(4))["seen"], next(program.batches(3))["seen"])


# ---- the shipped nano tokenizer --------------------------------------------------------------------------------

CONFIG = "experiments/configs/tokenizers/image.py"


@functools.cache
def shipped_report() -> dict[str, float]:
    config = load_config(CONFIG, ["--config.training.validation_size=256"])
    run = build(ImageTokenizerRun, config).open()
    shipped = ImageTokenizer.load(assets.nano_dir("image_tokenizer"))
    assert shipped.config == run.program.config.model, "the shipped weights are those of the config"
    return run.program.validate({"tokenizer": shipped.params})


def test_shipped_weights_are_small():
    folder = assets.nano_dir("image_tokenizer")
    assert (folder / "model.safetensors").stat().st_size < 1.5e6
    shipped = ImageTokenizer.load(folder)
    assert sum(leaf.size for leaf in jax.tree.leaves(shipped.params)) < 600_000
    assert shipped.grid(64, 64) == (4, 4)


def test_shipped_weights_keep_the_objects():
    report = shipped_report()
    assert report["psnr"] > 30 and report["survival"] > 0.9 and report["code_agreement"] > 0.97
    assert report["factor_agreement"] > 0.97, "codes part into form and colour"


def test_an_unseen_pair_is_a_code_of_seen_parts():
    """Every form bit pattern and every colour bit pattern of held-out pairs occurs among the others."""
    shipped = ImageTokenizer.load(assets.nano_dir("image_tokenizer"))
    parts = {}
    for split in ("train", "compositional"):
        codes = shipped.encode(scene_pictures((split,), (0.3, 0.4, 0.3))(0, 400)[0])
        parts[split] = (
            set((codes >> 4).ravel().tolist()),
            set((codes & 15).ravel().tolist()),
            set(codes.ravel().tolist()),
        )
    (forms, colors, seen), (new_forms, new_colors, new) = parts["train"], parts["compositional"]
    assert new_forms <= forms and new_colors <= colors
    assert new - seen, "as whole codes they are new"


def test_shipped_codes_see_their_own_patch_only():
    shipped = ImageTokenizer.load(assets.nano_dir("image_tokenizer"))
    seen, _ = scene_pictures(("test",), (1.0, 0.0, 0.0))(0, 8)
    changed = seen.copy()
    changed[:, 16:] = 255 - changed[:, 16:]
    np.testing.assert_array_equal(shipped.encode(seen)[:, :4], shipped.encode(changed)[:, :4])


@pytest.mark.slow
def test_retraining_reaches_the_shipped_error(tmp_path):
    """Some minutes of two cores: another seed, the same config."""
    config = load_config(CONFIG, ["--config.seed=1", "--config.training.validation_size=256"])
    run = build(ImageTokenizerRun, config).open()
    state = train(run, tmp_path)
    report, shipped = run.program.validate(state.params), shipped_report()
    assert report["psnr"] > shipped["psnr"] - 1.0
    assert report["survival"] > shipped["survival"] - 0.05
    assert report["code_agreement"] > shipped["code_agreement"] - 0.02


def test_the_perceptual_term_has_its_weight_and_its_network_stays():
    given = efficientnet_params(toys.tensors(), toys.CONFIG, "toys")

    def pictures(first, count):
        found = random_images(count, 8, 8, seed=first)
        return found, found

    alone = LfqLossConfig(commitment=0.0, sample_entropy=0.0, batch_entropy=0.0)
    config = ImageTokenizerTraining(TINY, alone, perceptual=2.0, batch_size=2)
    with pytest.raises(UserError, match="perceptual = 2.0 needs a network"):
        ImageTokenizerProgram(config, pictures, pictures)
    program = ImageTokenizerProgram(config, pictures, pictures, network=Network(toys.CONFIG, given))
    params, batch = {"tokenizer": tiny().params, "perceptual": given}, next(program.batches(0))
    begun = jax.eval_shape(program.init, jax.random.key(0))
    assert jax.tree.map(np.shape, begun) == jax.tree.map(np.shape, params)
    loss, metrics = jax.jit(program.loss)(params, batch, jax.random.key(0), 0)
    told = {"absolute": 1.0, "squared": 1.0, "gradient": 0.5, "perceptual": 2.0}
    np.testing.assert_allclose(loss, sum(weight * metrics[name] for name, weight in told.items()), rtol=1e-5)
    assert metrics["perceptual"] > 0
    trained, held = split_params(params, FROZEN)
    assert held and all(name.startswith("perceptual/") for name in held) and not held.keys() & trained.keys()
