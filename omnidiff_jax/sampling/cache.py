"""What of a step is kept for the next: the state of the loop besides the canvas."""

import dataclasses
from typing import Any, ClassVar

import jax

from omnidiff_jax.config import Choice
from omnidiff_jax.sampling.canvas import Canvas
from omnidiff_jax.sampling.denoiser import Denoiser


@dataclasses.dataclass(frozen=True)
class Cache(Choice, key="kind", word=""):
    """Keeps what `Denoiser.prepare` made before the first step, and computes every hidden state anew at every step.

    A rule of one's own overrides both methods; its state is a pytree whose shapes and dtypes stay as `init` made them.
    """

    kind: ClassVar[str]

    def init(self, denoiser: Denoiser, canvas: Canvas) -> Any:
        """The state before the first step.

        Args:
            denoiser: the model.
            canvas: of R rows, the unconditional ones included.
        """
        return denoiser.prepare(denoiser.params, canvas)

    def hidden(self, denoiser: Denoiser, tokens: jax.Array, state: Any, step: jax.Array) -> tuple[jax.Array, Any]:
        """Hidden states of a step, and the state for the next.

        Args:
            denoiser: the model.
            tokens: int32 [R, L], before this step.
            state: from `init` or the step before.
            step: int32 [], number of the step.

        Returns:
            [R, L, D]; only the rows that predict a masked position of the running blocks are looked at.
        """
        return denoiser.hidden(denoiser.params, tokens, state), state
