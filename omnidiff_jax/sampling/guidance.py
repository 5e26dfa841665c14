"""Classifier-free guidance: how two predictions become one, and unconditional canvases: the same answers behind
prompts that say less."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from omnidiff_jax.batch import ModelInputs, SpeechFrames
from omnidiff_jax.config import Choice
from omnidiff_jax.errors import UserError
from omnidiff_jax.sampling.canvas import ZERO_VECTOR, Answer, Canvas, Prompt, build_canvas
from omnidiff_jax.sampling.ranges import MOST, within
from omnidiff_jax.speech_frames import RELEASED_SPEECH, SpeechLayout, packed_frames
from omnidiff_jax.vocabulary import IdRange, Vocabulary


@dataclasses.dataclass(frozen=True)
class Guidance(Choice, key="form", word="aligned"):
    """uncond + (1 + scale) * (cond - uncond), on logits, before any filter.

    This form, `aligned`, combines the same answer position of both canvases.

    Attributes:
        scale: w; 0 = off (no unconditional pass).
    """

    form: ClassVar[str]
    scale: float = 0.0

    def __post_init__(self) -> None:
        within(self, "scale", 0, MOST, note="0 is off")

    def partners(self, position: jax.Array, shift: jax.Array) -> jax.Array:
        """int32 [B, L]: the position of the unconditional canvas that each conditional one is combined with.

        Args:
            position: int32 [B, L].
            shift: int32 [B, 1], how much later the unconditional answer starts.
        """
        return position + shift

    def combine(self, conditional: jax.Array, unconditional: jax.Array) -> jax.Array:
        """Logits float32 [n, V] of both canvases -> guided ones."""
        return unconditional + (1.0 + self.scale) * (conditional - unconditional)


@dataclasses.dataclass(frozen=True)
class ReleasedGuidance(Guidance, word="released"):
    """Combines the same absolute index, which is another answer position where the prompts differ in length."""

    def partners(self, position: jax.Array, shift: jax.Array) -> jax.Array:
        return position


def random_text_prompt(
    head: Sequence[int] | np.ndarray,
    tail: Sequence[int] | np.ndarray,
    length: int,
    text: IdRange,
    seed: int,
    example_id: int = 0,
) -> Prompt:
    """A prompt of `length` tokens with random distinct text between the task's fixed head and tail (T2I, released).

    The released code draws from every id below begin-of-audio, specials and mask included; here `text` says which.

    Args:
        head: ids before the text, such as the turn's header and instruction.
        tail: ids after it, up to the assistant's header.
        length: tokens of the conditional prompt.
        text: ids to draw from.
        seed: of the run.
        example_id: of the example, so that its text does not depend on the batch.

    Raises:
        UserError: the prompt is shorter than head and tail.
    """
    middle = length - len(head) - len(tail)
    if middle < 0:
        raise UserError(f"a prompt of {length} tokens is shorter than its template of {len(head) + len(tail)}")
    rng = np.random.default_rng([seed, example_id])
    drawn = rng.choice(len(text), size=middle, replace=middle > len(text)) + text.start
    return Prompt(np.concatenate([head, drawn, tail]).astype(np.int32))


def unconditional_canvas(
    canvas: Canvas,
    prompts: Sequence[Prompt],
    vocabulary: Vocabulary,
    *,
    pad_with_zero_vectors: bool = False,
    speech: SpeechLayout = RELEASED_SPEECH,
    multiple: int = 32,
) -> Canvas:
    """`canvas` with its prompts replaced; the answers and everything about them stay.

    Args:
        canvas: the conditional canvas, on the host.
        prompts: one per example (rows without an example need none).
        vocabulary: as for `build_canvas`.
        pad_with_zero_vectors: released form: a row shorter than its conditional one goes on with all-zero
            embeddings, which are attended to.
        speech: as for `build_canvas`.
        multiple: as for `build_canvas`.
    """
    rows = len(canvas.answer_start)
    starts: Any = np.asarray(canvas.answer_start)
    sizes: Any = np.asarray(canvas.answer_length)
    used = np.flatnonzero(sizes > 0)
    if len(prompts) != len(used):
        raise UserError(f"{len(prompts)} unconditional prompts for {len(used)} examples; one for each is needed")
    tokens, groups = np.asarray(canvas.inputs.tokens), np.asarray(canvas.groups)
    answers = []
    for b in range(len(prompts)):
        span = slice(starts[b], starts[b] + sizes[b])
        answer = Answer(tokens[b, span], groups[b, span])
        if pad_with_zero_vectors:
            missing = max(int(starts[b]) - len(prompts[b].tokens), 0)
            answer += Answer(np.full(missing, ZERO_VECTOR, np.int32), np.zeros(missing, np.int32))
        answers.append(answer)
    other = build_canvas(prompts, answers, vocabulary, speech=speech, multiple=multiple, rows=rows)
    return dataclasses.replace(other, answer_length=sizes, example_ids=canvas.example_ids, allowed=canvas.allowed)


def _padded(canvas: Canvas, length: int, frames: SpeechFrames | None) -> Canvas:
    """`canvas` (host arrays) with L = `length` and a speech buffer of the size of `frames`, if there is one."""

    def widen(x: Any) -> Any:
        x = np.asarray(x)
        return np.pad(x, [(0, 0), (0, length - x.shape[1]), *[(0, 0)] * (x.ndim - 2)])

    inputs, speech = canvas.inputs, canvas.inputs.speech
    if frames is not None:
        capacity, width = frames.features.shape[1:]
        empty = packed_frames([[]] * len(canvas.answer_start), capacity, SpeechLayout((), width))
        held = 0 if speech is None else speech.segment_ids.shape[1]
        parts = (empty,) if speech is None else (speech, jax.tree.map(lambda x: x[:, held:], empty))
        speech = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts)
    return dataclasses.replace(
        canvas,
        inputs=ModelInputs(
            tokens=widen(inputs.tokens),
            segment_ids=widen(inputs.segment_ids),
            positions=widen(inputs.positions),
            speech=speech,
        ),
        generate=widen(canvas.generate),
        groups=widen(canvas.groups),
        prompt_embeddings=None if canvas.prompt_embeddings is None else widen(canvas.prompt_embeddings),
    )


def stack_canvases(conditional: Canvas, unconditional: Canvas) -> Canvas:
    """Both canvases as one of 2B rows and a common length, conditional rows first.

    Raises:
        UserError: other rows, answers or mask id; prompt embeddings in only one of them.
    """
    same = np.array_equal(conditional.answer_length, unconditional.answer_length)
    if not same or conditional.mask_id != unconditional.mask_id:
        raise UserError("the unconditional canvas must have the rows and answer lengths of the conditional one")
    if (conditional.prompt_embeddings is None) != (unconditional.prompt_embeddings is None):
        raise UserError("guidance needs prompt embeddings in both canvases or in neither")
    length = max(c.inputs.tokens.shape[1] for c in (conditional, unconditional))
    buffers = [c.inputs.speech for c in (conditional, unconditional) if c.inputs.speech is not None]
    longest = max(buffers, key=lambda s: s.segment_ids.shape[1]) if buffers else None
    first, second = (
        _padded(dataclasses.replace(c, allowed=None), length, longest) for c in (conditional, unconditional)
    )
    stacked = jax.tree.map(lambda a, b: np.concatenate([a, b]), first, second)
    return dataclasses.replace(stacked, allowed=conditional.allowed)
