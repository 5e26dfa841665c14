"""Sampler fixtures: whole generations, and single calls of the released `sample_tokens`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from omnidiff_jax.conversion import dream
from omnidiff_jax.conversion.components import backbone_params
from omnidiff_jax.models.omni import OmniConfig, OmniModel
from omnidiff_jax.parity.backbone import released_backbone
from omnidiff_jax.parity.check import Check, unsupported
from omnidiff_jax.parity.fixtures import Fixture, FixtureSet
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
from omnidiff_jax.sampling.plan import total_steps
from omnidiff_jax.sampling.schedule import Schedule
from omnidiff_jax.sampling.scoring import decide
from omnidiff_jax.vocabulary import COMPACT_SPECIALS, Vocabulary

BOA_FRACTION = 0.2
"""Where the released code puts begin-of-audio."""


def sampler_weights(fixture: Fixture, check: Check, _: FixtureSet) -> None:
    """Nothing is run: the weights must convert, and back."""
    config = released_backbone(fixture.setting("cfg"))
    check.converted(dream.rules(config), fixture.tensors, backbone_params(config))


def sampler(fixture: Fixture, check: Check, others: FixtureSet) -> None:
    meta = fixture.meta
    if meta.get("temperature") or meta.get("alg_temp"):
        raise unsupported("a fixture whose randomness is not recorded (temperature above 0)")
    weights = fixture if fixture.tensors else others.beside(str(fixture.setting("weights")))
    # The canvas is wider than the recorded row; what fills it up must not be seen.
    backbone = dataclasses.replace(released_backbone(meta.get("cfg") or weights.setting("cfg")), padding_visible=False)
    params = Check(weights).converted(dream.rules(backbone), weights.tensors, backbone_params(backbone))
    table, head = params["embedding"], params["head"] * np.float32(meta.get("lm_head_scale", 1.0))
    if "in/lm_head_override_rows" in fixture:
        head[:, fixture["in/lm_head_override_rows"]] = fixture["in/lm_head_override_values"].T

    vocabulary = _vocabulary(int(fixture.setting("mask_token_id")))
    canvas = build_canvas([_prompt(fixture, table)], [_answer(fixture, vocabulary)], vocabulary, multiple=64)
    unconditional = None
    if meta.get("cfg_scale"):
        # Prompt tokens are 0 in the released code; only embeddings enter.
        ids = fixture["in/uncond_prompt_ids"]
        prompt = Prompt(np.zeros(len(ids), np.int32), embeddings=table[ids])
        unconditional = unconditional_canvas(canvas, [prompt], vocabulary, pad_with_zero_vectors=True, multiple=64)
    model = OmniModel(OmniConfig(backbone, speech_encoder=None))
    denoiser = module_denoiser(model, {"backbone": params | {"head": head}})
    result = sample(denoiser, canvas, settings(meta), unconditional=unconditional)

    length, start, steps = len(fixture["in/x_init"]), int(fixture.setting("prompt_len")), int(result.steps[0])
    history = film(canvas, result)[:, 0, :length]
    check.exact("out/history", history)
    before = np.concatenate([np.asarray(canvas.inputs.tokens)[:1, :length], history[:-1]])
    check.exact("out/num_masked_before", (before[:, start:] == vocabulary.mask).sum(axis=1))
    check.exact("out/sequence", result.tokens[0, :length])
    check.exact("out/num_transfer", result.committed[0, :steps])
    config = settings(meta)
    answer = np.asarray(canvas.generate)[0, start:length]
    steps_of = [count for *_, count in config.blocks.split(answer, functools.partial(total_steps, config))]
    check.exact("out/steps_per_block", steps_of)
    # A block of no steps has one time, its beginning.
    times = [config.schedule.timesteps(count) if count else np.ones(1) for count in steps_of]
    check.absolute("out/timesteps", np.concatenate(times), 1e-6)
    confidence, chosen = np.full((2, steps, length - start), np.nan)
    written = np.asarray(result.commit_step)[0, start:length]
    at = np.flatnonzero(written >= 0)
    confidence[written[at], at] = np.asarray(result.confidence)[0, start + at]
    chosen[written[at], at] = np.asarray(result.tokens)[0, start + at]
    revealed = np.isfinite(chosen)
    # A row whose top-p boundary lies within float noise may keep one token more or less.
    check.share("out/confidence", confidence, 1e-4, 1.0 if meta.get("top_p") is None else 0.99, revealed)
    check.share("out/predicted", chosen, 0.0, 1.0, revealed)


def settings(meta: Mapping[str, Any]) -> SamplerConfig:
    """`generate`'s arguments as a fixture records them."""
    alg = str(meta["alg"])
    top_p, top_k = meta.get("top_p"), meta.get("top_k_effective")
    return SamplerConfig.released(
        int(meta["steps_requested"]),
        _confidence(alg),
        top_p=1.0 if top_p is None else float(top_p),
        top_k=0 if top_k is None else int(top_k),
        # The other algorithms ignore it.
        repetition_penalty=float(meta.get("repeat_penalty", 1.0)) if alg.endswith("-penalty") else 1.0,
        max_position_penalty=float(meta.get("max_position_penalty", 1.0)),
        cfg=float(meta.get("cfg_scale", 0.0)),
        block_size=max(int(meta.get("block_size", -1)), 0),
        schedule=Schedule(eps=float(meta.get("eps", 1e-3))),
    )


