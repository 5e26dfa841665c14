"""Conversion rules: exact both ways, and nothing is skipped in silence."""

import jax
import numpy as np
import pytest

from omnidiff_jax.conversion import rules as R
from omnidiff_jax.errors import UserError

RULES = (
    R.Rule("embed.weight", "embed/embedding"),
    R.Rule("layers.{n}.fc.weight", "layers/fc/kernel", "linear"),
    R.Rule("blocks.{n:0:2}.conv.weight", "early/conv/kernel", "conv1d"),
    R.Rule("blocks.{n:2:}.conv.weight", "late/conv/kernel", "conv1d"),
    R.Rule("up.{i}.res.{j}.weight", "up_{i}/res/kernel", "conv2d"),
    R.Rule("mid.{i}.{j}.scale", "mid/scale"),
    R.Rule("buffer", R.DROPPED, optional=True),
)


def state_dict(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"embed.weight": (5, 3)}
    shapes |= {f"layers.{n}.fc.weight": (4, 3) for n in range(11)}  # 10 > 9
    shapes |= {f"blocks.{n}.conv.weight": (2, 3, 5) for n in range(5)}
    shapes |= {f"up.{i}.res.{j}.weight": (2, 3 + i, 5, 7) for i in range(2) for j in range(3)}
    shapes |= {f"mid.{i}.{j}.scale": (2,) for i in range(2) for j in range(3)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_round_trip_is_bit_exact_and_layers_are_stacked_in_order():
    source = state_dict()
    params = R.to_flax(RULES, {**source, "buffer": np.zeros(3)})
    assert params["layers"]["fc"]["kernel"].shape == (11, 3, 4)
    np.testing.assert_array_equal(params["layers"]["fc"]["kernel"][10], source["layers.10.fc.weight"].T)
    assert params["early"]["conv"]["kernel"].shape == (2, 5, 3, 2)
    np.testing.assert_array_equal(
        params["late"]["conv"]["kernel"][0], source["blocks.2.conv.weight"].transpose(2, 1, 0)
    )
    assert params["up_1"]["res"]["kernel"].shape == (3, 5, 7, 4, 2)
    np.testing.assert_array_equal(params["mid"]["scale"][1, 2], source["mid.1.2.scale"])
    back = R.to_torch(RULES, params)
    assert back.keys() == source.keys()
    for name, value in source.items():
        np.testing.assert_array_equal(back[name], value)
        assert back[name].dtype == value.dtype


def test_loaders_are_called_once_each():
    calls = []

    def loader(name, value):
        return lambda: calls.append(name) or value

    source = state_dict()
    lazy = {name: loader(name, value) for name, value in source.items()}
    path, leaf = next(R.iter_flax(RULES, lazy))
    assert (path, calls) == ("embed/embedding", ["embed.weight"])
    calls.clear()
    eager, params = R.to_flax(RULES, source), R.to_flax(RULES, lazy)
    assert sorted(calls) == sorted(source)
    jax.tree.map(np.testing.assert_array_equal, eager, params)


@pytest.mark.parametrize(
    "name, shape, turned",
    [
        ("none", (2, 3), (2, 3)),
        ("linear", (2, 3), (3, 2)),
        ("conv1d", (2, 3, 5), (5, 3, 2)),
        ("conv2d", (2, 3, 5, 7), (5, 7, 3, 2)),
        ("conv_transpose1d", (2, 3, 5), (5, 2, 3)),
        ("pointwise1d", (2, 3, 1), (3, 2)),
        ("heads:4", (8,), (4, 2)),
        ("heads_out:4", (8, 3), (3, 4, 2)),
        ("heads_out:3,4", (24, 5), (5, 3, 4, 2)),
        ("heads_in:4", (3, 8), (4, 2, 3)),
    ],
)
def test_transforms_invert(name, shape, turned):
    value = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    out = R.transform(name).forward(value)
    assert out.shape == turned
    np.testing.assert_array_equal(R.transform(name).inverse(out), value)


def test_heads_agree_with_the_plain_product():
    rng = np.random.default_rng(2)
    x, weight = rng.standard_normal(3), rng.standard_normal((8, 3))
    np.testing.assert_allclose(
        np.einsum("i,ihd->hd", x, R.transform("heads_out:4").forward(weight)), (weight @ x).reshape(4, 2)
    )
    weight = rng.standard_normal((3, 8))
    y = rng.standard_normal((4, 2))
    np.testing.assert_allclose(
        np.einsum("hd,hdo->o", y, R.transform("heads_in:4").forward(weight)), weight @ y.reshape(-1)
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(stray=np.zeros(1)), "stray"),
        (lambda d: d.pop("embed.weight"), "embed.weight"),
        (lambda d: d.pop("layers.4.fc.weight"), "lacks layer 4 "),
        (lambda d: d.pop("blocks.1.conv.weight"), "lacks layer 1 "),
        (lambda d: d.pop("blocks.3.conv.weight"), "lacks layer 3 "),
        (lambda d: d.update({"layers.1.fc.weight": np.zeros((9, 9), np.float32)}), "layers.1.fc.weight"),
    ],
)
def test_leftovers_are_refused_by_name(change, message):
    source = state_dict()
    change(source)
    with pytest.raises(UserError, match=message):
        R.to_flax(RULES, source)


def test_bad_rules_and_trees_are_refused():
    source = state_dict()
    params = R.to_flax(RULES, source)
    with pytest.raises(UserError, match="two rules"):
        R.to_flax((*RULES, R.Rule("layers.{m}.fc.weight", "other")), source)
    with pytest.raises(UserError, match="both fill"):
        R.plan((R.Rule("{a}", "x"), R.Rule("b{a}", "x")), ["0", "b0"])
    with pytest.raises(UserError, match="unknown transform"):
        R.plan((R.Rule("a", "b", "line"),), ["a"])
    with pytest.raises(UserError, match="no rule"):
        R.to_torch(RULES, {**params, "extra": np.zeros(1)})
    with pytest.raises(UserError, match="lack"):
        R.to_torch(RULES, {k: v for k, v in params.items() if k != "embed"})
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    assert R.torch_shapes(RULES, abstract) == {name: value.shape for name, value in source.items()}
    R.to_flax(RULES, source, like=abstract)
    with pytest.raises(UserError, match="unfilled: extra"):
        R.to_flax(RULES, source, like={**abstract, "extra": jax.ShapeDtypeStruct((1,), np.float32)})
    with pytest.raises(UserError, match="another size"):
        R.to_flax(RULES, source, like={**abstract, "embed": {"embedding": jax.ShapeDtypeStruct((5, 4), np.float32)}})
