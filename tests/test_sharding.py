"""Meshes, rule tables that know every name in use, and a sharded model that computes what one device computes."""

import dataclasses
import functools
import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.core import meta
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import omnidiff_jax
from experiments.configs.slices import PRESETS
from omnidiff_jax.batch import Batch, ModelInputs
from omnidiff_jax.config import build
from omnidiff_jax.diffusion.loss import LossConfig, masked_cross_entropy
from omnidiff_jax.diffusion.masking import MaskingConfig, corrupt
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.adapter import AdapterConfig
from omnidiff_jax.models.backbone import BackboneConfig
from omnidiff_jax.models.magvit import Magvit, MagvitConfig
from omnidiff_jax.models.omni import OmniConfig, OmniModel, init_params
from omnidiff_jax.models.sanm import SpeechEncoderConfig
from omnidiff_jax.models.whisper_vq import WhisperVQConfig, WhisperVQEncoder
from omnidiff_jax.sharding import axes, mesh
from omnidiff_jax.sharding.mesh import MeshConfig, batch_sharding, make_mesh, mesh_shape
from omnidiff_jax.sharding.rules import MESH_AXES, STRATEGIES, logical_rules, param_specs
from omnidiff_jax.speech_frames import packed_frames
from omnidiff_jax.tokenizers.speech import SpeechDecoderConfig, init_flow, init_hift
from omnidiff_jax.training.optimizer import OptimizerConfig, split_params
from omnidiff_jax.training.step import init_state, make_train_step
from omnidiff_jax.vocabulary import Vocabulary


def param_shardings(boxed, strategy, device_mesh):
    specs = param_specs(boxed, strategy, device_mesh)
    return jax.tree.map(lambda s: NamedSharding(device_mesh, s), specs, is_leaf=lambda s: isinstance(s, P))


needs_eight = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")


def boxed(*names, shape):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


# ---- tables -----------------------------------------------------------------------------------------------


def test_every_table_knows_every_name():
    for name, table in STRATEGIES.items():
        assert table.keys() == axes.PARAMETER_AXES | axes.ACTIVATION_AXES, name
        assert {axis for mesh_axes in table.values() for axis in mesh_axes} <= set(MESH_AXES), name


def init_magvit(key):
    config = MagvitConfig()
    return Magvit(config).init(key, jnp.zeros((1, config.downsampling, config.downsampling, 3)))["params"]


def init_whisper_vq(key):
    config = WhisperVQConfig()
    frames = config.samples_per_code // 160
    mels, valid = jnp.zeros((1, frames, config.num_mels)), jnp.ones((1, frames), bool)
    return WhisperVQEncoder(config).init(key, mels, valid)["params"]


MODELS = {
    "omni": functools.partial(init_params, OmniConfig()),
    "magvit": init_magvit,
    "whisper_vq": init_whisper_vq,
    "flow": functools.partial(init_flow, SpeechDecoderConfig().flow),
    "hift": functools.partial(init_hift, SpeechDecoderConfig().hift),
}


@needs_eight
@pytest.mark.parametrize(("name", "init"), MODELS.items(), ids=MODELS.keys())
def test_every_parameter_is_named_and_divides(name, init):
    """At full size: an unknown name, or a large parameter that the mesh cannot split, would raise."""
    shapes = jax.eval_shape(init, jax.random.key(0))
    device_mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    for strategy in STRATEGIES:
        specs = param_specs(shapes, strategy, device_mesh)
        flat = jax.tree.leaves(specs, is_leaf=lambda s: isinstance(s, P))
        leaves = zip(jax.tree.leaves(meta.unbox(shapes)), flat, strict=True)
        whole = [leaf.shape for leaf, spec in leaves if leaf.size >= 1 << 22 and not any(spec)]
        assert strategy == "replicated" or not whole, f"{name}: {whole} are not split by {strategy}"


def test_activation_names_pass_the_check():
    """Linen's own constraint does not check names, so nothing but `axes.constrain` calls it."""
    root = Path(omnidiff_jax.__file__).parent
    users = [p.name for p in root.rglob("*.py") if "with_logical_constraint(" in p.read_text()]
    assert users == ["axes.py"]
    with pytest.raises(UserError, match="unknown logical axis 'lenght' of an activation.*did you mean 'length'"):
        axes.constrain(jnp.zeros((2, 2)), "batch", "lenght")


