"""Starting from converted weights: the vocabulary grows, absent parts are fresh, LoRA trains thin matrices alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from released_toys import BACKBONE, OMNI_JSON, read_folder, released_tensors, write_folder

from omnidiff_jax.config import to_dict
from omnidiff_jax.conversion.arrays import open_arrays
from omnidiff_jax.conversion.folders import describe_folder
from omnidiff_jax.conversion.released_arrays import open_as_arrays
from omnidiff_jax.conversion.to_orbax import to_orbax
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.adapter import AdapterConfig
from omnidiff_jax.models.backbone import Backbone
from omnidiff_jax.models.omni import OmniConfig, init_params
from omnidiff_jax.models.sanm import SpeechEncoderConfig
from omnidiff_jax.tokenizers.assets import nano_dir
from omnidiff_jax.training import lora
from omnidiff_jax.training.checkpoint import CheckpointConfig, Checkpointer
from omnidiff_jax.training.expansion import origins
from omnidiff_jax.training.initial import FREE, InitConfig, Source, check_sizes, load_initial
from omnidiff_jax.training.optimizer import OptimizerConfig
from omnidiff_jax.training.step import eval_params, init_state, make_train_step

MODEL = OmniConfig(
    dataclasses.replace(BACKBONE, vocab_size=50, dtype="float32"),
    SpeechEncoderConfig(features=14, width=8, heads=2, ffn=12, blocks=2, tp_blocks=0, kernel=5, vocab_size=7),
    AdapterConfig(8, 16),
)

CONFIG = lora.LoraConfig(rank=2, alpha=4.0, targets=("backbone/layers/attention/*/kernel", "backbone/layers/mlp/up/*"))

KEY = jax.random.key(3)


def on_one_device(params):
    """Abstract parameters placed whole on the first device, as `load_initial` takes them."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), params)


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
    return load_initial(InitConfig(str(text_only / "orbax"), **options), MODEL, target, fresh, jax.random.key(3))


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
    params = load_initial(InitConfig(str(text_only / "orbax"), rows=38), same, target, make, jax.random.key(3))
    np.testing.assert_array_equal(params["backbone"]["embedding"], tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(params["backbone"]["head"], tensors["lm_head.weight"].T)


def test_random_rows_are_seeded(text_only):
    first, again, other = (start(text_only, new_rows="random", stddev=0.5, seed=seed)["backbone"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first["embedding"], again["embedding"])
    assert not np.array_equal(first["embedding"][40:], other["embedding"][40:])
    assert 0.3 < np.std(first["embedding"][40:]) < 0.7 and 0.3 < np.std(first["head"][:, 40:]) < 0.7
    assert not np.array_equal(first["embedding"][40:], np.asarray(first["head"][:, 40:]).T)


def other(**fields):
    return dataclasses.replace(MODEL, backbone=dataclasses.replace(MODEL.backbone, **fields))


def test_arrays_that_do_not_fit_are_named(text_only):
    target = on_one_device(jax.eval_shape(lambda k: meta.unbox(init_params(other(hidden=32), k)), jax.random.key(0)))
    with pytest.raises(UserError, match=r"backbone/layers/mlp/\w+/kernel has shape \[3, .* config.model says"):
        load_initial(InitConfig(str(text_only / "orbax")), MODEL, target, fresh, jax.random.key(0))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"rope_theta": 1e4},
            r"backbone.rope_theta is 1000000.0 there and 10000.0 here; use --config.model.rope_theta=1",
        ),
        ({"norm_epsilon": 1e-5}, r"backbone.norm_epsilon is 1e-06 there and 1e-05 here"),
        (
            {"heads": 2, "kv_heads": 1, "head_dim": 8},
            r"heads is 4 there and 2 here; backbone.kv_heads is 2 there and 1 h",
        ),
        ({"hidden": 32}, r"backbone.hidden is 24 there and 32 here"),
        ({"layers": 2}, r"backbone.layers is 3 there and 2 here"),
    ],
)
@pytest.mark.parametrize("form", ["orbax", "released"])
def test_another_architecture_is_refused_whatever_its_shapes(text_only, form, fields, said):
    model = other(**fields)
    target = on_one_device(jax.eval_shape(lambda k: meta.unbox(init_params(model, k)), jax.random.key(0)))
    with pytest.raises(UserError, match=rf"config.init.folder = \S+ .*omni checkpoint. is of another model: .*{said}"):
        load_initial(InitConfig(str(text_only / form)), model, target, fresh, jax.random.key(0))


def test_every_number_of_the_architecture_is_compared():
    """All but those that say how something is computed or drawn: a new field is compared unless it is free."""
    compared = {f.name for f in dataclasses.fields(MODEL.backbone)} - FREE
    assert compared == {"width", "layers", "heads", "kv_heads", "head_dim", "hidden", "norm_epsilon", "rope_theta"}
    for part in ("backbone", "speech_encoder", "adapter"):
        sizes = to_dict(MODEL)
        for name, value in to_dict(getattr(MODEL, part)).items():
            if isinstance(value, int | float) and name not in FREE:
                changed = {**sizes, part: {**sizes[part], name: value + 1}}
                with pytest.raises(UserError, match=rf"{part}.{name} is .* there and {value!r} here; use "):
                    check_sizes(MODEL, Source(None, changed, "x"), "config.init.folder = y")
        check_sizes(MODEL, Source(None, {**sizes, part: {**sizes[part], "dtype": "float16"}}, "x"), "y")


