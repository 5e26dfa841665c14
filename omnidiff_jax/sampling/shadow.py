"""Tokens judged by what the model says without seeing them: the shadow block of WINO (arXiv 2507.18578).

All of a row is computed at every step, and beside it the running block once more as masks. Each of these stands at a
position of the block, sees the row but for the token that it predicts, and all the masks; the row does not see them.
What they predict takes the place of what the row predicts wherever a token is written already, which is where
`reveal.kind = "revise"` looks for doubts. The judged token is not hidden altogether: the rest of the row has seen it.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from omnidiff_jax.config import choose
from omnidiff_jax.diffusion.alignment import ALIGNMENTS
from omnidiff_jax.errors import UserError
from omnidiff_jax.sampling.cache import Cache, Call, Layout
from omnidiff_jax.sampling.canvas import Canvas, bucket
from omnidiff_jax.sampling.denoiser import Denoiser
from omnidiff_jax.sampling.keeping import MULTIPLE, places_between
from omnidiff_jax.sampling.ranges import POSITIONS, OutOfRange, within
from omnidiff_jax.sampling.reveal import Reveal


class Shadowed(NamedTuple):
    """What does not change from step to step.

    Attributes:
        context: from `Denoiser.prepare`.
        mask: int32 [R], the mask token.
        generate: bool [R, L], positions that the sampler writes.
    """

    context: Any
    mask: jax.Array
    generate: jax.Array


@dataclasses.dataclass(frozen=True)
class ShadowBlock(Cache, word="shadow"):
    """Keeps nothing, and hides every written token of the running block from what judges it.

    Costs the block and the position before it once more, at steps that find a token written in a block with masks left.
    Where prompts see only themselves the shadow sees everything nonetheless.

    Attributes:
        columns: of the largest block, the one before it included; 0 = what the longest answer of a canvas needs.
    """

    columns: int = 0

    def __post_init__(self) -> None:
        within(self, "columns", 0, POSITIONS, note="0 follows the canvas")

    def check(self, reveal: Reveal) -> None:
        if type(reveal).revisits is Reveal.revisits:
            raise OutOfRange(
                f"cache.kind = {self.kind!r} judges tokens that reveal.kind = {reveal.kind!r} does not look at again; "
                "set reveal.kind = 'revise', or leave the cache out"
            )

    def fitted(self, layout: Layout) -> Cache:
        if (layout.asked != layout.start).any():
            raise UserError(
                f"cache.kind = {self.kind!r} shadows a block, but guidance asks unconditional rows for other places; "
                "set guidance.form = 'aligned', or leave the kind out"
            )
        longest = int((layout.reach - layout.start).max(initial=0)) + 1
        needed = min(layout.block + 1, longest) if layout.block else bucket(longest, MULTIPLE)
        if self.columns and self.columns < min(needed, longest):
            raise UserError(
                f"cache.columns = {self.columns} is less than the {min(needed, longest)} that blocks need; set 0"
            )
        return dataclasses.replace(self, columns=min(self.columns or needed, layout.length))

    def init(self, denoiser: Denoiser, canvas: Canvas) -> Any:
        if denoiser.keep is None or denoiser.shadow is None:
            raise UserError(f"cache.kind = {self.kind!r} needs a denoiser with `keep` and `shadow`; leave the kind out")
        mask = jnp.full(canvas.answer_start.shape, canvas.mask_id, jnp.int32)
        return Shadowed(super().init(denoiser, canvas), mask, jnp.asarray(canvas.generate))

    def hidden(self, denoiser: Denoiser, tokens: jax.Array, state: Any, call: Call) -> tuple[jax.Array, Any]:
        assert denoiser.keep is not None and denoiser.shadow is not None
        shadow, length = denoiser.shadow, tokens.shape[1]
        hidden, kept = denoiser.keep(denoiser.params, tokens, state.context)
        offset = choose(ALIGNMENTS, denoiser.alignment, "logit alignment").offset
        places = places_between(call.start - 1, call.stop, self.columns, length)
        predicted = places + offset
        written = state.generate & (tokens != state.mask[:, None])
        judged = (predicted >= call.start[:, None]) & (predicted < call.stop[:, None])
        judged &= jnp.take_along_axis(written, jnp.minimum(predicted, length - 1), axis=1)

        def of_masks() -> jax.Array:
            found = shadow(denoiser.params, state.mask[:, None], state.context, kept, places, predicted)
            at = jnp.where(judged, places, length)
            return jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))(hidden, at, found)

        return jax.lax.cond(judged.any(), of_masks, lambda: hidden), state
