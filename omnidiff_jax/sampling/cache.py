"""What of a step is kept for the next: the state of the loop besides the canvas."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from omnidiff_jax.config import Choice
from omnidiff_jax.sampling.canvas import Canvas
from omnidiff_jax.sampling.denoiser import Denoiser
from omnidiff_jax.sampling.reveal import Reveal


class Call(NamedTuple):
    """A step, as a cache sees it.

    Attributes:
        number: int32 [], calls of the model so far.
        start, stop: int32 [R], the running block of each row, counted in that row (of an unconditional one, where its
            own answer stands); `stop` is `start` where a row has no step left.
    """

    number: jax.Array
    start: jax.Array
    stop: jax.Array


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is known of a canvas on the host, which the shapes of compiled code may depend on.

    Attributes:
        length: L.
        start: int [R], where answers start.
        asked: int [R], first position that a prediction is asked of; guidance may ask unconditional rows elsewhere.
        reach: int [R], the last one + 1, or the end of the answer if that is later.
        held: int [R], tokens that a row holds; what stands behind them is padding.
        block: positions of the largest block, 0 = no blocks.
    """

    length: int
    start: np.ndarray
    asked: np.ndarray
    reach: np.ndarray
    held: np.ndarray
    block: int


@dataclasses.dataclass(frozen=True)
class Cache(Choice, key="kind", word=""):
    """Keeps what `Denoiser.prepare` made before the first step, and computes every hidden state anew at every step.

    A rule of one's own overrides the methods; its state is a pytree whose shapes and dtypes stay as `init` made them.
    """

    kind: ClassVar[str]

    def check(self, reveal: Reveal) -> None:
        """Raises `OutOfRange` for what this kind makes no sense with."""

    def fitted(self, layout: Layout) -> "Cache":
        """The cache for canvases of one layout, with what of its shapes is static.

        Raises:
            UserError: it cannot serve them.
        """
        return self

    def init(self, denoiser: Denoiser, canvas: Canvas) -> Any:
        """The state before the first step.

        Args:
            denoiser: the model.
            canvas: of R rows, the unconditional ones included.
        """
        return denoiser.prepare(denoiser.params, canvas)

    def hidden(self, denoiser: Denoiser, tokens: jax.Array, state: Any, call: Call) -> tuple[jax.Array, Any]:
        """Hidden states of a step, and the state for the next.

        Args:
            denoiser: the model.
            tokens: int32 [R, L], before this step.
            state: from `init` or the step before.
            call: which step, and which blocks are running.

        Returns:
            [R, L, D]; only the rows that predict a masked position of the running blocks are looked at.
        """
        return denoiser.hidden(denoiser.params, tokens, state), state