@needs_eight
@pytest.mark.parametrize("strategy", ["replicated", "fsdp", "fsdp_tensor", "fsdp_tensor_sequence"])
@pytest.mark.parametrize("shape", [(4, 8, 12), (4, 8, 13), (4, 9, 12), (3, 8, 12)], ids=str)
def test_sum_over_the_batch(strategy, shape):
    """Sizes that the mesh does not divide are left to the compiler; the sum is the same."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    device_mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))

    def add(x):
        with logical_rules(strategy):
            return axes.sum_batch(x, axes.EMBED, axes.VOCAB)

    with jax.set_mesh(device_mesh):
        total = jax.jit(add)(x)
    np.testing.assert_allclose(total, x.sum(0), rtol=1e-6, atol=1e-6)
    if shape == (4, 8, 12):
        expected = {"replicated": P(), "fsdp": P("fsdp")}.get(strategy, P("fsdp", "tensor"))
        assert total.sharding.is_equivalent_to(NamedSharding(device_mesh, expected), 2)
    np.testing.assert_allclose(axes.sum_batch(jnp.asarray(x), axes.EMBED, axes.VOCAB), x.sum(0), rtol=1e-6, atol=1e-6)


@needs_eight
def test_a_parameter_is_gathered_as_it_is_computed_with():
    """Whole along fsdp, still split over tensor, and its gradient comes back in pieces."""
    device_mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    held = NamedSharding(device_mesh, P("fsdp", "tensor"))
    kernel = jax.device_put(np.arange(96, dtype=np.float32).reshape(8, 12), held)
    rows = NamedSharding(device_mesh, P(("data", "fsdp")))
    x = jax.device_put(np.ones((4, 8), np.float32), rows)

    def loss(kernel, x):
        with logical_rules("fsdp_tensor"):
            whole = axes.gather(kernel.astype(jnp.bfloat16), axes.EMBED, axes.MLP)
            return (x.astype(jnp.bfloat16) @ whole).astype(jnp.float32).sum(), whole

    with jax.set_mesh(device_mesh):
        step = jax.jit(jax.grad(loss, has_aux=True), out_shardings=(held, None))
        gradient, whole = step(kernel, x)
    assert whole.sharding.is_equivalent_to(NamedSharding(device_mesh, P(None, "tensor")), 2)
    assert whole.dtype == jnp.bfloat16 and gradient.sharding == held
    np.testing.assert_array_equal(gradient, np.full((8, 12), 4.0, np.float32))
    with jax.set_mesh(device_mesh), logical_rules("fsdp_tensor"):
        odd = jnp.ones((7, 12))  # seven rows are not split over two devices
        assert axes.gather(odd, axes.EMBED, axes.MLP) is odd
    assert axes.gather(odd, axes.EMBED, axes.MLP) is odd


@needs_eight
def test_parameter_specs():
    device_mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    tree = {"kernel": boxed("layers", "embed", "mlp", shape=(3, 512, 256)), "plain": jnp.zeros(3)}
    assert param_specs(tree, "fsdp_tensor", device_mesh) == {"kernel": P(None, ("fsdp",), ("tensor",)), "plain": P()}
    assert param_specs(tree, "fsdp", device_mesh)["kernel"] == P(None, ("fsdp",), None)
    assert param_specs(tree, "replicated", device_mesh)["kernel"] == P(None, None, None)
    square = {"kernel": boxed("embed", "embed", shape=(512, 512))}
    assert param_specs(square, "fsdp", device_mesh)["kernel"] == P(("fsdp",), None)  # an axis splits once
    small = {"kernel": boxed("embed", "mlp", shape=(64, 7))}
    assert param_specs(small, "fsdp_tensor", device_mesh)["kernel"] == P(("fsdp",), None)
    with pytest.raises(UserError, match=r"parameter a/kernel: its axis 'mlp' of 999 .* mesh axis tensor of 2"):
        param_specs({"a": {"kernel": boxed("embed", "mlp", shape=(1 << 16, 999))}}, "fsdp_tensor", device_mesh)
    few = {"kernel": boxed("kv_heads", "embed", shape=(1, 1 << 17))}  # fewer heads than devices: each holds all
    assert param_specs(few, "fsdp_tensor", device_mesh)["kernel"] == P(None, ("fsdp",))
    with pytest.raises(UserError, match="unknown logical axis 'embd' of parameter kernel; did you mean 'embed'"):
        param_specs({"kernel": boxed("embd", "mlp", shape=(4, 4))}, "fsdp", device_mesh)
    with pytest.raises(UserError, match="unknown sharding strategy 'fdsp'; did you mean 'fsdp'"):
        param_specs(tree, "fdsp", device_mesh)


# ---- meshes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "devices", "shape"),
    [
        ({}, 8, (1, 8, 1, 1)),
        ({"data": -1, "fsdp": 2}, 8, (4, 2, 1, 1)),
        ({"fsdp": 2, "tensor": 2, "sequence": 2}, 8, (1, 2, 2, 2)),
        ({"data": 1, "fsdp": -1, "tensor": 2, "dcn": {"data": 2}}, 16, (1, 4, 2, 1)),
    ],
)
def test_mesh_shapes(config, devices, shape):
    assert mesh_shape(build(MeshConfig, config), devices)[0] == shape


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"data": -1}, "only one mesh axis may be -1: data=-1 fsdp=-1"),
        ({"data": 3, "fsdp": 1}, "data=3 fsdp=1 tensor=1 sequence=1 does not use exactly the 8 devices"),
        ({"data": 16}, "data=16 fsdp=1 tensor=1 sequence=1 does not use exactly the 8 devices"),
        ({"tensor": 0}, "must be positive"),
        ({"dcn": {"data": 3}}, r"dcn.data=3 does not use exactly the 8 devices"),
    ],
)
def test_impossible_meshes(config, message):
    with pytest.raises(UserError, match=message):
        mesh_shape(build(MeshConfig, config), 8)


TORI = [
    (model, row, tuple(int(side) for side in row.partition(":")[2].split("x")))
    for model, rows in PRESETS.items()
    for row in rows
    if row.startswith("v")
]


@pytest.mark.parametrize(("model", "row", "sides"), TORI, ids=lambda value: str(value))
def test_every_preset_lays_its_mesh_on_its_torus(model, row, sides):
    """An axis may take part of a side, as data=2 fsdp=32 does on 4x4x4."""
    coords = list(np.ndindex(*sides))
    kind = {"v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}[row.partition(":")[0]]
    devices = [
        types.SimpleNamespace(
            id=i,
            coords=(*at, *(0,) * (3 - len(at))),
            core_on_chip=0,
            process_index=i // 4,
            platform="tpu",
            device_kind=kind,
        )
        for i, at in enumerate(coords)
    ]
    sizes = MeshConfig(**{"data": 1, "fsdp": 1} | PRESETS[model][row]["mesh"])
    inner, outer = mesh_shape(sizes, len(devices))
    grid = mesh.arrange(inner, outer, devices)
    assert grid.shape == inner
    assert sorted(device.id for device in grid.flat) == list(range(len(devices)))


def test_hybrid_mesh_puts_slices_outermost():
    """Sixteen pretended GPUs in two hosts: `data` crosses between them, `fsdp` stays within one."""
    devices = [
        types.SimpleNamespace(id=i, process_index=i // 8, slice_index=i // 8, platform="gpu", device_kind="x")
        for i in range(16)
    ]
    grid = mesh.arrange((1, 8, 1, 1), (2, 1, 1, 1), devices)
    assert grid.shape == (2, 8, 1, 1)
    assert [{d.process_index for d in row.flat} for row in grid] == [{0}, {1}]
    with pytest.raises(UserError, match="asks for 4 slices; the devices form 2 slices in 2 processes"):
        mesh.arrange((1, 4, 1, 1), (4, 1, 1, 1), devices)


# ---- computing on a mesh ----------------------------------------------------------------------------------

VOCABULARY = Vocabulary.compact(36, 8, 8)
TINY = OmniConfig(
    backbone=BackboneConfig(
        vocab_size=VOCABULARY.size, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, hidden=32, dtype="float32",
        remat="full",
    ),
    speech_encoder=SpeechEncoderConfig(
        features=16, width=16, heads=2, ffn=32, blocks=1, tp_blocks=0, vocab_size=8, num_queries=2, queries=(0, 1)
    ),
    adapter=AdapterConfig(inputs=16, outputs=16, dtype="float32"),
)  # fmt: skip


def tiny_batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 36, (4, 16)).astype(np.int32)
    segments = np.repeat([1, 2, 0], [9, 5, 2])[None].repeat(4, 0).astype(np.int32)
    positions = np.concatenate([np.arange(9), np.arange(5), np.zeros(2)])[None].repeat(4, 0).astype(np.int32)
    heard = [[(rng.normal(size=(3, 16)).astype(np.float32), 1)] for _ in range(4)]
    ids = np.arange(8, dtype=np.uint32).reshape(4, 2)
    return Batch(
        inputs=ModelInputs(tokens, segments, positions, packed_frames(heard, 8, TINY.speech_encoder.layout)),
        targets=positions > 5,
        tail_pads=positions > 7,
        sample_ids=ids,
        epochs=np.zeros((4, 2), np.int32),
        group_ids=(ids % 3).astype(np.int32),
    )


def loss(params, batch, groups):
    corrupted = corrupt(batch, 0, MaskingConfig(), VOCABULARY)
    hidden = OmniModel(TINY).apply({"params": params}, batch.inputs.replace(tokens=corrupted.tokens))
    return masked_cross_entropy(
        hidden, params["backbone"]["head"], batch, corrupted, LossConfig(chunk=8, groups=groups), 3
    ).loss


@pytest.fixture(scope="module")
def shapes():
    return jax.eval_shape(lambda key: init_params(TINY, key), jax.random.key(0))


@pytest.fixture(scope="module")
def params(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0.05, 0.3, x.shape).astype(x.dtype), meta.unbox(shapes))


@pytest.fixture(scope="module")
def expected(params):
    return jax.jit(jax.value_and_grad(loss), static_argnums=2)(params, tiny_batch(), 1)


@needs_eight
@pytest.mark.parametrize(
    ("strategy", "sizes", "groups"),
    [
        ("replicated", MeshConfig(data=1, fsdp=1), 1),
        ("replicated", MeshConfig(data=2, fsdp=1), 2),
        ("replicated", MeshConfig(data=4, fsdp=1), 4),
        ("fsdp", MeshConfig(fsdp=1), 1),
        ("fsdp", MeshConfig(fsdp=2), 2),
        ("fsdp", MeshConfig(fsdp=4), 4),
        ("fsdp", MeshConfig(data=2, fsdp=2, tensor=2), 4),
        ("fsdp_tensor", MeshConfig(fsdp=1), 1),
        ("fsdp_tensor", MeshConfig(fsdp=1, tensor=2), 1),
        ("fsdp_tensor", MeshConfig(fsdp=2, tensor=2), 2),
        ("fsdp_tensor", MeshConfig(fsdp=4, tensor=2), 4),
        ("fsdp_sequence", MeshConfig(fsdp=1), 1),
        ("fsdp_sequence", MeshConfig(fsdp=1, sequence=2), 1),
        ("fsdp_sequence", MeshConfig(fsdp=2, sequence=2), 2),
        ("fsdp_sequence", MeshConfig(fsdp=2, sequence=4), 2),
        ("fsdp_tensor_sequence", MeshConfig(fsdp=1), 1),
        ("fsdp_tensor_sequence", MeshConfig(fsdp=1, tensor=2), 1),
        ("fsdp_tensor_sequence", MeshConfig(fsdp=1, tensor=2, sequence=2), 1),
        ("fsdp_tensor_sequence", MeshConfig(fsdp=2, tensor=2, sequence=2), 2),
    ],
    ids=lambda value: f"{value.data}{value.fsdp}{value.tensor}{value.sequence}" if hasattr(value, "fsdp") else None,
)
def test_sharded_equals_single(strategy, sizes, groups, shapes, params, expected):
    """On 1, 2, 4 and 8 devices."""
    count = sizes.data * sizes.fsdp * sizes.tensor * sizes.sequence
    device_mesh = make_mesh(sizes, jax.devices()[:count])
    shardings = param_shardings(shapes, strategy, device_mesh)
    step = jax.jit(jax.value_and_grad(loss), static_argnums=2, out_shardings=(None, shardings))
    with jax.set_mesh(device_mesh), logical_rules(strategy):
        placed = jax.device_put(params, shardings)
        batch = jax.tree.map(lambda x: jax.device_put(x, batch_sharding(device_mesh)), tiny_batch())
        value, gradients = step(placed, batch, groups)
        constrained = str(jax.make_jaxpr(loss, static_argnums=2)(placed, batch, groups))
    assert constrained.count("sharding_constraint") >= 6  # linen drops them where the mesh is not set
    table = placed["backbone"]["embedding"]
    split = 1 if strategy == "replicated" else device_mesh.shape["fsdp"]
    assert table.sharding.shard_shape(table.shape)[1] == 16 // split
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    for mine, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


@needs_eight
@pytest.mark.parametrize("strategy", ["replicated", "fsdp", "fsdp_tensor", "fsdp_tensor_sequence"])
def test_microbatches_on_a_mesh_make_the_update_of_one_device(strategy, shapes, params):
    device_mesh = make_mesh(MeshConfig(fsdp=2, tensor=2, sequence=2))
    shardings = param_shardings(shapes, strategy, device_mesh)
    optimizer, tx = OptimizerConfig(frozen=()), optax.sgd(0.1)

    def step(groups, accumulate, shardings):
        def objective(params, batch, key, step):
            corrupted = corrupt(batch, 0, MaskingConfig(), VOCABULARY)
            hidden = OmniModel(TINY).apply({"params": params}, batch.inputs.replace(tokens=corrupted.tokens))
            head, config = params["backbone"]["head"], LossConfig(chunk=8, groups=groups)
            result = masked_cross_entropy(hidden, head, batch, corrupted, config, 3)
            return result.loss, {"weight": result.normalizer}

        flat = None if shardings is None else split_params(shardings, ())[0]
        return make_train_step(objective, tx, optimizer, seed=0, accumulate=accumulate, shardings=flat)

    state = init_state(params, tx, optimizer)
    expected, metrics = jax.jit(step(1, 1, None))(state, tiny_batch())
    with jax.set_mesh(device_mesh), logical_rules(strategy):
        placed = init_state(jax.device_put(params, shardings), tx, optimizer)
        batch = jax.tree.map(lambda x: jax.device_put(x, batch_sharding(device_mesh)), tiny_batch())
        moved, found = jax.jit(step(2, 2, shardings))(placed, batch)
    np.testing.assert_allclose(found["loss"], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(found["grad_norm"], metrics["grad_norm"], rtol=1e-5)
    for mine, theirs in zip(jax.tree.leaves(moved.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


@needs_eight
def test_the_loss_moves_no_hidden_state():
    """Rows are gathered within their device; the head is gathered and its gradient summed once, outside the loop."""
    device_mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    rows, kernel = batch_sharding(device_mesh), NamedSharding(device_mesh, P("fsdp", "tensor"))
    config = LossConfig(chunk=8, groups=4)

    def objective(hidden, head, batch):
        corrupted = corrupt(batch, 0, MaskingConfig(), VOCABULARY)
        return masked_cross_entropy(hidden, head, batch, corrupted, config, 3).loss

    step = jax.jit(jax.grad(objective, argnums=(0, 1)), in_shardings=(rows, kernel, rows), out_shardings=(rows, kernel))
    with jax.set_mesh(device_mesh), logical_rules("fsdp_tensor"):
        program = step.lower(np.zeros((4, 16, 16)), np.zeros((16, VOCABULARY.size)), tiny_batch()).compile().as_text()
    gathers = re.findall(r"= (\S+) all-gather\(", program)
    assert [g.split("{")[0] for g in gathers] == [f"f32[16,{VOCABULARY.size // 2}]"]
    assert "all-to-all(" not in program
    assert "collective-permute(" not in program


@needs_eight
def test_split_axes_are_noticed():
    def answer():
        return axes.is_split(axes.LENGTH), axes.is_split(axes.BATCH)

    assert answer() == (False, False)
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=4, sequence=2))):
        with logical_rules("fsdp"):
            assert answer() == (False, True)
        with logical_rules("fsdp_sequence"):
            assert answer() == (True, True)


def test_dataclasses_agree():
    """One axis list: the mesh's, the between-slices sizes', the tables'."""
    assert tuple(f.name for f in dataclasses.fields(mesh.DcnConfig)) == MESH_AXES
