"""The judge of pictures: transformers' CLIP recorded and alive, and folders that are not CLIP's."""

import json

import clip_toys
import numpy as np
import pytest

from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.judges.clip import ClipJudge, prepared
from omnidiff_jax.evaluation.judges.clip_model import ClipConfig, clip_params


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return clip_toys.write_folder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def judge(folder):
    return ClipJudge(folder)


def check(judge, expected):
    for picture, pixels in zip(clip_toys.pictures(), expected["pixels"], strict=True):
        np.testing.assert_allclose(prepared(picture, judge.config.image_size), pixels, atol=1e-5)
    seen = np.stack([judge.of_picture(picture) for picture in clip_toys.pictures()])
    said = np.stack([judge.of_text(text) for text in clip_toys.TEXTS])
    np.testing.assert_allclose(seen, expected["pictures"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(said, expected["texts"], rtol=1e-4, atol=1e-5)


def test_vectors_are_those_that_transformers_gave(judge):
    with np.load(clip_toys.RECORDED) as recorded:
        check(judge, recorded)
    assert judge.name.startswith("clip-") and len(judge.name) == 13


def test_vectors_are_those_that_transformers_gives(judge, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    check(judge, clip_toys.record(tmp_path / "clip"))


@pytest.mark.parametrize(
    ("patch", "vision", "text"), [(14, (1024, 24, 16), (768, 12, 12)), (32, (768, 12, 12), (512, 12, 8))]
)
def test_released_sizes_have_the_tensors_that_transformers_has(patch, vision, text):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def tower(width, layers, heads):
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
        }

    content = {
        "projection_dim": text[0],
        "text_config": tower(*text),
        "vision_config": tower(*vision) | {"patch_size": patch},
    }
    with torch.device("meta"):
        theirs = transformers.CLIPModel(transformers.CLIPConfig(**content)).state_dict()
    empty = {name: np.broadcast_to(np.float32(0), tuple(tensor.shape)) for name, tensor in theirs.items()}
    clip_params(empty, ClipConfig.of_json(content, "config"), "weights")


def test_folders_that_are_not_clips(folder, tmp_path):
    with pytest.raises(UserError, match=r"no config.json"):
        ClipJudge(tmp_path)
    copy = clip_toys.write_folder(tmp_path / "copy")
    for change, fault in (
        ({"model_type": "siglip"}, "model_type is 'siglip'"),
        ({"projection_dim": 13}, r"must be \(16, 13\)"),
        ({"text_config": clip_toys.CONFIG["text_config"] | {"num_hidden_layers": 1}}, "more than its config.json"),
        ({"vision_config": clip_toys.CONFIG["vision_config"] | {"hidden_act": "relu"}}, "relu"),
    ):
        (copy / "config.json").write_text(json.dumps(clip_toys.CONFIG | change))
        with pytest.raises(UserError, match=fault):
            ClipJudge(copy)
    with pytest.raises(UserError, match="of another model"):
        clip_params({"bert.weight": np.zeros(1)}, ClipConfig(), "x")