def _confidence(alg: str) -> Any:
    name = alg.removesuffix("-penalty")
    if name not in ("entropy", "maskgit_plus", "topk_margin"):
        raise unsupported(f"the algorithm {alg!r}")
    return name


def _vocabulary(mask_id: int) -> Vocabulary:
    """A vocabulary with this mask id; its other ids stand only where nothing is generated or seen."""
    others = tuple(name for name in COMPACT_SPECIALS if name != "<|mask|>")
    before = min(mask_id, len(others))
    specials = (*others[:before], "<|mask|>", *others[before:])
    return Vocabulary(mask_id - before, specials, speech_codes=0, image_codes=0)


def _prompt(fixture: Fixture, table: np.ndarray) -> Prompt:
    if "in/prompt_embeds" in fixture:
        vectors = fixture["in/prompt_embeds"].reshape(-1, table.shape[1])
    else:
        vectors = table[fixture["in/prompt_ids"]]
    return Prompt(np.zeros(len(vectors), np.int32), embeddings=vectors)


def _answer(fixture: Fixture, vocabulary: Vocabulary) -> Any:
    answer = blank(int(fixture.setting("max_new_tokens")), vocabulary.mask)
    if fixture.meta.get("add_boa_token"):
        answer = Prefill(int(fixture.setting("boa_id")), BOA_FRACTION).apply(answer)
    return answer


def sample_tokens(fixture: Fixture, check: Check, _: FixtureSet) -> None:
    if fixture.meta.get("temperature"):
        raise unsupported("a fixture whose randomness is not recorded (temperature above 0)")
    logits = fixture["in/logits"]
    token, confidence = zip(
        *(
            _decided(logits, fixture["in/past_x"], fixture.setting("mask_id"), combo, len(logits))
            for combo in fixture.setting("combos")
        ),
        strict=True,
    )
    check.exact("out/x0", np.stack(token))
    check.relative("out/confidence", np.stack(confidence))
    _positions(fixture, check)


def _positions(fixture: Fixture, check: Check) -> None:
    """Combinations over the first `n_rows` rows; behind them the recording holds -1 and NaN."""
    logits, combos = fixture["in/pos_logits"], fixture.setting("pos_combos")
    shape = (len(combos), len(logits))
    token, confidence, within = np.full(shape, -1), np.full(shape, np.nan), np.zeros(shape, bool)
    for i, combo in enumerate(combos):
        rows = int(combo["n_rows"])
        within[i, :rows] = True
        token[i, :rows], confidence[i, :rows] = _decided(
            logits, fixture["in/pos_past_x"], fixture.setting("pos_mask_id"), combo, rows
        )
    check.exact("out/pos_x0", token)
    if "out/pos_confidence" in fixture and not np.isnan(fixture["out/pos_confidence"][~within]).all():
        check.fail("out/pos_confidence", "holds numbers for rows that were not there")
    else:
        check.share("out/pos_confidence", confidence, 1e-4, 1.0, within)


def _decided(logits: np.ndarray, past: Any, mask_id: int, combo: Mapping[str, Any], count: int) -> Any:
    """Token and confidence of the first `count` rows, which are masked, as the released function sees them.

    The others are decided beside them and left out: whatever their number, the same code is compiled.
    """
    config = settings({"steps_requested": 1, "top_k_effective": combo.get("top_k"), **combo})
    rows, vocab = logits.shape
    offsets = jnp.arange(rows)[None, :]
    (factor,) = config.position.factor(offsets, jnp.full((1,), count), offsets < count, jnp.zeros((1,)))
    everywhere = jnp.ones(past.shape, bool)
    seen = config.repetition.seen(past, everywhere, everywhere, mask_id, jnp.int32(1), vocab)
    seen = None if seen is None else jnp.broadcast_to(seen, logits.shape)
    return tuple(np.asarray(x)[:count] for x in decide(jnp.asarray(logits), seen, factor, None, config))