def test_a_released_checkpoint_needs_no_conversion(text_only, capsys):
    """The same bits, in whole and in the parts that devices ask for."""
    converted = flatten_dict(start(text_only), sep="/")
    target = on_one_device(jax.eval_shape(fresh, jax.random.key(0)))
    config = InitConfig(str(text_only / "released"))
    params = flatten_dict(load_initial(config, MODEL, target, fresh, jax.random.key(3)), sep="/")
    assert params.keys() == converted.keys()
    for path, value in converted.items():
        np.testing.assert_array_equal(params[path], value, err_msg=path)
    with open_as_arrays(text_only / "released") as arrays, open_arrays(text_only / "orbax") as store:
        assert arrays.shapes == store.shapes
        for path, shape in arrays.shapes.items():
            for index in ((), (slice(1, shape[0]),), (0,), tuple(slice(n // 2, None) for n in shape)):
                np.testing.assert_array_equal(arrays.read(path, index), store.read(path, index), err_msg=path)
    mesh = jax.make_mesh((8,), ("fsdp",))
    over = jax.tree.map(
        lambda x: (
            jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec(*(None,) * (x.ndim - 1), "fsdp"))
            )
            if x.shape[-1] % 8 == 0
            else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec()))
        ),
        jax.eval_shape(fresh, jax.random.key(0)),
    )
    split = flatten_dict(load_initial(config, MODEL, over, fresh, jax.random.key(3)), sep="/")
    for path in (path for path in converted if path.startswith("backbone")):
        np.testing.assert_array_equal(split[path], converted[path], err_msg=path)


def random_like(tree, rng):
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), tree)


def run_config(**others):
    sizes = {k: v for k, v in to_dict(MODEL.backbone).items() if k not in ("vocab_size", "dtype")}
    return {"program": "omni", "model": sizes, "tokenizers": {"fingerprint": "then"}} | others


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """runs(lora, average) -> (workdir with two checkpoints, the parameters that one samples with)."""

    def make(thin, average):
        workdir = tmp_path_factory.mktemp("run")
        saver = Checkpointer(workdir, CheckpointConfig())
        for step in (3, 9):
            rng = np.random.default_rng(step)
            params = random_like(fresh_shapes(), rng)
            if thin:
                params["lora"] = random_like(lora.init_lora(params, CONFIG, jax.random.key(0)), rng)
            frozen = ("backbone/*",) if thin else ()
            optimizer = OptimizerConfig(frozen=frozen, ema_decay=0.9 if average else 0.0)
            state = init_state(params, optax.adam(1e-3), optimizer)
            if average:
                state = state.replace(ema=jax.tree.map(lambda x: x + 1, state.ema))
            config = run_config(
                optimizer={"ema_decay": optimizer.ema_decay},
                **({"lora": {**to_dict(CONFIG)}} if thin else {}),
            )
            saver.save(step, state, {}, config)
            saver.wait()
        saver.close()
        return workdir, lora.merged(eval_params(state), CONFIG)

    return make


def fresh_shapes():
    return jax.eval_shape(fresh, jax.random.key(0))


@pytest.mark.parametrize("thin", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("average", [False, True], ids=["plain", "average"])
def test_a_run_is_a_start_as_it_is(runs, thin, average):
    """Its newest checkpoint, the average where it keeps one, LoRA products added; also by its workdir alone."""
    workdir, expected = runs(thin, average)
    target = on_one_device(fresh_shapes())
    found = load_initial(InitConfig(str(workdir)), MODEL, target, fresh, jax.random.key(3))
    found, expected = flatten_dict(found, sep="/"), flatten_dict(expected, sep="/")
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-5 * thin, atol=1e-5 * thin, err_msg=path)


def test_a_damaged_newest_checkpoint_makes_way_for_the_one_before(runs, capfd):
    workdir, newest = runs(False, False)
    part = max((workdir / "checkpoints" / "9" / "state").rglob("d/*"), key=lambda p: p.stat().st_size)
    part.write_bytes(part.read_bytes()[:-3])
    found = load_initial(InitConfig(str(workdir)), MODEL, on_one_device(fresh_shapes()), fresh, jax.random.key(3))
    assert not np.array_equal(found["backbone"]["embedding"], newest["backbone"]["embedding"])
    assert "using checkpoint 3 instead" in capfd.readouterr().err
    assert (workdir / "checkpoints" / "9").is_dir(), "nothing of another run is moved"


def test_a_run_of_another_architecture_is_refused(runs):
    workdir, _ = runs(False, False)
    model = other(rope_theta=5e5)
    with pytest.raises(
        UserError, match=r"checkpoint 9 of a run. is of another model: backbone.rope_theta is 1000000.0"
    ):
        load_initial(InitConfig(str(workdir)), model, on_one_device(fresh_shapes()), fresh, jax.random.key(3))


