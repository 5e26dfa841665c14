"""What the model eats. Shape letters used everywhere:

B batch rows · L sequence positions · D width · H heads · K key/value heads · F hidden width of a feed-forward ·
V vocabulary · N layers · T speech frames of a row's buffer · S samples in a packed row.
"""

import jax
from flax import struct


@struct.dataclass
class SpeechFrames:
    """Fixed-size buffer of the speech heard in each row; utterances stand one after another.

    An utterance occupies its query slots first (`queries` >= 0), then its frames; the encoder returns one vector
    for each, and `slots` says which token position it fills.

    Attributes:
        features: float32 [B, T, W = `SpeechLayout.width`], LFR features after CMVN; anything in query slots, padding.
        segment_ids: int32 [B, T], utterance number 1.. within the row, 0 = padding.
        positions: int32 [B, T], 1-based within the utterance, query slots included; 0 = padding.
        queries: int32 [B, T], row of the encoder's query table, -1 for an ordinary frame or padding.
        slots: int32 [B, T], token position in the row that the vector replaces, -1 = none.
    """

    features: jax.Array
    segment_ids: jax.Array
    positions: jax.Array
    queries: jax.Array
    slots: jax.Array


@struct.dataclass
class ModelInputs:
    """Packed tokens and the speech beside them.

    Attributes:
        tokens: int32 [B, L].
        segment_ids: int32 [B, L], sample number 1.. within the row, 0 = padding. Attention stays within a segment.
        positions: int32 [B, L], RoPE position, restarting at 0 in every sample.
        speech: frames of user audio, or None where the model hears nothing.
        given: bool [B, L], the condition, which sees only itself where the model's attention mask is "prefix"; None
            where nobody asks.
    """

    tokens: jax.Array
    segment_ids: jax.Array
    positions: jax.Array
    speech: SpeechFrames | None = None
    given: jax.Array | None = None


@struct.dataclass
class Batch:
    """A packed batch of clean ids with what corruption and loss accounting need.

    Attributes:
        inputs: clean tokens.
        targets: bool [B, L], positions that may be masked and are scored (tail pads included).
        tail_pads: bool [B, L], the targets that are tail padding (mask probability gamma * t).
        sample_ids: uint32 [B, S]; the sample with segment id s of a row is column s - 1.
        epochs: int32 [B, S], how often the sample had been seen before.
        group_ids: int32 [B, S], number of the sample's (source, task) pair among the run's groups, -1 = no sample.
    """

    inputs: ModelInputs
    targets: jax.Array
    tail_pads: jax.Array
    sample_ids: jax.Array
    epochs: jax.Array
    group_ids: jax.Array
