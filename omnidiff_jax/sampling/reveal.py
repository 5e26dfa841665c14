"""How many positions a step reveals, and which: as many as were planned, or as many as the model is sure of.

Every kind but `schedule` may take fewer calls of the model than there are steps in the plan, never more: what is
planned for a step is the least that it reveals, and a block that is done early leaves its remaining steps out.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from omnidiff_jax.config import Choice
from omnidiff_jax.sampling.confidence import Confidence
from omnidiff_jax.sampling.penalties import Repetition
from omnidiff_jax.sampling.ranges import MOST, POSITIONS, OutOfRange, within
from omnidiff_jax.sampling.rows import LOWEST, Likeliest, divergence

MOST_COMPARED = 1024
"""Each is two numbers a position, and a comparison with each of the step before."""


@struct.dataclass
class Look:
    """What a step knows when it decides what to reveal; values of positions that were not scored mean nothing.

    Attributes:
        eligible: bool [B, L], masked positions of the running blocks.
        written: bool [B, L], scored positions that hold a token already (`Reveal.revisits`).
        tokens: int32 [B, L], before this step.
        candidates: int32 [B, L].
        confidence: float32 [B, L], in them.
        sure: float32 [B, L], the same on a scale from 0 to 1 (`Confidence.share`).
        order: float32 [B, L], what positions are ranked by, the largest first.
        quota: int32 [B, 1], as many are revealed at least; 0 where an answer is done.
        likely: `Likeliest` [B, L, k] before filters and penalties, or () where none are compared.
    """

    eligible: jax.Array
    written: jax.Array
    tokens: jax.Array
    candidates: jax.Array
    confidence: jax.Array
    sure: jax.Array
    order: jax.Array
    quota: jax.Array
    likely: Any = ()


class Decision(NamedTuple):
    """What a step does.

    Attributes:
        reveal: bool [B, L], eligible positions that take their candidate.
        mask: bool [B, L], written positions that are masked again.
        state: for the next step.
    """

    reveal: jax.Array
    mask: jax.Array
    state: Any


def ranks(order: jax.Array, eligible: jax.Array) -> jax.Array:
    """int32 [B, L]: 0 for the eligible position of highest order, the earlier one on ties; the others come last."""
    order = jnp.where(jnp.isnan(order), LOWEST, jnp.maximum(order, LOWEST))
    ranking = jnp.argsort(jnp.where(eligible, -order, jnp.inf), axis=1, stable=True)
    return jnp.argsort(ranking, axis=1)


@dataclasses.dataclass(frozen=True)
class Reveal(Choice, key="kind", word="schedule"):
    """This kind, `schedule`, reveals the planned number at each step, those of highest order.

    A rule of one's own overrides `decide`; with another number than planned it sets `early`.

    Attributes:
        least: confidence from 0 to 1 above which `threshold`, `stable`, `klass` and `revise` reveal; 1 = never. Of the
            confidence `entropy` it is e^-H, one over the perplexity.
        most: positions that a step reveals at most, where the plan does not ask for more; 0 = no bound.
        gamma: nats that `entropy_bound` allows.
        change: `stable`: largest change of confidence from one step to the next that counts as none.
        during: `stable` and `klass`: steps in a row without change before a position is revealed.
        drift: `klass`: nats by which what a position predicts diverges from one step to the next, below which that is
            no change.
        among: `klass`: most likely tokens that are compared; the rest counts as one.
        keep: `revise`: confidence below which a token is masked again.
        times: `revise`: how often a position can be masked again.
    """

    kind: ClassVar[str]
    early: ClassVar[bool] = False
    """Whether a block may be done before its steps are."""
    least: float = 0.9
    most: int = 0
    gamma: float = 0.1
    change: float = 0.05
    during: int = 2
    drift: float = 0.01
    among: int = 32
    keep: float = 0.5
    times: int = 1

    def __post_init__(self) -> None:
        within(self, "least", 0, 1, note="1 is never")
        within(self, "most", 0, POSITIONS, note="0 is no bound")
        within(self, "gamma", 0, MOST)
        within(self, "change", 0, 1)
        within(self, "during", 1, POSITIONS)
        within(self, "drift", 0, MOST)
        within(self, "among", 2, MOST_COMPARED)
        within(self, "keep", 0, 1, note="0 keeps every token")
        within(self, "times", 0, 1 << 15)

    @property
    def compared(self) -> int:
        """k, most likely tokens of every scored position that `decide` is shown; 0 = none."""
        return 0

    def check(self, confidence: Confidence, repetition: Repetition) -> None:
        """Raises `OutOfRange` for what this kind makes no sense with."""

    def init(self, generate: jax.Array) -> Any:
        """The state before the first step, a pytree whose shapes and dtypes stay.

        Args:
            generate: bool [B, L], positions the sampler writes.
        """
        return ()

    def revisits(self, written: jax.Array, state: Any) -> jax.Array:
        """bool [B, L]: which of the `written` bool [B, L] positions of the running blocks are scored as well."""
        return jnp.zeros_like(written)

    def decide(self, look: Look, state: Any) -> Decision:
        """What a step does; `state` is that of the step before."""
        reveal = look.eligible & (ranks(look.order, look.eligible) < look.quota)
        return Decision(reveal, jnp.zeros_like(look.written), state)


@dataclasses.dataclass(frozen=True)
class Threshold(Reveal, word="threshold"):
    """Reveals every position surer than `least` (Fast-dLLM, arXiv 2505.22618)."""

    early: ClassVar[bool] = True

    def check(self, confidence: Confidence, repetition: Repetition) -> None:
        if not confidence.surest_first:
            raise OutOfRange(
                f"reveal.kind = {self.kind!r} reveals the surest positions, but confidence.kind = "
                f"{confidence.kind!r} has an order of its own; use confidence.kind = 'entropy', or "
                "reveal.kind = 'schedule'"
            )

    def decide(self, look: Look, state: Any) -> Decision:
        return Decision(self._surest(look, look.sure > self.least), jnp.zeros_like(look.written), state)

    def _surest(self, look: Look, sure: jax.Array) -> jax.Array:
        """bool [B, L]: the planned number, and besides them the `sure` bool [B, L] ones as far as `most` allows."""
        planned = ranks(look.order, look.eligible) < look.quota
        sure &= look.eligible
        if self.most:
            sure &= ranks(look.order, sure) < self.most
        return look.eligible & (planned | sure)


@dataclasses.dataclass(frozen=True)
class EntropyBound(Reveal, word="entropy_bound"):
    """Reveals the longest prefix of the order whose entropies, the largest left out, add up to `gamma` at most.

    That bounds what is lost by revealing them as if they were independent (EB-Sampler, arXiv 2505.24857).
    """

    early: ClassVar[bool] = True

    def check(self, confidence: Confidence, repetition: Repetition) -> None:
        if type(confidence).score is not Confidence.score:
            raise OutOfRange(
                f"reveal.kind = {self.kind!r} adds up entropies, but confidence.kind = {confidence.kind!r} "
                "measures something else; set confidence.kind = 'entropy'"
            )

    def decide(self, look: Look, state: Any) -> Decision:
        rank = ranks(look.order, look.eligible)
        entropy = jnp.where(look.eligible, jnp.maximum(-look.confidence, 0.0), 0.0)
        entropy = jnp.take_along_axis(entropy, jnp.argsort(rank, axis=1), axis=1)
        joint = jnp.cumsum(entropy, axis=1) - jax.lax.cummax(entropy, axis=1)
        count = (joint <= self.gamma).sum(axis=1, keepdims=True)
        if self.most:
            count = jnp.minimum(count, self.most)
        reveal = look.eligible & (rank < jnp.maximum(count, look.quota))
        return Decision(reveal, jnp.zeros_like(look.written), state)


@dataclasses.dataclass(frozen=True)
class Stable(Threshold, word="stable"):
    """Reveals what is surer than `least` and whose candidate did not change over the last `during` steps.

    The candidate stayed the same and the confidence in it within `change`: `klass` of one number, which needs no
    second look at the logits.
    """

    def init(self, generate: jax.Array) -> Any:
        """Candidates int32 [B, L] (-1 = none), their confidences float32 [B, L], steps without change int32 [B, L]."""
        return (
            jnp.full(generate.shape, -1, jnp.int32),
            jnp.zeros(generate.shape, jnp.float32),
            jnp.zeros(generate.shape, jnp.int32),
        )

    def decide(self, look: Look, state: Any) -> Decision:
        candidates, sure, calm = state
        same = look.eligible & (look.candidates == candidates) & (jnp.abs(look.sure - sure) <= self.change)
        calm = jnp.where(same, calm + 1, 0)
        reveal = self._surest(look, (look.sure > self.least) & (calm >= self.during))
        state = jnp.where(look.eligible, look.candidates, -1), look.sure, calm
        return Decision(reveal, jnp.zeros_like(look.written), state)


@dataclasses.dataclass(frozen=True)
class Klass(Threshold, word="klass"):
    """Reveals what is surer than `least` and whose distribution moved by less than `drift` in each of the last `during`
    steps (KLASS, arXiv 2511.05664).

    D(p_t || p_t-1) < drift, of the model's distributions before temperature, filters and penalties. Of each the `among`
    most likely tokens are kept, where the paper keeps all (V numbers a position): see `rows.divergence`. The paper's
    confidence is `maskgit_plus`, its numbers for Dream `least` 0.9, `drift` 0.01, `during` 2.
    """

    @property
    def compared(self) -> int:
        return self.among

    def init(self, generate: jax.Array) -> Any:
        """`Likeliest` [B, L, k] of the step before, int32 [B, L] steps without change."""
        return Likeliest.none(generate.shape, self.among), jnp.zeros(generate.shape, jnp.int32)

    def decide(self, look: Look, state: Any) -> Decision:
        before, calm = state
        known = look.eligible & (before.columns[..., 0] >= 0)
        calm = jnp.where(known & (divergence(look.likely, before) < self.drift), calm + 1, 0)
        reveal = self._surest(look, (look.sure > self.least) & (calm >= self.during))
        columns = jnp.where(look.eligible[..., None], look.likely.columns, -1)
        return Decision(reveal, jnp.zeros_like(look.written), (Likeliest(columns, look.likely.shares), calm))


@dataclasses.dataclass(frozen=True)
class Revise(Threshold, word="revise"):
    """As `threshold`, and masks again what the next steps doubt (WINO, arXiv 2507.18578).

    A token is doubted where its confidence cannot be as high as `keep`: that of the candidate if it is the candidate,
    else at most the candidate's, and what the candidate leaves. Tokens are looked at until their block is done, and
    each position is masked again `times` at most; a block's last step masks nothing. The paper judges a token by what
    is predicted without it, from a second, masked copy of the block beside it: that is `cache.kind = "shadow"`. Without
    it the model sees the token that it judges, and so doubts less.
    """

    def check(self, confidence: Confidence, repetition: Repetition) -> None:
        super().check(confidence, repetition)
        if repetition.penalty != 1:
            raise OutOfRange(
                f"reveal.kind = {self.kind!r} asks again for tokens that repetition.penalty = "
                f"{repetition.penalty!r} repels; set repetition.penalty = 1"
            )

    def init(self, generate: jax.Array) -> Any:
        """How often each position was masked again, int32 [B, L]."""
        return jnp.zeros(generate.shape, jnp.int32)

    def revisits(self, written: jax.Array, state: Any) -> jax.Array:
        return written & (state < self.times)

    def decide(self, look: Look, state: Any) -> Decision:
        same = look.candidates == look.tokens
        bound = jnp.where(same, look.sure, jnp.minimum(look.sure, 1.0 - look.sure))
        mask = look.written & (bound < self.keep)
        return Decision(self._surest(look, look.sure > self.least), mask, state + mask)
