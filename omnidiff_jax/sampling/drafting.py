"""Steps that are taken ahead on a guess, and stand only where the model confirms them."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from omnidiff_jax.config import Choice
from omnidiff_jax.sampling.cache import Cache
from omnidiff_jax.sampling.ranges import OutOfRange, within
from omnidiff_jax.sampling.rows import LOWEST, Likeliest

MOST_DRAFTS = 64
"""Each is a whole row of the batch."""


@struct.dataclass
class Predictions:
    """What the model says of the scored positions; values elsewhere mean nothing.

    Attributes:
        scored: bool [B, L], positions that were looked at.
        candidates: int32 [B, L].
        confidence: float32 [B, L], in them.
        likely: `Likeliest` [B, L, k], or () where the `Reveal` compares none.
    """

    scored: jax.Array
    candidates: jax.Array
    confidence: jax.Array
    likely: Any = ()


@dataclasses.dataclass(frozen=True)
class Drafting(Choice, key="kind", word="off"):
    """This kind, `off`, takes one step a call.

    Attributes:
        drafts: `verify`: steps that a call takes ahead, at most; a call costs as many more rows.
    """

    kind: ClassVar[str]
    drafts: int = 3

    def __post_init__(self) -> None:
        within(self, "drafts", 1, MOST_DRAFTS, note="drafting.kind = 'off' drafts nothing")

    @property
    def rows(self) -> int:
        """Rows of the batch that an answer takes: where it stands, and its drafts."""
        return 1

    def check(self, cache: Cache) -> None:
        """Raises `OutOfRange` for what this kind makes no sense with."""

    def init(self, generate: jax.Array, mask_id: int, compared: int) -> Any:
        """What `keep` gave, before the first call: a pytree whose shapes and dtypes stay.

        Args:
            generate: bool [B, L], positions the sampler writes.
            mask_id: the mask token.
            compared: `Reveal.compared`.
        """
        return ()

    def keep(self, predictions: Predictions, mask_id: int) -> Any:
        """What the next call drafts from: `Predictions`, or nothing where `rows` is 1."""
        return ()


@dataclasses.dataclass(frozen=True)
class Verify(Drafting, word="verify"):
    """Takes several steps a call and gives the tokens of one step a call: what was drafted is verified (FreeDave).

    A draft of the next state is what its own step would make of the predictions of the last call; drafts follow from
    each other. One call looks at where an answer stands and at its drafts, as rows of one batch. The step from where it
    stands is exact, so that the predictions for a draft hold if the draft is what this step led to, and the next one
    counts too. Wu & Zhang, arXiv 2510.00294; likewise Spiffy, arXiv 2509.18085, with a graph in place of a chain.

    Noise is drawn anew at every step, so that with a temperature few drafts are confirmed.
    """

    @property
    def rows(self) -> int:
        return 1 + self.drafts

    def check(self, cache: Cache) -> None:
        if type(cache) is not Cache:
            raise OutOfRange(
                f"drafting.kind = {self.kind!r} looks at states that may never be, but cache.kind = {cache.kind!r} "
                "keeps what was computed of them; leave one of the two out"
            )

    def init(self, generate: jax.Array, mask_id: int, compared: int) -> Any:
        nothing = jnp.zeros_like(generate)
        nowhere = jnp.zeros(generate.shape, jnp.int32), jnp.zeros(generate.shape, jnp.float32)
        likely = Likeliest.none(generate.shape, compared) if compared else ()
        return self.keep(Predictions(nothing, *nowhere, likely), mask_id)

    def keep(self, predictions: Predictions, mask_id: int) -> Any:
        # A draft reveals nothing where nothing was predicted.
        scored = predictions.scored
        return dataclasses.replace(
            predictions,
            candidates=jnp.where(scored, predictions.candidates, mask_id),
            confidence=jnp.where(scored, predictions.confidence, LOWEST),
        )


def repeated(tree: Any, batch: int, times: int) -> Any:
    """Arrays [B, ...], `times` in a row; under guidance [2B, ...], each half `times` in a row."""
    if times == 1:
        return tree

    def widen(x: jax.Array) -> jax.Array:
        halves, rest = x.shape[0] // batch, x.shape[1:]
        each = x.reshape(halves, 1, batch, *rest)
        return jnp.broadcast_to(each, (halves, times, batch, *rest)).reshape(-1, *rest)

    return jax.tree.map(widen, tree)


def stacked(trees: list[Any]) -> Any:
    """Trees of arrays [B, ...] as one of [len(trees) * B, ...]."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *trees)


def parted(tree: Any, times: int) -> list[Any]:
    """The inverse of `stacked`."""
    if times == 1:
        return [tree]
    return [jax.tree.map(lambda x, i=i: x.reshape(times, -1, *x.shape[1:])[i], tree) for i in range(times)]


def chosen(where: jax.Array, yes: Any, no: Any) -> Any:
    """Of arrays [B, ...], the rows of `yes` where bool [B], else those of `no`."""
    return jax.tree.map(lambda a, b: jnp.where(where.reshape(-1, *[1] * (a.ndim - 1)), a, b), yes, no)
