"""A run's checkpoint in the released form: averages and LoRA products are in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict
from released_toys import TINY

from omnidiff_jax.conversion import arrays, parts
from omnidiff_jax.conversion.components import COMPONENTS
from omnidiff_jax.conversion.to_orbax import to_orbax
from omnidiff_jax.errors import UserError
from omnidiff_jax.training.checkpoint import CheckpointConfig, Checkpointer
from omnidiff_jax.training.export import export_run
from omnidiff_jax.training.factors import summed
from omnidiff_jax.training.lora import LoraConfig, init_lora, merged
from omnidiff_jax.training.optimizer import OptimizerConfig, make_optimizer
from omnidiff_jax.training.step import eval_params, init_state

CONFIG = TINY["omni"]
LORA = LoraConfig(rank=2, alpha=6.0, targets=("backbone/layers/attention/*/kernel", "backbone/layers/mlp/up/kernel"))


def random_like(tree, rng):
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), tree)


@pytest.fixture
def trained(tmp_path):
    """trained(frozen, lora, average) -> (folder of the checkpoint's arrays, the parameters that one samples with)."""

    def save(frozen=(), lora=None, average=False):
        rng = np.random.default_rng(0)
        params = random_like(meta.unbox(COMPONENTS["omni"].abstract(CONFIG)), rng)
        if lora is not None:
            params["lora"] = random_like(init_lora(params, lora, jax.random.key(0)), rng)
        optimizer = OptimizerConfig(frozen=frozen, ema_decay=0.9 if average else 0.0)
        state = init_state(params, make_optimizer(optimizer, lambda step: 1e-3), optimizer)
        if average:
            state = state.replace(ema=random_like(state.ema, rng))
        saver = Checkpointer(tmp_path, CheckpointConfig())
        saver.save(7, state, {}, {})
        saver.wait()
        saver.close()
        expected = eval_params(state)
        return tmp_path / "checkpoints" / "7" / "state", expected if lora is None else merged(expected, lora)

    return save


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"average": True, "frozen": ("speech_encoder/*",)},
        {"lora": LORA, "frozen": ("backbone/*",)},
        {"lora": LORA, "frozen": ("backbone/*",), "average": True},
    ],
    ids=["plain", "average", "lora", "lora-average"],
)
def test_what_is_exported_is_what_one_samples_with(trained, tmp_path, monkeypatch, options):
    monkeypatch.setattr(parts, "PART", 512)  # matrices are moved by rows
    state, expected = trained(**options)
    export_run(state, tmp_path / "released", CONFIG, options.get("lora", LoraConfig()), averaged="average" in options)
    to_orbax(tmp_path / "released", tmp_path / "orbax")
    found = flatten_dict(arrays.restore(tmp_path / "orbax"), sep="/")
    expected = flatten_dict(expected, sep="/")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        compare = np.testing.assert_allclose if "lora" in options else np.testing.assert_array_equal
        compare(found[name], value, err_msg=name, **({"rtol": 1e-6, "atol": 1e-6} if "lora" in options else {}))


def test_image_rows_are_exported_as_sums_of_their_factors(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART", 512)  # the codes begin within a part
    state, expected = trained()
    export_run(state, tmp_path / "released", CONFIG, LoraConfig(), (2, 1), averaged=False)
    to_orbax(tmp_path / "released", tmp_path / "orbax")
    found, wanted = arrays.restore(tmp_path / "orbax")["backbone"], expected["backbone"]
    first = CONFIG.backbone.vocab_size - 8
    for here, there in ((found["embedding"], wanted["embedding"]), (found["head"].T, wanted["head"].T)):
        np.testing.assert_array_equal(here[:first], there[:first])
        np.testing.assert_allclose(here[first:], summed(np.asarray(there[first:]), (2, 1)), rtol=1e-6, atol=1e-6)
        assert np.abs(here[first:] - there[first:]).max() > 0.1


def test_another_models_checkpoint_is_refused(trained, tmp_path):
    state, _ = trained()
    with pytest.raises(UserError, match="50 parameters have no rule .another model"):
        export_run(state, tmp_path / "released", type(CONFIG)(CONFIG.backbone), LoraConfig(), averaged=False)
    assert not (tmp_path / "released").exists()


def test_a_missing_average_is_not_passed_over(trained, tmp_path):
    state, _ = trained()
    with pytest.raises(UserError, match="lacks the array ema"):
        export_run(state, tmp_path / "released", CONFIG, LoraConfig(), averaged=True)
