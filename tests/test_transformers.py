"""A reader that nobody here wrote: transformers' Qwen2 loads the exported safetensors and gives our logits."""

import dataclasses

import jax
import numpy as np
import pytest
from released_toys import BACKBONE, OMNI_JSON, released_tensors, write_folder

from omnidiff_jax.conversion.arrays import restore
from omnidiff_jax.conversion.to_orbax import to_orbax
from omnidiff_jax.conversion.to_released import to_released
from omnidiff_jax.models.backbone import Backbone


def test_qwen2_gives_our_logits(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tensors = {n: t * 0.3 for n, t in released_tensors("omni").items() if "audio" not in n}
    to_orbax(write_folder(tmp_path / "a", tensors, OMNI_JSON), tmp_path / "b")
    to_released(tmp_path / "b", tmp_path / "c")

    config = dataclasses.replace(BACKBONE, dtype="float32", remat="none")
    params = restore(tmp_path / "b")["backbone"]
    tokens = np.random.default_rng(0).integers(0, 40, (2, 7)).astype(np.int32)
    positions = np.broadcast_to(np.arange(7, dtype=np.int32), tokens.shape)

    @jax.jit
    def run(params):
        model = Backbone(config)
        embeds = model.apply({"params": params}, tokens, method="embed")
        hidden = model.apply({"params": params}, embeds, positions, np.ones_like(tokens))
        return model.apply({"params": params}, hidden, method="logits")

    settings = transformers.Qwen2Config.from_pretrained(tmp_path / "c", attn_implementation="eager")
    model, report = transformers.Qwen2ForCausalLM.from_pretrained(
        tmp_path / "c", config=settings, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    nothing_hidden = torch.zeros(2, 1, 7, 7)  # added to the scores: every position sees every other
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens).long(), attention_mask=nothing_hidden).logits.numpy()
    np.testing.assert_allclose(run(params), theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
