"""Which tokens can be predicted at all, and of which logits are computed."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from omnidiff_jax.config import Choice
from omnidiff_jax.sampling.rows import LOWEST


class Span(NamedTuple):
    """The ids start .. stop - 1, whose logits are computed; `all_allowed`: each of them may stand at every position."""

    start: int
    stop: int
    all_allowed: bool


@dataclasses.dataclass(frozen=True)
class Candidates(Choice, key="", word="real"):
    """Every token but the mask."""

    def span(self, allowed: np.ndarray | None, groups: np.ndarray) -> Span | None:
        """The ids whose logits are computed; None = of the whole vocabulary. Decided on the host, before the loop.

        Args:
            allowed: bool [G, V], the sets of ids that positions may take, or None: any anywhere.
            groups: int [m], the set of each position to generate.
        """
        return None

    def allow(self, logits: jax.Array, mask_id: int) -> jax.Array:
        """Logits [n, W], `LOWEST` where a token is never predicted.

        Args:
            logits: of the computed ids.
            mask_id: column of the mask, which may lie outside.
        """
        return logits.at[:, mask_id].set(LOWEST) if 0 <= mask_id < logits.shape[-1] else logits


@dataclasses.dataclass(frozen=True)
class RestrictedCandidates(Candidates, word="restricted"):
    """The same tokens; logits of ids that no position of the batch may take are not computed either.

    Where a picture is drawn these are 8,192 of Omni-Diffusion's 176,264. The answers are those of `real`, up to the
    rounding of sums over fewer terms; with a temperature and no top-k they are drawn from the same distribution, but
    with noise for these ids alone, so that other tokens come out.
    """

    def span(self, allowed: np.ndarray | None, groups: np.ndarray) -> Span | None:
        if allowed is None or not len(groups):
            return None
        sets = allowed[np.unique(groups)]
        possible = np.flatnonzero(sets.any(axis=0))
        start, stop = int(possible[0]), int(possible[-1]) + 1
        return Span(start, stop, bool(sets[:, start:stop].all()))


@dataclasses.dataclass(frozen=True)
class ReleasedCandidates(Candidates, word="released"):
    """The mask too, as in the released code: a position whose candidate it is stays masked."""

    def allow(self, logits: jax.Array, mask_id: int) -> jax.Array:
        return logits
