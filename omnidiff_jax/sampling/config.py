"""How to decode: small frozen strategies, hashable (static under jit) and built from configs by `config.build`.

Each group is a class with the settings and methods of its default; its subclasses are the other kinds. A strategy of
one's own is a subclass handed in as an object. Defaults are this project's behaviour; `SamplerConfig.released()` is
the released `generate`, quirks included.
"""

import dataclasses
from typing import Any

from omnidiff_jax.config import Choice
from omnidiff_jax.sampling.cache import Cache
from omnidiff_jax.sampling.candidates import Candidates, ReleasedCandidates
from omnidiff_jax.sampling.confidence import Confidence
from omnidiff_jax.sampling.drafting import Drafting
from omnidiff_jax.sampling.filters import Filters
from omnidiff_jax.sampling.guidance import Guidance, ReleasedGuidance
from omnidiff_jax.sampling.penalties import Position, ReleasedPosition, ReleasedRepetition, Repetition
from omnidiff_jax.sampling.ranges import LEAST, POSITIONS, within
from omnidiff_jax.sampling.reveal import Reveal
from omnidiff_jax.sampling.schedule import Blocks, ReleasedBlocks, Schedule
from omnidiff_jax.sampling.stopping import Stopping


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Everything that decides how a canvas is filled.

    Attributes:
        steps: T, at most this many steps for each answer (never more than it has masks).
        steps_per_token: T as a share of an answer's masks where `steps` is None.
        schedule, blocks: how many positions a step is to reveal, and in which block.
        reveal: whether it reveals more where the model is sure.
        confidence: which positions are revealed first.
        filters: what a token is drawn from.
        repetition, position: penalties.
        guidance: classifier-free guidance.
        stopping: when an answer is done before its steps are.
        candidates: which tokens can be predicted at all.
        cache: what of a step is kept for the next.
        drafting: whether a call takes steps ahead.
        rows_per_chunk: rows of logits that exist at once; bounds memory at rows * V * 4 bytes.
    """

    steps: int | None = None
    steps_per_token: float = 1.0
    schedule: Schedule = Schedule()
    reveal: Reveal = Reveal()
    confidence: Confidence = Confidence()
    filters: Filters = Filters()
    repetition: Repetition = Repetition()
    position: Position = Position()
    guidance: Guidance = Guidance()
    blocks: Blocks = Blocks()
    stopping: Stopping = Stopping()
    candidates: Candidates = Candidates()
    cache: Cache = Cache()
    drafting: Drafting = Drafting()
    rows_per_chunk: int = 256

    def __post_init__(self):
        if self.steps is not None:
            within(self, "steps", 1, POSITIONS, note="None follows steps_per_token")
        within(self, "steps_per_token", LEAST, 1)
        within(self, "rows_per_chunk", 1, POSITIONS)
        self.reveal.check(self.confidence, self.repetition)
        self.drafting.check(self.cache)
        self.cache.check(self.reveal)

    @classmethod
    def released(
        cls,
        steps: int,
        confidence: str = "entropy",
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 50,
        repetition_penalty: float = 1.0,
        max_position_penalty: float = 1.0,
        cfg: float = 0.0,
        block_size: int = 0,
        **others: Any,
    ) -> "SamplerConfig":
        """The released `generate` with its arguments: every quirk on, top-k 50 unless it is given as 0.

        Raises:
            UserError: an unknown confidence, a number out of its range.
        """
        return cls(
            steps=steps,
            confidence=Confidence.named(confidence)(),
            filters=Filters(temperature, top_p, top_k),
            repetition=ReleasedRepetition(repetition_penalty),
            position=ReleasedPosition(maximum=max_position_penalty),
            guidance=ReleasedGuidance(cfg),
            blocks=ReleasedBlocks(block_size),
            candidates=ReleasedCandidates(),
            **others,
        )


@dataclasses.dataclass(frozen=True)
class LengthRule(Choice, key="of", word=""):
    """Adaptive answer length (paper, TTS and ASR): L = rate * units of the request.

    T follows from L by `SamplerConfig.steps_per_token`.

    Attributes:
        rate: answer tokens per unit: a text token of the request, or a speech token heard.
        minimum: shortest answer.
        maximum: longest answer, None = no bound.
    """

    rate: float
    minimum: int = 1
    maximum: int | None = None

    def __post_init__(self):
        within(self, "rate", LEAST, 1000)
        within(self, "minimum", 1, POSITIONS)
        if self.maximum is not None:
            within(self, "maximum", self.minimum, POSITIONS, note="not below the minimum")

    def length(self, units: int, prompt: int) -> int:
        """Answer length, rounded down as the released evaluation scripts do.

        Args:
            units: of the request.
            prompt: positions of the whole prompt.
        """
        length = max(int(self.rate * self.counted(units, prompt)), self.minimum)
        return length if self.maximum is None else min(length, self.maximum)

    def counted(self, units: int, prompt: int) -> int:
        """What `rate` is of."""
        return units


@dataclasses.dataclass(frozen=True)
class PromptLength(LengthRule, word="prompt"):
    """L = rate * positions of the whole prompt: turns, what is heard (16.67 frames a second and 4) and all.

    The released ASR script's rule, with rate 0.2. The paper's "0.2 of the speech tokens" cuts what was said where those
    are taken for the 12.5 a second of the codec: 18 positions for the average sentence of LibriSpeech, 7.4 s with about
    25 tokens of text, where this gives about 28.
    """

    def counted(self, units: int, prompt: int) -> int:
        return prompt


TTS_LENGTH = LengthRule(rate=3.5)
ASR_LENGTH = PromptLength(rate=0.2)
