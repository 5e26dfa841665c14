"""Caches that compute some positions of a row and keep the rest for several steps.

All of them are approximate, as in bidirectional attention what is kept depends on what is written meanwhile, except
`prompt` on a model trained with `attention_mask = "prefix"`, whose prompts see only themselves.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from omnidiff_jax.errors import UserError
from omnidiff_jax.sampling.cache import Cache, Call, Layout
from omnidiff_jax.sampling.canvas import Canvas, bucket
from omnidiff_jax.sampling.denoiser import Denoiser
from omnidiff_jax.sampling.ranges import POSITIONS, OutOfRange, within

MULTIPLE = 32
"""Numbers of computed columns are rounded up to it, so that answers of similar length share compiled code."""


class Kept(NamedTuple):
    """State of a cache that keeps.

    Attributes:
        context: from `Denoiser.prepare`.
        layers: what `Denoiser.keep` gave, [N, R, L, ...].
        age: int32 [R], steps since all of a row was computed; -1 = never.
        start: int32 [R], the block that was running at the last step.
        first: int32 [R], first position of each answer.
        stop: int32 [R], end of what predictions are asked for.
    """

    context: Any
    layers: Any
    age: jax.Array
    start: jax.Array
    first: jax.Array
    stop: jax.Array


@dataclasses.dataclass(frozen=True)
class PromptCache(Cache, word="prompt"):
    """The prompt's keys and values serve `refresh` steps; between refreshes only the answer is computed.

    Exact, with `refresh` = 0, for a model whose `attention_mask` is "prefix" (arXiv 2505.22618, 2506.06295).

    Attributes:
        refresh: every so many steps all is computed; 1 = always, 0 = at the first step only.
        columns: positions that are computed of each row, the one before its answer included; 0 = what the longest
            answer of a canvas needs, rounded up.
    """

    refresh: int = 8
    columns: int = 0

    def __post_init__(self) -> None:
        within(self, "refresh", 0, POSITIONS, note="0 is at the first step only")
        within(self, "columns", 0, POSITIONS, note="0 follows the canvas")

    def fitted(self, layout: Layout) -> Cache:
        if (layout.asked < layout.start).any():
            raise UserError(
                f"cache.kind = {self.kind!r} computes answers, but guidance asks what stands before them, as "
                "unconditional prompts are longer; set guidance.form = 'aligned', or leave the kind out"
            )
        if (layout.reach > layout.held).any():
            raise UserError(
                f"cache.kind = {self.kind!r} computes answers, but guidance asks what stands behind them, as "
                "unconditional prompts are shorter; set guidance.form = 'aligned', or pad them with zero vectors"
            )
        needed = self._needed(layout)
        if self.columns and self.columns < needed:
            raise UserError(f"cache.columns = {self.columns} is less than the {needed} that these answers need; set 0")
        return dataclasses.replace(self, columns=min(self.columns or self._rounded(needed), layout.length))

    def _needed(self, layout: Layout) -> int:
        """Columns of the row that needs the most; under `shifted` alignment the first is predicted one before."""
        return int((layout.reach - layout.start).max(initial=0)) + 1

    def _rounded(self, needed: int) -> int:
        return bucket(needed, MULTIPLE)

    def init(self, denoiser: Denoiser, canvas: Canvas) -> Any:
        if denoiser.keep is None or denoiser.renew is None:
            raise UserError(f"cache.kind = {self.kind!r} needs a denoiser with `keep` and `renew`; leave the kind out")
        context = super().init(denoiser, canvas)
        _, shapes = jax.eval_shape(lambda: self._whole(denoiser, canvas.inputs.tokens, context))
        layers = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        first, length = canvas.answer_start, canvas.inputs.tokens.shape[1]
        none = jnp.full(first.shape, -1, jnp.int32)
        real = (canvas.inputs.segment_ids > 0).sum(axis=1, dtype=jnp.int32)
        return Kept(context, layers, none, none, first, jnp.minimum(real, length))

    def hidden(self, denoiser: Denoiser, tokens: jax.Array, state: Any, call: Call) -> tuple[jax.Array, Any]:
        due, idle = self._due(state, call), call.stop <= call.start

        def whole() -> tuple[jax.Array, Any]:
            return self._whole(denoiser, tokens, state.context)

        shape, _ = jax.eval_shape(whole)
        # Row by row: what a row keeps may not depend on when the rows beside it are due.
        hidden, layers = jax.lax.cond(
            (due & ~idle).any(),
            lambda: _chosen(due, whole(), (jnp.zeros(shape.shape, shape.dtype), state.layers)),
            lambda: (jnp.zeros(shape.shape, shape.dtype), state.layers),
        )

        def some() -> tuple[jax.Array, Any]:
            places = self._places(state, call, tokens.shape[1])
            places = jnp.where(due[:, None], tokens.shape[1], places)
            return self._some(denoiser, tokens, state._replace(layers=layers), hidden, places)

        hidden, layers = jax.lax.cond((due | idle).all(), lambda: (hidden, layers), some)
        age = jnp.where(due, 0, state.age) + 1
        return hidden, state._replace(layers=layers, age=age, start=call.start)

    def _due(self, state: Kept, call: Call) -> jax.Array:
        """bool [R]: rows of which everything is to be computed."""
        never = state.age < 0
        return never | (state.age >= self.refresh) if self.refresh else never

    def _places(self, state: Kept, call: Call, length: int) -> jax.Array:
        """int32 [R, C]: what is computed of each row, L where it is nothing."""
        return places_between(state.first - 1, state.stop, self.columns, length)

    def _whole(self, denoiser: Denoiser, tokens: jax.Array, context: Any) -> tuple[jax.Array, Any]:
        """Everything, and what is kept of it."""
        assert denoiser.keep is not None
        return denoiser.keep(denoiser.params, tokens, context, self._share)

    def _some(
        self, denoiser: Denoiser, tokens: jax.Array, state: Kept, hidden: jax.Array, places: jax.Array
    ) -> tuple[jax.Array, Any]:
        """`hidden` with that of `places` anew, and the layers that are kept."""
        return _renewed(denoiser, tokens, state, hidden, places, self._share)

    @property
    def _share(self) -> float | None:
        """For `Denoiser.keep`."""
        return None


@dataclasses.dataclass(frozen=True)
class DualCache(PromptCache, word="dual"):
    """Keys and values before and behind the running block serve until it changes; only the block is computed.

    Fast-dLLM's dual cache (arXiv 2505.22618).

    Attributes:
        refresh: every so many steps of a block all is computed; 1 = always, 0 = when the block changes only.
        columns: of the largest block, the one before it included.
    """

    refresh: int = 0

    def fitted(self, layout: Layout) -> Cache:
        if not layout.block:
            raise UserError("cache.kind = 'dual' needs blocks; set blocks.size, or cache.kind = 'prompt'")
        if (layout.asked != layout.start).any():
            raise UserError(
                "cache.kind = 'dual' computes a block, but guidance asks unconditional rows for other positions; "
                "set guidance.form = 'aligned', or cache.kind = 'prompt'"
            )
        return super().fitted(layout)

    def _needed(self, layout: Layout) -> int:
        return min(super()._needed(layout), layout.block + 1)

    def _rounded(self, needed: int) -> int:
        return needed  # as settings say, not as answers come

    def _due(self, state: Kept, call: Call) -> jax.Array:
        return super()._due(state, call) | (state.start != call.start)

    def _places(self, state: Kept, call: Call, length: int) -> jax.Array:
        return places_between(call.start - 1, call.stop, self.columns, length)


@dataclasses.dataclass(frozen=True)
class FeatureCache(PromptCache, word="features"):
    """Of the answer each layer computes the share whose values turned most; what it added elsewhere is added again.

    dLLM-Cache (arXiv 2506.06295); a position is compared with what it was when it was last computed. Where two have
    turned alike to the last digits, rounding chooses: a row answered alone, whose products round otherwise than a
    batch's, may then get another answer than beside others.

    Attributes:
        refresh: every so many steps all is computed, the prompt too; 1 = always, 0 = at the first step only.
        answer_refresh: every so many steps since then all of the answer is computed; 1 = always, 0 = never.
        share: of the answer's positions that a layer computes at the other steps.
    """

    refresh: int = 16
    answer_refresh: int = 4
    share: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "answer_refresh", 0, POSITIONS, note="0 is never")
        if not 0 < self.share <= 1:
            raise OutOfRange(f"share = {self.share!r} must be a number above 0 and up to 1")

    def _some(
        self, denoiser: Denoiser, tokens: jax.Array, state: Kept, hidden: jax.Array, places: jax.Array
    ) -> tuple[jax.Array, Any]:
        length = tokens.shape[1]
        every = (state.age % self.answer_refresh == 0) if self.answer_refresh else jnp.zeros(state.age.shape, bool)
        hidden, layers = jax.lax.cond(
            every.any(),
            lambda: _renewed(denoiser, tokens, state, hidden, jnp.where(every[:, None], places, length), 1.0),
            lambda: (hidden, state.layers),
        )
        rest = state._replace(layers=layers)
        return jax.lax.cond(
            every.all(),
            lambda: (hidden, layers),
            lambda: _renewed(denoiser, tokens, rest, hidden, jnp.where(every[:, None], length, places), self.share),
        )

    @property
    def _share(self) -> float | None:
        return self.share


def _renewed(
    denoiser: Denoiser, tokens: jax.Array, state: Kept, hidden: jax.Array, places: jax.Array, share: float | None
) -> tuple[jax.Array, Any]:
    """`hidden` [R, L, D] with that of `places` int32 [R, C] anew, and the layers that are kept."""
    assert denoiser.renew is not None
    fresh, layers = denoiser.renew(denoiser.params, tokens, state.context, state.layers, places, share)
    return jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))(hidden, places, fresh), layers


def places_between(first: jax.Array, stop: jax.Array, columns: int, length: int) -> jax.Array:
    """int32 [R, `columns`]: positions from `first` [R] up to `stop` [R], `length` for what lies outside."""
    places = first[:, None] + jnp.arange(columns, dtype=jnp.int32)[None, :]
    return jnp.where((places >= 0) & (places < stop[:, None]), places, length)


def _chosen(due: jax.Array, fresh: tuple[jax.Array, Any], old: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
    """Hidden states [R, L, D] and layers [N, R, ...]: `fresh` in the rows that are due, `old` in all others."""

    def rows(new: jax.Array, kept: jax.Array, axis: int) -> jax.Array:
        shape = [1] * new.ndim
        shape[axis] = len(due)
        return jnp.where(due.reshape(shape), new, kept)

    return rows(fresh[0], old[0], 0), jax.tree.map(lambda new, kept: rows(new, kept, 1), fresh[1], old[1])
