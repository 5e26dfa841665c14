"""Starting from converted weights: the vocabulary grows, absent parts are fresh, LoRA trains thin matrices alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict
from released_toys import BACKBONE, OMNI_JSON, read_folder, released_tensors, write_folder

from omnidiff_jax.conversion.to_orbax import to_orbax
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.adapter import AdapterConfig
from omnidiff_jax.models.omni import OmniConfig, init_params
from omnidiff_jax.models.sanm import SpeechEncoderConfig
from omnidiff_jax.training import lora
from omnidiff_jax.training.initial import InitConfig, load_initial, on_one_device
from omnidiff_jax.training.optimizer import OptimizerConfig
from omnidiff_jax.training.step import init_state, make_train_step

MODEL = OmniConfig(
    dataclasses.replace(BACKBONE, vocab_size=50, dtype="float32"),
    SpeechEncoderConfig(features=14, width=8, heads=2, ffn=12, blocks=2, tp_blocks=0, kernel=5, vocab_size=7),
    AdapterConfig(8, 16),
)


def fresh(key):
    return meta.unbox(init_params(MODEL, key))


@pytest.fixture(scope="module")
def text_only(tmp_path_factory):
    """A converted checkpoint of the backbone alone, 40 ids."""
    folder = tmp_path_factory.mktemp("text_only")
    tensors = {n: t for n, t in released_tensors("omni").items() if "audio" not in n}
    source = write_folder(folder / "released", tensors, OMNI_JSON)
    to_orbax(source, folder / "orbax")
    return folder


def start(text_only, **options):
    target = on_one_device(jax.eval_shape(fresh, jax.random.key(0)))
    return load_initial(InitConfig(str(text_only / "orbax"), **options), target, fresh, jax.random.key(3))


def test_a_text_only_checkpoint_grows_to_the_whole_vocabulary(text_only):
    tensors = read_folder(text_only / "released")[0]
    params = start(text_only, rows=38)
    table, head = params["backbone"]["embedding"], params["backbone"]["head"]
    assert table.shape == (50, 16) and head.shape == (16, 50)
    np.testing.assert_array_equal(table[:38], tensors["model.embed_tokens.weight"][:38])
    np.testing.assert_array_equal(head[:, :38], tensors["lm_head.weight"][:38].T)
    expected = tensors["model.embed_tokens.weight"][:38].mean(axis=0)
    np.testing.assert_allclose(table[38:], np.broadcast_to(expected, (12, 16)), atol=1e-6)
    np.testing.assert_array_equal(params["backbone"]["norm"]["scale"], tensors["model.norm.weight"])
    # What the checkpoint lacks is as fresh initialisation makes it.
    other = fresh(jax.random.key(3))
    for part in ("speech_encoder", "adapter"):
        for mine, theirs in zip(jax.tree.leaves(params[part]), jax.tree.leaves(other[part]), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)  # one of them is fused


def test_a_checkpoint_of_the_whole_vocabulary_keeps_every_row(text_only):
    """`rows` tells which ids a smaller vocabulary knows; a released Omni-Diffusion checkpoint knows all of them."""
    tensors = read_folder(text_only / "released")[0]
    same = dataclasses.replace(MODEL, backbone=dataclasses.replace(MODEL.backbone, vocab_size=40))

    def make(key):
        return meta.unbox(init_params(same, key))

    target = on_one_device(jax.eval_shape(make, jax.random.key(0)))
    params = load_initial(InitConfig(str(text_only / "orbax"), rows=38), target, make, jax.random.key(3))
    np.testing.assert_array_equal(params["backbone"]["embedding"], tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(params["backbone"]["head"], tensors["lm_head.weight"].T)


def test_random_rows_are_seeded(text_only):
    first, again, other = (start(text_only, new_rows="random", stddev=0.5, seed=seed)["backbone"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first["embedding"], again["embedding"])
    assert not np.array_equal(first["embedding"][40:], other["embedding"][40:])
    assert 0.3 < np.std(first["embedding"][40:]) < 0.7 and 0.3 < np.std(first["head"][:, 40:]) < 0.7
    assert not np.array_equal(first["embedding"][40:], np.asarray(first["head"][:, 40:]).T)


def test_what_does_not_fit_is_named(text_only, tmp_path):
    wide = dataclasses.replace(MODEL, backbone=dataclasses.replace(MODEL.backbone, hidden=32))
    target = on_one_device(jax.eval_shape(lambda k: meta.unbox(init_params(wide, k)), jax.random.key(0)))
    with pytest.raises(UserError, match=r"backbone/layers/mlp/\w+/kernel has shape \[3, .* config.model says"):
        load_initial(InitConfig(str(text_only / "orbax")), target, fresh, jax.random.key(0))
    with pytest.raises(UserError, match="is not a converted checkpoint"):
        load_initial(InitConfig(str(tmp_path)), target, fresh, jax.random.key(0))


CONFIG = lora.LoraConfig(rank=2, alpha=4.0, targets=("backbone/layers/attention/*/kernel", "backbone/layers/mlp/up/*"))


def test_lora_trains_thin_matrices_alone(text_only):
    params = start(text_only)
    params["lora"] = lora.init_lora(params, CONFIG, jax.random.key(0))
    before = {k: np.asarray(v) for k, v in flatten_dict(params, sep="/").items()}
    same = flatten_dict(lora.merged(params, CONFIG), sep="/")
    assert all(np.array_equal(same[k], v) for k, v in before.items() if not k.startswith("lora/"))

    def loss(params, batch, key, step):
        whole = lora.merged(params, CONFIG)["backbone"]["layers"]
        groups = (whole["attention"]["out"], whole["attention"]["query"], whole["mlp"]["up"])
        return sum(jnp.mean(jnp.square(group["kernel"] - 1.0)) for group in groups), {}

    optimizer = OptimizerConfig(frozen=("speech_encoder/*", "adapter/*", "backbone/*"))
    tx = optax.adam(1e-2)
    step = jax.jit(make_train_step(loss, tx, optimizer, seed=0))
    state = init_state(params, tx, optimizer)
    moments = set(flatten_dict(state.opt_state[0].mu, sep="/"))
    assert moments and all(name.startswith("lora/") for name in moments)
    losses = []
    for _ in range(3):
        state, metrics = step(state, jnp.zeros(1))
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[1]
    after = flatten_dict(state.params, sep="/")
    moved = {k for k, v in before.items() if not np.array_equal(v, after[k])}
    assert moved and all(k.startswith("lora/") for k in moved)
    # The product of a projection out of heads sums over both of its head axes.
    thin = state.params["lora"]["backbone"]["layers"]["attention"]["out"]["kernel"]
    product = 2.0 * np.einsum("nir,nro->nio", thin["a"], thin["b"]).reshape(3, 4, 4, 16)
    merged = lora.merged(state.params, CONFIG)["backbone"]["layers"]["attention"]["out"]["kernel"]
    np.testing.assert_allclose(merged, before["backbone/layers/attention/out/kernel"] + product, atol=1e-5)


def test_lora_targets_are_checked():
    params = jax.eval_shape(fresh, jax.random.key(0))
    for target, match in (("backbone/layers/atention/*", "matches no parameter"), ("backbone/norm/*", "is no matrix")):
        with pytest.raises(UserError, match=match):
            lora.targets(params, lora.LoraConfig(rank=1, targets=(target,)))
