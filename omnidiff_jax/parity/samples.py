"""Training-data fixtures: masking, conversation to training sample, packing."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from omnidiff_jax.data.assemble import takes_tail_pads
from omnidiff_jax.diffusion.masking import released_forward_process
from omnidiff_jax.parity.check import Check, unsupported
from omnidiff_jax.parity.fixtures import Fixture, FixtureSet
from omnidiff_jax.parity.packing import pack_released
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG, Message
from omnidiff_jax.tasks.chat import ChatLayout, media_roles
from omnidiff_jax.vocabulary import Vocabulary

IGNORED = -100
_masked = jax.jit(released_forward_process)


class CharacterTokenizer:
    """The fixtures' stand-in for the text tokenizer: GPT-2's byte-level characters in alphabetical order."""

    size = 256

    @functools.cached_property
    def _ids(self) -> dict[int, int]:
        visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
        order = visible + [byte for byte in range(256) if byte not in visible]
        return {byte: number for number, byte in enumerate(order)}

    def encode(self, text: str) -> list[int]:
        return [self._ids[byte] for byte in text.encode()]

    def decode(self, ids: Iterable[int]) -> str:
        back = {number: byte for byte, number in self._ids.items()}
        return bytes(back[int(i)] for i in ids if i < self.size).decode(errors="replace")

    def untaught(self, text: str) -> list[str]:
        return []


def forward_process(fixture: Fixture, check: Check, _: FixtureSet) -> None:
    for name, case in fixture.setting("cases").items():
        labels = fixture[f"in/{name}/labels"]
        eps = case["eps"]
        masked = _masked(
            labels != IGNORED,
            labels == case["special_token_id"],
            fixture[f"in/{name}/u_threshold"],
            fixture[f"in/{name}/u_decision"],
            eps,
            case["special_mask_ratio"],
        )
        check.exact(f"out/{name}/masked_indices", masked)
        drawn = (1 - eps) * fixture[f"in/{name}/u_p"][:, None] + eps
        check.relative(f"out/{name}/p_mask", drawn)


def preprocess(fixture: Fixture, check: Check, _: FixtureSet) -> None:
    """The whole way: conversation, ids and labels, tail padding, masking with the recorded uniforms."""
    vocabulary = Vocabulary.released()
    if (fixture.setting("pad_eos_id"), fixture.setting("mask_id")) != (vocabulary.pad, vocabulary.mask):
        raise unsupported("a vocabulary other than the released one")
    layout = ChatLayout(vocabulary, CharacterTokenizer(), special_strings="ids")
    for name, sample in fixture.setting("samples").items():
        tokens, targets = _rendered(fixture, layout, name, sample)
        labels = np.where(targets, tokens, IGNORED)
        if takes_tail_pads(tokens, vocabulary.pad):
            pads = np.full(int(fixture[f"in/{name}/n_pad_drawn"]), vocabulary.pad)
            tokens, labels = np.concatenate([tokens, pads]), np.concatenate([labels, pads])
        check.exact(f"out/{name}/padded_input_ids", tokens)
        check.exact(f"out/{name}/padded_labels", labels)
        masked = _drawn(fixture, name, labels, vocabulary.pad)
        check.exact(f"out/{name}/masked_indices", masked)
        hidden = masked & (labels != IGNORED)
        check.exact(f"out/{name}/input_ids", np.where(hidden, vocabulary.mask, tokens))
        check.exact(f"out/{name}/labels", np.where(hidden, labels, IGNORED))
        slots = np.flatnonzero(tokens == vocabulary.context_audio)
        if slots.size:
            check.exact(f"out/{name}/audio_positions", slots)


def _rendered(fixture: Fixture, layout: ChatLayout, name: str, sample: Mapping[str, Any]) -> Any:
    messages = tuple(Message(**message) for message in sample["messages"])
    images = [
        np.array(fixture.setting("image_tokens", f"{image}@{512 if role == 'user' else 256}"))
        for image, role in zip(sample["images"] or (), media_roles(messages, IMAGE_TAG), strict=True)
    ]
    heard = f"out/{name}/audio_n_frames"
    frames = iter(fixture[heard].reshape(-1).tolist() if heard in fixture else ())
    audios: Sequence[Any] = [
        int(next(frames)) if role == "user" else np.array(fixture.setting("discrete_audio_tokens", audio))
        for audio, role in zip(sample["audios"] or (), media_roles(messages, AUDIO_TAG), strict=True)
    ]
    rendered = layout.render(messages, images, audios)
    return rendered.tokens, rendered.targets


def _drawn(fixture: Fixture, name: str, labels: np.ndarray, pad: int) -> np.ndarray:
    """The released code draws for the span from the first to the last label only."""
    first, last = np.flatnonzero(labels != IGNORED)[[0, -1]]
    size = -(-len(labels) // 256) * 256  # one length for all samples, one compilation
    draws = np.ones((2, size), np.float32)
    draws[:, first : last + 1] = fixture[f"in/{name}/u_threshold"], fixture[f"in/{name}/u_decision"]
    padded = np.pad(labels, (0, size - len(labels)), constant_values=IGNORED)
    ratio, eps = fixture.setting("special_mask_ratio"), fixture.setting("eps")
    return np.asarray(_masked(padded != IGNORED, padded == pad, *draws, eps, ratio))[: len(labels)]


def packing(fixture: Fixture, check: Check, _: FixtureSet) -> None:
    drawn = [
        (fixture[f"in/sample{i}/input_ids"], fixture[f"in/sample{i}/labels"]) for i in fixture["in/order"].tolist()
    ]
    rows = pack_released(drawn, int(fixture.setting("max_padding_length")), Vocabulary.released().pad)
    recorded = {name.split("/")[1] for name in fixture.outputs if name.startswith("out/pack")}
    if len(rows) != len(recorded):
        check.fail("out/pack*", f"{len(recorded)} packed rows in the fixture, {len(rows)} here")
    for number, row in enumerate(rows):
        for name in ("input_ids", "labels", "position_ids", "attention_mask", "cu_seq_lens"):
            check.exact(f"out/pack{number}/{name}", getattr(row, name))
