"""Heard speech before the encoder: how wide a frame is, what opens an utterance, how utterances stand in buffers."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from omnidiff_jax.batch import SpeechFrames
from omnidiff_jax.config import Count, Natural
from omnidiff_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SpeechLayout:
    """What everybody who lays heard speech out must know of the encoder; the defaults are the released one's.

    Attributes:
        queries: rows of the encoder's query table that open every utterance, Q of them: language, event, emotion,
            text normalisation. (0, 1, 2, 15) = automatic language, without inverse text normalisation.
        width: of a frame (7 stacked frames of 80 mel bins).
    """

    queries: tuple[Natural, ...] = (0, 1, 2, 15)
    width: Count = 560

    def slots(self, frames: int) -> int:
        """Vectors that an utterance of `frames` frames becomes, which is the context tokens it takes: n + Q."""
        return frames + len(self.queries)

    def sizes(self, counts: Sequence[int] | np.ndarray) -> np.ndarray:
        """int64 [U]: `slots` of utterances of `counts` int [U] frames."""
        return np.asarray(counts, np.int64) + len(self.queries)


RELEASED_SPEECH = SpeechLayout()
# Six windows, 10 ms apart, to a frame.
FRAME_SECONDS = 0.06


def seconds_of(counts: Sequence[int] | np.ndarray, over: int) -> str:
    """What a message adds to a count of tokens that is too high: " (30.0 s of speech, 4.2 s too long)".

    Args:
        counts: frames of the utterances; none gives "".
        over: tokens, which are frames where there is speech, above the limit.
    """
    heard = float(np.sum(counts)) * FRAME_SECONDS
    return f" ({heard:.1f} s of speech, {min(over * FRAME_SECONDS, heard):.1f} s too long)" if heard else ""


def packed_frames(
    rows: Sequence[Sequence[tuple[np.ndarray, int]]], capacity: int, layout: SpeechLayout
) -> SpeechFrames:
    """Packs utterances one after another into fixed buffers (numpy).

    Args:
        rows: for each row of the batch its utterances, each (features [n, W], first token slot); the utterance fills
            the n + Q token positions from that slot on.
        capacity: T, frames a row holds, queries included.
        layout: Q and W.

    Raises:
        UserError: a row's utterances do not fit, or are of another width.
    """
    shape, opening = (len(rows), capacity), np.array(layout.queries, np.int32)
    features = np.zeros((*shape, layout.width), np.float32)
    segment_ids, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    queries, slots = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
    for b, utterances in enumerate(rows):
        if not utterances:
            continue
        sizes = layout.sizes([len(frames) for frames, _ in utterances])
        starts = np.cumsum(sizes) - sizes
        used = int(sizes.sum())
        if used > capacity:
            raise UserError(f"the speech of row {b} needs {used} frames, its buffer holds {capacity}")
        within = np.arange(used) - np.repeat(starts, sizes)
        segment_ids[b, :used] = np.repeat(np.arange(1, len(sizes) + 1), sizes)
        positions[b, :used] = within + 1
        queries[b, starts[:, None] + np.arange(len(opening))] = opening
        slots[b, :used] = np.repeat([first for _, first in utterances], sizes) + within
        for (frames, _), start in zip(utterances, (starts + len(opening)).tolist(), strict=True):
            if frames.shape[1] != layout.width:
                raise UserError(f"speech frames are {frames.shape[1]} wide, the speech encoder takes {layout.width}")
            features[b, start : start + len(frames)] = frames
    arrays = (features, segment_ids, positions, queries, slots)
    return SpeechFrames(*arrays)  # type: ignore[arg-type]  # numpy on purpose: the loader ships it


def padded_frames(
    features: jax.Array | np.ndarray, lengths: jax.Array | np.ndarray, queries: Sequence[int]
) -> SpeechFrames:
    """One utterance a row, each after its queries.

    Args:
        features: [B, T, W], padded on the right.
        lengths: int [B], frames of each utterance.
        queries: rows of the query table that come first, Q of them.

    Returns:
        Buffers of Q + T frames; `slots` are -1.
    """
    batch, frames = features.shape[:2]
    count = len(queries)
    index = jnp.broadcast_to(jnp.arange(count + frames, dtype=jnp.int32)[None], (batch, count + frames))
    present = index < jnp.asarray(lengths, jnp.int32)[:, None] + count
    rows = jnp.pad(jnp.asarray(queries, jnp.int32), (0, frames), constant_values=-1)
    return SpeechFrames(
        features=jnp.pad(features, ((0, 0), (count, 0), (0, 0))),
        segment_ids=present.astype(jnp.int32),
        positions=jnp.where(present, index + 1, 0),
        queries=jnp.broadcast_to(rows[None], index.shape),
        slots=jnp.full_like(index, -1),
    )
