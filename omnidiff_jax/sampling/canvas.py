"""Canvases: what the sampler fills. A prompt (known), then an answer whose masked positions are to be generated.

An answer is given as tokens with the mask id wherever the sampler shall write, so that a blank answer, one with
pre-filled tokens, an image with a hole and a template with several modalities are all the same thing.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import struct

from omnidiff_jax.batch import ModelInputs, SpeechFrames
from omnidiff_jax.config import suggest
from omnidiff_jax.errors import UserError
from omnidiff_jax.sampling.ranges import OutOfRange
from omnidiff_jax.speech_frames import RELEASED_SPEECH, SpeechLayout, packed_frames, seconds_of
from omnidiff_jax.vocabulary import IdRange, Vocabulary

# Token that stands for an all-zero embedding (released guidance pads its shorter prompt with such vectors).
ZERO_VECTOR = -1


class TooLong(UserError):
    """A prompt and its answer that do not fit the canvas."""


@struct.dataclass
class Canvas:
    """A batch of ragged prompts and answers, right-padded (segment id 0).

    Attributes:
        inputs: tokens (the mask id at positions to generate), segment ids, positions, speech of the prompts.
        generate: bool [B, L], positions that the sampler writes; all others never change.
        answer_start: int32 [B], first position of the answer region.
        answer_length: int32 [B], its length; 0 for a row that only fills up the batch.
        groups: int32 [B, L], row of `allowed` that a position may take its token from.
        allowed: bool [G, V], or None: any token anywhere.
        example_ids: uint32 [B]; noise is keyed by them, so that an answer does not depend on its batch.
        prompt_embeddings: [B, L, D] or None: embeddings that replace those of the tokens before `answer_start`.
        mask_id: the mask token.
    """

    inputs: ModelInputs
    generate: jax.Array
    answer_start: jax.Array
    answer_length: jax.Array
    groups: jax.Array
    allowed: jax.Array | None
    example_ids: jax.Array
    prompt_embeddings: jax.Array | None = None
    mask_id: int = struct.field(pytree_node=False, default=-1)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What is known before the answer.

    Attributes:
        tokens: int32 [n].
        frames: float [T, W], frames of the heard utterances, concatenated; None if there are none.
        frame_counts: frames of each utterance; utterance u fills `SpeechLayout.slots(frame_counts[u])` consecutive
            context-of-audio tokens.
        embeddings: [n, D] used instead of the tokens' embeddings, or None.
    """

    tokens: np.ndarray
    frames: np.ndarray | None = None
    frame_counts: Sequence[int] = ()
    embeddings: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """What stands after the prompt; the mask id is to be generated.

    Attributes:
        tokens: int32 [L_i].
        groups: int32 [L_i], the set of ids each position may take (a row of `AllowedSets.table`); 0 = any.
    """

    tokens: np.ndarray
    groups: np.ndarray

    def __add__(self, other: "Answer") -> "Answer":
        return Answer(np.concatenate([self.tokens, other.tokens]), np.concatenate([self.groups, other.groups]))

    def __len__(self) -> int:
        return len(self.tokens)


def known(tokens: Any) -> Answer:
    """An answer part that is given: `tokens` int [n]."""
    tokens = np.asarray(tokens, np.int32)
    return Answer(tokens, np.zeros_like(tokens))


def blank(length: int, mask_id: int, group: int = 0) -> Answer:
    """An answer part of `length` masks, each to be filled from the allowed set `group`."""
    return Answer(np.full(length, mask_id, np.int32), np.full(length, group, np.int32))


def infill(tokens: Any, generate: Any, mask_id: int, group: int = 0) -> Answer:
    """`tokens` int [n] with the positions `generate` bool [n] to be generated again, the rest kept (inpainting)."""
    tokens, generate = np.asarray(tokens, np.int32), np.asarray(generate, bool)
    if tokens.shape != generate.shape:
        raise UserError(f"{tokens.shape} tokens and {generate.shape} flags to generate them; they must be as many")
    return Answer(np.where(generate, np.int32(mask_id), tokens), np.where(generate, group, 0).astype(np.int32))


