"""How to decode: small frozen strategy groups, hashable (static under jit) and built from configs by `config.build`.

Defaults are this project's behaviour; `SamplerConfig.released()` is the released `generate`, quirks included.
"""

import dataclasses
import math
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The falling share of masks t, from 1 at the start to `eps` at the end of the steps.

    Attributes:
        kind: `linear` (released), or `cosine` (few tokens first, many last).
        eps: t after the last step.
    """

    kind: Literal["linear", "cosine"] = "linear"
    eps: float = 1e-3


@dataclasses.dataclass(frozen=True)
class Confidence:
    """Which masked positions are revealed first.

    Attributes:
        kind: `entropy` (negative entropy), `maskgit_plus` (probability of the candidate), `topk_margin` (first minus
            second probability), `origin` (random order).
        temperature: scale of the Gumbel noise added to the confidence; 0 = none. Constant noise of scale T draws the
            positions without replacement from softmax(confidence / T), as the released `alg_temp` does.
        anneal: `linear` lets the noise fall to 0 over the steps (MaskGIT), `constant` does not.
    """

    kind: Literal["entropy", "maskgit_plus", "topk_margin", "origin"] = "entropy"
    temperature: float = 0.0
    anneal: Literal["constant", "linear"] = "constant"

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"confidence temperature {self.temperature} must be a number from 0 up")


@dataclasses.dataclass(frozen=True)
class Filters:
    """What a token is drawn from, in the released order: temperature, top-p, top-k.

    Attributes:
        temperature: 0 takes the most likely token; above 0 draws from logits / temperature.
        top_p: keeps the smallest set of tokens whose probability exceeds it; 1 = off.
        top_k: keeps the k most likely tokens; 0 = off. (The released `generate` always has 50.)
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature {self.temperature} must be a number from 0 up")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} must be in (0, 1]; 1 is off")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k} must not be negative; 0 is off")


@dataclasses.dataclass(frozen=True)
class Repetition:
    """Penalty of tokens that the answer already holds: positive logits / p, negative * p, once per token.

    Attributes:
        penalty: p; 1 = off.
        scope: `generated` counts tokens that the sampler revealed; `released` counts everything in the answer region
            except id 0, from the second step on (pre-filled tokens included).
    """

    penalty: float = 1.0
    scope: Literal["generated", "released"] = "generated"

    def __post_init__(self):
        if self.penalty <= 0:
            raise ValueError(f"repetition penalty {self.penalty} must be positive; 1 is off")


@dataclasses.dataclass(frozen=True)
class Position:
    """Penalty of the tail of an answer, so that decoding does not start from both ends.

    Attributes:
        form: `paper`: logits of the last L - `free` answer positions are scaled by a factor that falls linearly with
            the index to `gamma` at the last, during the first `early` share of the steps. `released`: with n > `free`
            masked rows, row i >= `free` (counted among the rows *still masked*) has its positive logits divided and
            its negative ones multiplied by 1 + (i - free) / (n - free) * (maximum - 1), at every step.
        free: leading positions (rows) left alone.
        gamma: smallest factor of the paper's form; 1 = off.
        maximum: largest factor of the released form; 1 = off.
        early: share of an answer's steps during which the paper's form holds.
    """

    form: Literal["off", "paper", "released"] = "off"
    free: int = 100
    gamma: float = 0.5
    maximum: float = 2.0
    early: float = 0.5

    def __post_init__(self):
        if not 0 < self.gamma <= 1:
            raise ValueError(f"position penalty gamma {self.gamma} must be in (0, 1]")
        if self.maximum < 1:
            raise ValueError(f"position penalty maximum {self.maximum} must be at least 1")
        if self.free < 0 or not 0 <= self.early <= 1:
            raise ValueError(f"position penalty free {self.free} must be >= 0 and early {self.early} in [0, 1]")


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: uncond + (1 + scale) * (cond - uncond), on logits, before any filter.

    Attributes:
        scale: w; 0 = off (no unconditional pass).
        form: `aligned` combines the same answer position of both canvases; `released` combines the same absolute
            index, which is another answer position where the prompts differ in length.
    """

    scale: float = 0.0
    form: Literal["aligned", "released"] = "aligned"

    def __post_init__(self):
        if self.scale < 0:
            raise ValueError(f"guidance scale {self.scale} must not be negative; 0 is off")


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Semi-autoregressive decoding: the answer is finished block by block, from the left.

    Attributes:
        size: positions of a block; 0 = the whole answer at once.
        form: `even` shares the steps out in proportion to each block's masks, at least one each; `released` rounds
            each block's share down (to 0: the block stays masked) and counts blocks by masks, so that a pre-filled
            answer can lose its last block.
    """

    size: int = 0
    form: Literal["even", "released"] = "even"

    def __post_init__(self):
        if self.size < 0:
            raise ValueError(f"block size {self.size} must not be negative; 0 is one block")


