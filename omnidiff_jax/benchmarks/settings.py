"""What the sampler is measured on: the released demo's settings, on made-up prompts and the backbone alone.

Heard speech is prompt embeddings by the time decoding begins, so random text tokens stand for it here.
No setting draws: at temperature 0 tokens can be compared, and the work is the same.
"""

import dataclasses
from typing import Literal

import numpy as np

from omnidiff_jax.sampling import Canvas, Prompt, SamplerConfig, blank, build_canvas, unconditional_canvas
from omnidiff_jax.sampling.canvas import AllowedSets
from omnidiff_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Setting:
    """Arguments of the released `generate`, and the sizes of what it is asked.

    Attributes:
        prompt: tokens before the answer.
        answer: L, positions to fill.
        kind: of token that the answer is made of, where only that may stand.
        top_p: 1 = off.
        top_k: 0 = off; 50 is the released code's hidden default.
        repetition: penalty of tokens the answer holds; 1 = off.
        position: largest penalty of the answer's tail; 1 = off.
        guidance: w; 0 = off.
        unconditional: tokens of the unconditional prompt under guidance.
    """

    prompt: int
    answer: int
    kind: Literal["image", "speech", "text"] = "image"
    top_p: float = 0.9
    top_k: int = 50
    repetition: float = 1.0
    position: float = 1.0
    guidance: float = 0.0
    unconditional: int = 0

    def sampler(self, steps: int) -> SamplerConfig:
        """The released algorithm in this project's sampler."""
        return SamplerConfig.released(
            steps,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition,
            max_position_penalty=self.position,
            cfg=self.guidance,
        )

    def prompts(self, vocabulary: Vocabulary, seed: int, rows: int) -> tuple[list[Prompt], list[Prompt]]:
        """`rows` prompts, the first of which depends on the seed alone; and the unconditional ones under guidance."""

        def draw(kind: int, length: int) -> list[Prompt]:
            draws = [np.random.default_rng((seed, kind, row)) for row in range(rows)]
            text = vocabulary.text
            return [Prompt(rng.integers(text.start, text.stop, length, np.int32)) for rng in draws]

        return draw(0, self.prompt), draw(1, self.unconditional) if self.guidance else []

    def canvases(
        self, vocabulary: Vocabulary, seed: int, rows: int, sets: AllowedSets | None = None
    ) -> tuple[Canvas, Canvas | None]:
        """What `sample` is given; the unconditional prompt is filled up with zero vectors, as released.

        With the `sets` of `kinds_of` only tokens of `kind` may stand in the answers, else any.
        """
        prompts, others = self.prompts(vocabulary, seed, rows)
        answer = blank(self.answer, vocabulary.mask, 0 if sets is None else sets[self.kind])
        # All lengths are known: no position is there to be filled up.
        canvas = build_canvas(prompts, [answer] * rows, vocabulary, sets, multiple=4)
        if not others:
            return canvas, None
        return canvas, unconditional_canvas(canvas, others, vocabulary, pad_with_zero_vectors=True, multiple=4)


def kinds_of(vocabulary: Vocabulary) -> AllowedSets:
    """The ids of each `Setting.kind`."""
    return AllowedSets(vocabulary, image=[vocabulary.image], speech=[vocabulary.speech], text=[vocabulary.text])


SETTINGS = {
    # What is left when nothing but the most likely token is asked for.
    "greedy": Setting(40, 260, top_p=1.0, top_k=0),
    "t2i": Setting(40, 260, repetition=1.2, position=2.0),
    # Four seconds heard, 67 frames; unconditional: the same chat without them.
    "s2i": Setting(100, 260, repetition=1.5, position=2.0, guidance=2.0, unconditional=27),
    "tts": Setting(40, 50, "speech", repetition=1.2),
    "text": Setting(60, 64, "text"),
}