@dataclasses.dataclass(frozen=True)
class Prefill:
    """Special-token pre-infilling: `token` is put at `fraction` of the answer before decoding.

    Text before begin-of-audio and speech after it are then decoded together. Paper: 0.25; released code: 0.2.
    """

    token: int
    fraction: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise OutOfRange(f"fraction = {self.fraction!r} must be a number from 0 up to, but not, 1")

    def index(self, length: int) -> int:
        """Where the token stands in an answer of `length` positions."""
        return int(self.fraction * length)

    def apply(self, answer: Answer, before: int = 0, after: int = 0) -> Answer:
        """`answer` with the token in place; allowed sets `before` and `after` on either side of it (0 = as given)."""
        at = self.index(len(answer))
        tokens, groups = answer.tokens.copy(), answer.groups.copy()
        tokens[at] = self.token
        groups[:at] = before or groups[:at]
        groups[at + 1 :] = after or groups[at + 1 :]
        return Answer(tokens, groups)


class AllowedSets:
    """Named sets of ids that answer positions may be restricted to; set 0 is `any`.

    Example:
        sets = AllowedSets(vocabulary, image=[vocabulary.image], speech=[vocabulary.speech, vocabulary.end_audio])
        answer = blank(16, vocabulary.mask, sets["image"])
        canvas = build_canvas(prompts, [answer], vocabulary, sets)
    """

    def __init__(self, vocabulary: Vocabulary, **sets: Sequence[int | IdRange]):
        self.table: Any = np.ones((1 + len(sets), vocabulary.size), bool)
        self._index: Mapping[str, int] = {name: i for i, name in enumerate(("any", *sets))}
        for name, members in sets.items():
            row = self.table[self._index[name]]
            row[:] = False
            for member in members:
                if isinstance(member, IdRange):
                    row[member.start : member.stop] = True
                else:
                    row[member] = True
            if not row.any():
                raise UserError(f"the set of allowed tokens {name!r} is empty")

    def __getitem__(self, name: str) -> int:
        """Number of the set `name`, for `Answer.groups`.

        Raises:
            UserError: no such set.
        """
        if name not in self._index:
            raise UserError(f"unknown set of allowed tokens {name!r}; {suggest(name, self._index)}")
        return self._index[name]