@dataclasses.dataclass(frozen=True)
class Stopping:
    """When an answer is done before its steps are.

    An answer is always done once nothing is masked.

    Attributes:
        end_id: if set, an answer is also done once this token stands before its first mask; what is still masked
            after it becomes `end_id` too.
    """

    end_id: int | None = None


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Everything that decides how a canvas is filled.

    Attributes:
        steps: T, at most this many steps for each answer (never more than it has masks).
        steps_per_token: T as a share of an answer's masks where `steps` is None.
        candidates: `real` never predicts the mask token; `released` lets it be predicted, which leaves the position
            masked.
        rows_per_chunk: rows of logits that exist at once; bounds memory at rows * V * 4 bytes.
    """

    steps: int | None = None
    steps_per_token: float = 1.0
    schedule: Schedule = Schedule()
    confidence: Confidence = Confidence()
    filters: Filters = Filters()
    repetition: Repetition = Repetition()
    position: Position = Position()
    guidance: Guidance = Guidance()
    blocks: Blocks = Blocks()
    stopping: Stopping = Stopping()
    candidates: Literal["real", "released"] = "real"
    rows_per_chunk: int = 256

    def __post_init__(self):
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps {self.steps} must be at least 1")
        if not 0 < self.steps_per_token <= 1:
            raise ValueError(f"steps_per_token {self.steps_per_token} must be in (0, 1]")
        if self.rows_per_chunk < 1:
            raise ValueError(f"rows_per_chunk {self.rows_per_chunk} must be at least 1")

    @classmethod
    def released(
        cls,
        steps: int,
        confidence: Literal["entropy", "maskgit_plus", "topk_margin", "origin"] = "entropy",
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 50,
        repetition_penalty: float = 1.0,
        max_position_penalty: float = 1.0,
        cfg: float = 0.0,
        block_size: int = 0,
        **others: Any,
    ) -> "SamplerConfig":
        """The released `generate` with its arguments: every quirk on, top-k 50 unless it is given as 0."""
        return cls(
            steps=steps,
            confidence=Confidence(confidence),
            filters=Filters(temperature, top_p, top_k),
            repetition=Repetition(repetition_penalty, "released"),
            position=Position("released", maximum=max_position_penalty),
            guidance=Guidance(cfg, "released"),
            blocks=Blocks(block_size, "released"),
            candidates="released",
            **others,
        )


@dataclasses.dataclass(frozen=True)
class LengthRule:
    """Adaptive answer length (paper, TTS and ASR): L = rate * units of the prompt.

    T follows from L by `SamplerConfig.steps_per_token`.

    Attributes:
        rate: answer tokens per unit: 3.5 per text token (TTS), 0.2 per speech token (ASR).
        minimum: shortest answer.
        maximum: longest answer, None = no bound.
    """

    rate: float
    minimum: int = 1
    maximum: int | None = None

    def length(self, units: int) -> int:
        """Answer length for a prompt of `units` units, rounded down as the released evaluation scripts do."""
        length = max(int(self.rate * units), self.minimum)
        return length if self.maximum is None else min(length, self.maximum)


TTS_LENGTH = LengthRule(rate=3.5)
ASR_LENGTH = LengthRule(rate=0.2)
