"""The released sampler's recorded trajectories and single calls, reproduced."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from omnidiff_jax.conversion import dream
from omnidiff_jax.conversion.rules import to_flax
from omnidiff_jax.models.backbone import BackboneConfig
from omnidiff_jax.models.omni import OmniConfig, OmniModel
from omnidiff_jax.sampling import (
    Prefill,
    Prompt,
    SamplerConfig,
    blank,
    build_canvas,
    film,
    module_denoiser,
    sample,
    unconditional_canvas,
)
from omnidiff_jax.sampling.candidates import decide
from omnidiff_jax.sampling.penalties import position_factor, seen_tokens
from omnidiff_jax.vocabulary import Vocabulary

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(p.stem for p in GOLDEN.glob("sampler_*.npz") if p.stem != "sampler_weights")

# The fixtures' ids: pad 500, begin-of-audio 505, mask 510 of 512.
VOCABULARY = Vocabulary(
    text_size=500,
    specials=(
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_audio|>",
        "<|end_of_audio|>", "<|context_of_audio|>", "<|audio|>", "<|image|>", "<|mask|>", "<|context_of_image|>",
    ),
    speech_codes=0,
    image_codes=0,
)  # fmt: skip


def load(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)
    return arrays, json.loads(str(arrays.pop("meta")))


@pytest.fixture(scope="module")
def released() -> tuple[OmniModel, dict]:
    """The backbone of `sampler_weights.npz`."""
    weights, meta = load("sampler_weights")
    cfg = meta["cfg"]
    heads, width = cfg["num_attention_heads"], cfg["hidden_size"]
    config = BackboneConfig(
        vocab_size=cfg["vocab_size"],
        width=width,
        layers=cfg["num_hidden_layers"],
        heads=heads,
        kv_heads=cfg["num_key_value_heads"],
        head_dim=width // heads,
        hidden=cfg["intermediate_size"],
        dtype="float32",
        remat="none",
    )
    state = {name.removeprefix("params/"): x for name, x in weights.items()}
    return OmniModel(OmniConfig(config, speech_encoder=None)), to_flax(dream.rules(config), state)


@pytest.mark.parametrize("case", CASES)
def test_trajectory(case, released):
    arrays, meta = load(case)
    model, params = released
    table = params["embedding"]
    head = params["head"] * np.float32(meta.get("lm_head_scale", 1.0))
    if "in/lm_head_override_rows" in arrays:
        head[:, arrays["in/lm_head_override_rows"]] = arrays["in/lm_head_override_values"].T

    def prompt(ids):
        return Prompt(np.zeros(len(ids), np.int32), embeddings=table[ids])

    conditional = prompt(arrays["in/prompt_ids"])
    if "in/prompt_embeds" in arrays:
        conditional = Prompt(conditional.tokens, embeddings=arrays["in/prompt_embeds"].reshape(-1, table.shape[1]))
    answer = blank(meta["max_new_tokens"], VOCABULARY.mask)
    if meta["add_boa_token"]:
        answer = Prefill(meta["boa_id"], 0.2).apply(answer)
    canvas = build_canvas([conditional], [answer], VOCABULARY, multiple=256)  # one shape for all cases
    other = None
    if meta["cfg_scale"]:
        other = unconditional_canvas(
            canvas, [prompt(arrays["in/uncond_prompt_ids"])], VOCABULARY, pad_with_zero_vectors=True
        )
    config = SamplerConfig.released(
        meta["steps_requested"],
        meta["alg"].removesuffix("-penalty"),
        top_p=meta["top_p"] or 1.0,
        top_k=meta["top_k_effective"] or 0,
        repetition_penalty=meta["repeat_penalty"],
        max_position_penalty=meta["max_position_penalty"],
        cfg=meta["cfg_scale"],
        block_size=max(meta["block_size"], 0),
    )
    result = sample(module_denoiser(model, {"backbone": params | {"head": head}}), canvas, config, unconditional=other)
    length = len(arrays["in/x_init"])
    np.testing.assert_array_equal(canvas.inputs.tokens[0, :length], arrays["in/x_init"])
    np.testing.assert_array_equal(film(canvas, result)[:, 0, :length], arrays["out/history"])
    np.testing.assert_array_equal(result.tokens[0, :length], arrays["out/sequence"])
    steps = int(result.steps[0])
    np.testing.assert_array_equal(result.committed[0, :steps], arrays["out/num_transfer"])
    assert steps == arrays["out/steps_per_block"].sum()
    written = np.asarray(result.commit_step[0, :length])
    positions = np.flatnonzero(written >= 0)
    expected = arrays["out/confidence"][written[positions], positions - meta["prompt_len"]]
    confidence = np.asarray(result.confidence)[0, positions]
    # NOTES: a row at the edge of top-p may keep one token more or less.
    assert np.isclose(confidence, expected, rtol=1e-4, atol=1e-4).mean() >= 0.99


def decided(logits, past, mask_id, combo, max_position_penalty=1.0):
    """`decide` on rows that are all masked, as the released `sample_tokens` sees them."""
    config = SamplerConfig.released(
        1,
        combo["alg"].removesuffix("-penalty"),
        top_p=combo["top_p"] or 1.0,
        top_k=combo["top_k"] or 0,
        repetition_penalty=combo["repeat_penalty"],
        max_position_penalty=max_position_penalty,
    )
    rows, vocab = logits.shape
    masked, first = jnp.ones((1, rows), bool), jnp.zeros((1,))
    factor = position_factor(config.position, jnp.arange(rows)[None, :], jnp.full((1,), rows), masked, first)[0]
    seen = None
    if config.repetition.penalty != 1:
        everywhere = jnp.ones(past.shape, bool)
        seen = seen_tokens(config.repetition, past, everywhere, everywhere, mask_id, jnp.int32(1), vocab)
        seen = jnp.broadcast_to(seen, logits.shape)
    return decide(logits, seen, factor, None, config)


def test_single_calls():
    arrays, meta = load("sample_tokens")
    for i, combo in enumerate(meta["combos"]):
        token, confidence = decided(arrays["in/logits"], arrays["in/past_x"], meta["mask_id"], combo)
        np.testing.assert_array_equal(token, arrays["out/x0"][i], str(combo))
        np.testing.assert_allclose(confidence, arrays["out/confidence"][i], rtol=1e-4, atol=1e-6, err_msg=str(combo))
    for i, combo in enumerate(meta["pos_combos"]):
        n = combo["n_rows"]
        token, confidence = decided(
            arrays["in/pos_logits"][:n],
            arrays["in/pos_past_x"],
            meta["pos_mask_id"],
            combo,
            combo["max_position_penalty"],
        )
        np.testing.assert_array_equal(token, arrays["out/pos_x0"][i, :n], str(combo))
        np.testing.assert_allclose(
            confidence, arrays["out/pos_confidence"][i, :n], rtol=1e-4, atol=1e-6, err_msg=str(combo)
        )