def bucket(length: int, multiple: int) -> int:
    """`length` rounded up to a multiple, at least one multiple."""
    return max(-(-length // multiple), 1) * multiple


def build_canvas(
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    vocabulary: Vocabulary,
    allowed: AllowedSets | None = None,
    *,
    example_ids: Sequence[int] | None = None,
    speech: SpeechLayout = RELEASED_SPEECH,
    multiple: int = 32,
    rows: int | None = None,
    limit: int | None = None,
    names: Sequence[str] = (),
    frames: int = 0,
) -> Canvas:
    """Lays prompts and answers out in rows of one length, so that repeated calls reuse compiled code.

    Args:
        prompts: one per example.
        answers: one per example.
        vocabulary: mask, pad and context-of-audio ids are read.
        allowed: the sets that `Answer.groups` number; None leaves every position free.
        example_ids: uint32, one per example; 0, 1, ... if None.
        speech: what opens each heard utterance, and how wide its frames are (`SpeechEncoderConfig.layout`).
        multiple: L (and the frame buffer) is rounded up to a multiple of this.
        rows: B; the batch is filled up with empty rows. None = as many as examples.
        limit: longest prompt + answer allowed.
        names: what messages call the examples; "example 0" and so on where there are none.
        frames: vectors of speech that there is room for at least, heard or not, so that shapes are those of others.

    Raises:
        TooLong: a prompt and answer longer than `limit`.
        UserError: speech frames that do not match the context-of-audio tokens; more examples than `rows`.
    """
    if len(prompts) != len(answers):
        raise UserError(f"{len(prompts)} prompts and {len(answers)} answers; one answer per prompt is needed")
    count, total = len(prompts), len(prompts) if rows is None else rows
    if count > total:
        raise UserError(f"{count} examples do not fit the {total} rows of a canvas")
    lengths = [len(p.tokens) + len(a) for p, a in zip(prompts, answers, strict=True)]
    for i, n in enumerate(lengths):
        if limit is not None and n > limit:
            heard, name = seconds_of(prompts[i].frame_counts, n - limit), names[i] if names else f"example {i}"
            raise TooLong(
                f"{name}: prompt of {len(prompts[i].tokens)} tokens{heard} and answer of {len(answers[i])} need "
                f"{n} positions, the canvas has {limit}; shorten the prompt or the answer"
            )
    length = bucket(max(lengths, default=0), multiple)
    tokens: Any = np.full((total, length), vocabulary.pad, np.int32)
    segments: Any = np.zeros((total, length), np.int32)
    groups: Any = np.zeros((total, length), np.int32)
    start: Any = np.zeros(total, np.int32)
    size: Any = np.zeros(total, np.int32)
    for b, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        n = len(prompt.tokens)
        start[b], size[b] = n, len(answer)
        tokens[b, : lengths[b]] = np.concatenate([prompt.tokens, answer.tokens])
        groups[b, n : lengths[b]] = answer.groups
        segments[b, : lengths[b]] = 1
    positions: Any = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    in_answer = (positions >= start[:, None]) & (segments > 0)
    ids: Any = np.zeros(total, np.uint32)
    ids[:count] = np.arange(count) if example_ids is None else np.asarray(example_ids)
    return Canvas(
        inputs=ModelInputs(
            tokens=tokens,
            segment_ids=segments,
            positions=positions * (segments > 0),
            speech=_speech(prompts, total, vocabulary.context_audio, speech, multiple, frames),
        ),
        generate=in_answer & (tokens == vocabulary.mask),
        answer_start=start,
        answer_length=size,
        groups=groups,
        allowed=None if allowed is None else allowed.table,
        example_ids=ids,
        prompt_embeddings=_embeddings(prompts, total, length),
        mask_id=vocabulary.mask,
    )


def answer_tokens(canvas: Canvas, tokens: Any) -> list[np.ndarray]:
    """The answer region of each example's row of `tokens` int [B, L]: int [L_i] each."""
    spans = zip(np.asarray(tokens), np.asarray(canvas.answer_start), np.asarray(canvas.answer_length), strict=True)
    return [row[start : start + length] for row, start, length in spans if length]


def _embeddings(prompts: Sequence[Prompt], rows: int, length: int) -> Any:
    given = [p.embeddings is not None for p in prompts]
    if not any(given):
        return None
    if not all(given):
        raise UserError(f"prompt {given.index(False)} has no embeddings, others of its batch have")
    width = prompts[0].embeddings.shape[1]  # type: ignore[union-attr]
    out = np.zeros((rows, length, width), np.float32)
    for b, prompt in enumerate(prompts):
        out[b, : len(prompt.tokens)] = prompt.embeddings
    return out


def _speech(
    prompts: Sequence[Prompt], rows: int, context: int, layout: SpeechLayout, multiple: int, least: int
) -> SpeechFrames | None:
    if not least and not any(len(p.frame_counts) for p in prompts):
        return None
    utterances: list[list[tuple[np.ndarray, int]]] = [[] for _ in range(rows)]
    needed = least
    for b, prompt in enumerate(prompts):
        slots = np.flatnonzero(prompt.tokens == context)
        sizes = layout.sizes(prompt.frame_counts)
        expected = int(sizes.sum())
        if len(slots) != expected:
            raise UserError(
                f"example {b}: {len(slots)} context-of-audio tokens for {expected} vectors of speech; "
                f"an utterance of n frames takes n + {layout.slots(0)}"
            )
        needed = max(needed, expected)
        if len(sizes):
            frames = np.split(np.asarray(prompt.frames), np.cumsum(prompt.frame_counts)[:-1])
            utterances[b] = list(zip(frames, slots[np.cumsum(sizes) - sizes].tolist(), strict=True))
    return packed_frames(utterances, bucket(needed, multiple), layout)