def test_ids_of_other_tokenizers_are_not_taken_over(runs, monkeypatch):
    """Unless `rows` says how many of them mean the same."""
    workdir, _ = runs(False, False)
    take = functools.partial(load_initial, model=MODEL, target=on_one_device(fresh_shapes()), fresh=fresh, key=KEY)
    with pytest.raises(UserError, match="9 of a run. has other tokenizers .fingerprint then, here now.*rows"):
        take(InitConfig(str(workdir)), tokenizers="now")
    for config, tokenizers in ((InitConfig(str(workdir), rows=3), "now"), (InitConfig(str(workdir)), "then")):
        assert take(config, tokenizers=tokenizers)["backbone"]["embedding"].shape == (50, 16)


def test_other_folders_are_said_to_be_what_they_are(text_only, runs, tmp_path):
    """`describe_folder` in words, and what a start from each says."""
    workdir, _ = runs(False, False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "tokenizer.json").write_text("{}")
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "model.safetensors").write_text("<html>")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "model.pt").write_bytes(b"PK")
    (tmp_path / "file").touch()
    write_folder(tmp_path / "adapter", released_tensors("adapter"))
    to_orbax(tmp_path / "adapter", tmp_path / "converted")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "omnidiff.json").write_text("[]")
    expected = {
        workdir: ("run", "", "the workdir of a run with 2 checkpoints"),
        workdir / "checkpoints": ("unknown", "", f"the checkpoints of a run; name its workdir, {workdir}"),
        workdir / "checkpoints" / "9": ("unknown", "", f"one checkpoint of a run; name its workdir, {workdir}"),
        text_only / "orbax": ("converted", "omni", "a converted omni checkpoint"),
        text_only / "released": ("released", "omni", "a released omni checkpoint"),
        text_only / "released" / "model.safetensors": ("released", "omni", "a released omni checkpoint"),
        tmp_path / "adapter": ("released", "adapter", "a released adapter checkpoint"),
        tmp_path / "converted": ("converted", "adapter", "a converted adapter checkpoint"),
        tmp_path / "torch": ("released", "", "a checkpoint in torch files"),
        nano_dir("image_tokenizer"): ("tokenizer", "", "a tokenizer of this project"),
        nano_dir("text"): ("tokenizer", "", "a text tokenizer"),
        tmp_path / "text": ("tokenizer", "", "a text tokenizer"),
        tmp_path / "empty": ("unknown", "", "an empty folder"),
        tmp_path / "page": ("unknown", "", "a web page in place of the weights"),
        tmp_path / "damaged": ("unknown", "", "omnidiff.json is damaged"),
        tmp_path / "file": ("unknown", "", "a file, not a folder"),
        tmp_path / "nowhere": ("unknown", "", "it does not exist"),
    }
    for path, (kind, component, words) in expected.items():
        found = describe_folder(path)
        assert (found.kind, found.component) == (kind, component) and words in found.words, (path, found)
        if kind in ("unknown", "tokenizer") or component == "adapter":
            with pytest.raises(UserError, match="a model starts from the workdir of a run, or from a converted or rel"):
                load_initial(InitConfig(str(path)), MODEL, on_one_device(fresh_shapes()), fresh, jax.random.key(0))


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


@pytest.mark.parametrize(
    "there, layers, origin",
    [
        (4, 6, [(0, False), (1, False), (1, True), (2, False), (3, False), (3, True)]),
        (3, 3, [(0, False), (1, False), (2, False)]),
        (1, 3, [(0, False), (0, True), (0, True)]),
    ],
)
def test_copies_are_spread_over_the_depth(there, layers, origin):
    assert origins(there, layers) == origin


def test_more_layers_than_the_checkpoint_has_change_nothing_yet(text_only):
    layers = MODEL.backbone.layers + 1
    deeper = dataclasses.replace(MODEL, backbone=dataclasses.replace(MODEL.backbone, layers=layers))

    def deep(key):
        return meta.unbox(init_params(deeper, key))

    target = on_one_device(jax.eval_shape(deep, KEY))
    folder = str(text_only / "orbax")
    with pytest.raises(UserError, match=f"layers is {layers - 1} there and {layers} here"):
        load_initial(InitConfig(folder), deeper, target, deep, KEY)
    shallow = start(text_only)
    grown = load_initial(InitConfig(folder, layers="expanded"), deeper, target, deep, KEY)
    embeds = jax.random.normal(KEY, (1, 6, MODEL.backbone.width))
    places, one = jnp.arange(6)[None], jnp.ones((1, 6), jnp.int32)

    def hidden(model, params):
        return Backbone(model.backbone).apply({"params": params["backbone"]}, embeds, places, one)

    np.testing.assert_allclose(hidden(deeper, grown), hidden(MODEL, shallow), rtol=1e-6, atol=1e-6)
    queries = grown["backbone"]["layers"]["attention"]["query"]["kernel"]
    assert queries.shape[0] == layers and np.unique(np.asarray(queries), axis=0).shape[0] == layers - 1
