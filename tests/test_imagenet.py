"""The judge of pictures by features: the network against plain steps, weights that are not its own, what it keeps."""

import efficientnet_toys as toys
import jax
import legacy_files
import numpy as np
import pytest
from safetensors.numpy import save_file

from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.judges.imagenet import ImagenetJudge, prepared
from omnidiff_jax.evaluation.judges.named import judge_for, open_judge
from omnidiff_jax.models.efficientnet import (
    EfficientNet,
    EfficientNetConfig,
    efficientnet_params,
    perceptual_distance,
    scaled,
)

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, shape).astype(np.uint8) for shape in ((64, 64, 3), (30, 47, 3), (224, 224, 3))]


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    legacy_files.write(folder / "weights.pth", toys.tensors())
    return ImagenetJudge(folder, toys.CONFIG)


@pytest.mark.parametrize("convolve", [toys.by_numpy, toys.by_torch])
def test_the_network_is_that_of_plain_steps(convolve):
    if convolve is toys.by_torch:
        pytest.importorskip("torch", reason="the extra torch")
    given = toys.tensors()
    params = efficientnet_params(given, toys.CONFIG, "toys")
    pixels = np.asarray(scaled(RNG.integers(0, 256, (2, 21, 18, 3)).astype(np.float32)))
    found = jax.jit(EfficientNet(toys.CONFIG).apply)({"params": params}, pixels)
    for ours, plain in zip(found, toys.plainly(given, pixels, convolve), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)


def test_the_default_is_lite0():
    config = EfficientNetConfig()
    given = {name: np.zeros(value.shape) for name, value in toys.tensors(config).items()}
    efficientnet_params(given, config, "toys")
    assert sum(value.size for name, value in given.items() if "num_" not in name) == 4_694_024  # those of the release


def test_pictures_are_read_as_the_network_was_taught(judge):
    pixels = np.stack([prepared(picture) for picture in PICTURES])
    assert pixels.shape == (3, 224, 224, 3) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels[2], PICTURES[2])
    features, logits = toys.plainly(toys.tensors(), (pixels - 127.0) / 128.0, toys.by_numpy)
    np.testing.assert_allclose(judge.features(PICTURES), features, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(judge.logits(PICTURES), logits, rtol=1e-4, atol=1e-5)


def test_a_picture_is_computed_once_and_for_itself(judge, monkeypatch):
    together = judge.features(PICTURES)
    asked, computed = [], judge._seen._judged
    monkeypatch.setattr(judge._seen, "_judged", lambda new: asked.extend(new) or computed(new))
    judge._seen._found.clear()
    np.testing.assert_array_equal(judge.features(PICTURES[1:2] * 3)[2], together[1])
    np.testing.assert_array_equal(judge.features(PICTURES), together)
    assert len(asked) == 3 and judge.features([]).shape == (0, toys.CONFIG.features)


def test_weights_of_another_model(tmp_path):
    def fault(change, expected):
        given = toys.tensors()
        change(given)
        with pytest.raises(UserError, match=expected):
            efficientnet_params(given, toys.CONFIG, "weights")

    fault(lambda given: given.pop("_blocks.1._bn1.running_var"), r"weights: tensor '_blocks.1._bn1.running_var' is mis")
    fault(lambda given: given.update(more=np.zeros(1)), "tensor 'more' is none of the model's")
    fault(lambda given: given.update({"_fc.weight": np.zeros((3, 8))}), r"_fc.weight must make kernel \(8, 7\)")
    fault(lambda given: given.update({"_bn0.bias": np.zeros(9)}), "_conv_stem.weight and its norm do not fit")


def test_folders(tmp_path, judge):
    with pytest.raises(UserError, match="has 0 files of weights"):
        ImagenetJudge(tmp_path)
    save_file(toys.tensors(), tmp_path / "weights.safetensors")
    other = ImagenetJudge(tmp_path, toys.CONFIG)
    np.testing.assert_array_equal(other.features(PICTURES), judge.features(PICTURES))
    assert other.name.startswith("imagenet-") and other.name != judge.name
    with pytest.raises(UserError, match="weights are of another model"):
        open_judge(f"imagenet:{tmp_path}", "picture features")
    with pytest.raises(UserError, match="reads picture features; this exam needs one of picture: clip"):
        open_judge(f"imagenet:{tmp_path}", "picture")
    with pytest.raises(UserError, match="answers are picture, which is read by --judge=clip:FOLDER$"):
        judge_for([f"imagenet:{tmp_path}"], "picture")
    legacy_files.write(tmp_path / "weights.pth", toys.tensors())
    with pytest.raises(UserError, match="has 2 files of weights"):
        ImagenetJudge(tmp_path, toys.CONFIG)


def test_pictures_are_as_far_apart_as_their_features_look():
    params = efficientnet_params(toys.tensors(), toys.CONFIG, "toys")
    one, other = RNG.uniform(-1, 1, (2, 2, 16, 16, 3)).astype(np.float32)
    measured = jax.jit(jax.value_and_grad(lambda *told: perceptual_distance(toys.CONFIG, *told), (0, 1, 2)))
    distance, (constant, into, back) = measured(params, one, other)
    assert 1e-3 < distance <= 4 and measured(params, one, one)[0] < 1e-12
    np.testing.assert_allclose(measured(params, other, one)[0], distance, rtol=1e-5)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(constant)), "weights are constants"
    assert np.abs(into).max() > 0 and np.abs(back).max() > 0
    step = 0.1 * np.asarray(into) / np.linalg.norm(into)
    assert measured(params, one - step, other)[0] < distance < measured(params, one + step, other)[0]
