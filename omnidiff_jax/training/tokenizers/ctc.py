"""Pre-training of the speech encoder with CTC (Graves et al. 2006) on transcribed speech, as SenseVoice was.

Filter banks are computed once per utterance and kept; augmentation works on them inside the jitted step, so that it
costs next to nothing. Utterances are packed as they are when the encoder serves the backbone.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omnidiff_jax import rng
from omnidiff_jax.batch import SpeechFrames
from omnidiff_jax.config import Count, DecayRate, Natural, NonNegative
from omnidiff_jax.errors import UserError
from omnidiff_jax.media import features
from omnidiff_jax.media.features import FbankConfig
from omnidiff_jax.models.sanm import SpeechEncoder, SpeechEncoderConfig
from omnidiff_jax.speech_frames import packed_frames
from omnidiff_jax.tokenizers.frontend import FrontendConfig
from omnidiff_jax.tokenizers.speech_encoder import HearingConfig, save_speech_encoder
from omnidiff_jax.tokenizers.text import TextTokenizer
from omnidiff_jax.training.program import BatchStream, TrainProgram
from omnidiff_jax.training.tokenizers.spoken import Utterances

BLANK = 0
_NEPERS = math.log(10.0) / 10.0  # natural logarithm of a power ratio of 1 dB

ErrorRate = Callable[[Sequence[str], Sequence[str]], float]
"""(references, hypotheses) -> word error rate."""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What each utterance suffers in training, drawn anew every time.

    Attributes:
        tempo: largest relative change of speed (frames are dropped or repeated).
        gain_db: largest change of level.
        tilt_db: largest change of level at either end of the spectrum.
        babble_db: lowest and highest level of another utterance that is mixed in, relative to that one's own.
        floor_db: lowest and highest level of steady noise, relative to the loudest band of a frame of average speech.
        mel_masks, mel_width: number of bands that are hidden, and their largest width in mel bins.
        time_masks, time_width: number of stretches that are hidden, and their largest length in 10 ms frames.
    """

    tempo: DecayRate = 0.1
    gain_db: NonNegative = 8.0
    tilt_db: NonNegative = 6.0
    babble_db: tuple[float, float] = (-60.0, -15.0)
    floor_db: tuple[float, float] = (-70.0, -30.0)
    mel_masks: Natural = 2
    mel_width: Natural = 10
    time_masks: Natural = 2
    time_width: Natural = 12


@dataclasses.dataclass(frozen=True)
class CtcTraining:
    """What the speech encoder is trained on, and how.

    Attributes:
        encoder: its sizes; `vocab_size` must be the blank and the text tokenizer's pieces.
        fbank: the front-end; its normalisation is estimated.
        augmentation: see `Augmentation`.
        batch_size: packed rows a step.
        row_frames: encoder frames of a row, queries included; no utterance may be longer.
        utterances: distinct training utterances, kept as filter banks (about 40 kB each).
        cmvn_utterances: of them, those the normalisation is estimated from.
        validation_size: held-out utterances.
    """

    encoder: SpeechEncoderConfig
    fbank: FbankConfig = FbankConfig()
    augmentation: Augmentation = Augmentation()
    batch_size: Count = 24
    row_frames: Count = 128
    utterances: Count = 8000
    cmvn_utterances: Count = 256
    validation_size: Count = 300


@dataclasses.dataclass(frozen=True)
class Heard:
    """An utterance as it is kept: filter banks float16 [frames, num_mels], and its labels (pieces + 1)."""

    frames: np.ndarray
    labels: np.ndarray


class CtcProgram(TrainProgram):
    """Parameters are those of `SpeechEncoder`.

    Args:
        config: what is trained.
        training, held_out: utterances 0 .. of either split.
        text: turns words into the pieces that CTC predicts, and back.
        error_rate: scores `validate`.

    Raises:
        UserError: `encoder.vocab_size` does not fit `text`, or `encoder.features` the front-end.
    """

    def __init__(
        self,
        config: CtcTraining,
        training: Utterances,
        held_out: Utterances,
        text: TextTokenizer,
        error_rate: ErrorRate,
    ):
        if config.encoder.vocab_size != text.size + 1:
            raise UserError(
                f"encoder.vocab_size = {config.encoder.vocab_size} must be {text.size + 1}: the blank and "
                f"{text.size} pieces of the text tokenizer"
            )
        self.config = config
        self._model = SpeechEncoder(config.encoder)
        self._training, self._held_out, self._text, self._error_rate = training, held_out, text, error_rate
        self._kept: dict[int, Heard] = {}
        sample = (self.heard(i).frames for i in range(min(config.cmvn_utterances, config.utterances)))
        shift, scale = features.estimate_cmvn(sample)
        frontend = FrontendConfig(config.fbank, tuple(map(float, shift)), tuple(map(float, scale)))
        self.hearing = HearingConfig(frontend, config.encoder, tuple(text.decode([i]) for i in range(text.size)))
        self._packer = Packer(config)

    def heard(self, index: int) -> Heard:
        """Training utterance number `index`, from memory after the first time."""
        if index not in self._kept:
            self._kept[index] = self._listen(self._training, index)
        return self._kept[index]

    def _listen(self, utterances: Utterances, index: int) -> Heard:
        waveform, words = utterances(index)
        samples = features.resample(waveform.samples, waveform.rate, self.config.fbank.rate)
        frames = features.fbank(samples, self.config.fbank).astype(np.float16)
        return Heard(frames, np.asarray(self._text.encode(words), np.int32) + 1)

    def init(self, key: jax.Array) -> Any:
        frames = packed_frames([[]], 1, self.config.encoder.layout)
        return meta.unbox(self._model.init(key, frames)["params"])

    def loss(self, params: Any, batch: Any, key: jax.Array, step: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """CTC loss of a `Packer` batch, in nats for each label."""
        fbank = augment(batch, self._mean(), self.config.augmentation, key)
        logits, valid = self._logits(params, batch, fbank)
        labels = batch["labels"]
        present = labels != BLANK
        losses = optax.ctc_loss(
            logits, 1.0 - valid.astype(jnp.float32), labels, 1.0 - present.astype(jnp.float32), blank_id=BLANK
        )
        count = present.sum()
        return jnp.where(present[:, 0], losses, 0.0).sum() / jnp.maximum(count, 1), {
            "weight": count.astype(jnp.float32),
            "sum/tokens": (batch["gather"][..., 0] >= 0).sum(),
        }

    def _mean(self) -> jax.Array:
        return -jnp.asarray(self.hearing.frontend.cmvn_shift, jnp.float32)

    def _logits(self, params: Any, batch: Any, fbank: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Class logits [U, N, vocab] of each utterance's frames, and which of them exist, bool [U, N]."""
        encoder = self.config.encoder
        shift, scale = (jnp.asarray(v) for v in self.hearing.frontend.normaliser)
        stacked = jnp.take(fbank, jnp.maximum(batch["gather"], 0), axis=0)
        stacked = (stacked.reshape(*stacked.shape[:2], -1) + shift[None, None]) * scale[None, None]
        positions = batch["positions"]
        queries = jnp.asarray(encoder.queries, jnp.int32)
        is_query = (positions > 0) & (positions <= len(encoder.queries))
        frames = SpeechFrames(
            features=stacked,
            segment_ids=batch["segment_ids"],
            positions=positions,
            queries=jnp.where(is_query, jnp.take(queries, positions - 1, mode="clip"), -1),
            slots=jnp.full_like(positions, -1),
        )
        variables = {"params": params}
        hidden = self._model.apply(variables, frames)
        logits = jnp.asarray(self._model.apply(variables, hidden, method=self._model.ctc_logits))
        flat = logits.reshape(-1, logits.shape[-1])
        return jnp.take(flat, jnp.maximum(batch["unpack"], 0), axis=0), batch["unpack"] >= 0

    def batches(self, seed: int) -> Iterator[Any]:
        return CtcStream(self, self._packer, seed)

    def place(self, batch: Any, mesh: Mesh) -> Any:
        """Replicated: the leaves of a packed batch do not share a leading axis."""
        return jax.device_put(batch, NamedSharding(mesh, PartitionSpec()))

    def validate(self, params: Any) -> dict[str, float]:
        """`wer`: word error rate of greedy decoding on held-out utterances."""
        references, hypotheses = [], []

        @jax.jit
        def best(batch: Any) -> tuple[jax.Array, jax.Array]:
            logits, valid = self._logits(params, batch, batch["fbank"].astype(jnp.float32))
            return jnp.argmax(logits, axis=-1), valid

        waiting = [self._listen(self._held_out, i) for i in range(self.config.validation_size)]
        while waiting:
            batch, taken = self._packer(waiting)
            classes, valid = jax.device_get(best(batch))
            for slot, place in enumerate(taken):
                references.append(self._text.decode(list(waiting[place].labels - 1)))
                hypotheses.append(self._text.decode(greedy(classes[slot][valid[slot]])))
            gone = set(taken)
            waiting = [heard for place, heard in enumerate(waiting) if place not in gone]
        return {"wer": self._error_rate(references, hypotheses)}

    def export(self, params: Any, directory: str | os.PathLike[str]) -> None:
        """Writes what `load_speech_encoder` reads."""
        save_speech_encoder(directory, self.hearing, params)


def greedy(classes: np.ndarray) -> list[int]:
    """The best class of each frame [T] -> pieces: repeats merged, blanks dropped."""
    starts = np.flatnonzero(np.diff(classes, prepend=BLANK))
    return [int(c) - 1 for c in classes[starts] if c != BLANK]


class Packer:
    """Packs utterances into rows of the encoder's buffer, first fit; every batch has the same shapes.

    A batch is a dict:
        fbank: float16 [F, num_mels], the filter banks of all utterances, one after another.
        owner, time: int32 [F], utterance of each frame (-1 behind the last one), and its place in it.
        lengths: int32 [U], frames of each utterance, 0 = none.
        gather: int32 [B, T, stack], rows of `fbank` that make up an encoder frame, -1 = a query or padding.
        segment_ids, positions: int32 [B, T], as in `SpeechFrames`.
        unpack: int32 [U, T], places of an utterance's frames in the flattened rows, -1 behind its end.
        labels: int32 [U, labels], 0 behind the end.
    """

    def __init__(self, config: CtcTraining):
        self._config, self._fbank = config, config.fbank
        self._queries = len(config.encoder.queries)
        frames = config.batch_size * config.row_frames
        self.slots = max(config.batch_size, frames // 32)
        self._frames = frames * config.fbank.hop
        # A label needs a frame of its own.
        self._labels = config.row_frames // 2

    def __call__(self, heard: Sequence[Heard]) -> tuple[dict[str, np.ndarray], list[int]]:
        """Packs as many of `heard` as fit, earlier ones first.

        Returns:
            The batch, and the places in `heard` of its utterances, in the order of their slots.

        Raises:
            UserError: an utterance is longer than a row, or has no labels, or more than frames.
        """
        c, stack = self._config, self._fbank.stack
        shape = (c.batch_size, c.row_frames)
        batch: dict[str, np.ndarray] = {
            "fbank": np.zeros((self._frames, self._fbank.num_mels), np.float16),
            "owner": np.full(self._frames, -1, np.int32),
            "time": np.zeros(self._frames, np.int32),
            "lengths": np.zeros(self.slots, np.int32),
            "gather": np.full((*shape, stack), -1, np.int32),
            "segment_ids": np.zeros(shape, np.int32),
            "positions": np.zeros(shape, np.int32),
            "unpack": np.full((self.slots, c.row_frames), -1, np.int32),
            "labels": np.zeros((self.slots, self._labels), np.int32),
        }
        room = np.full(c.batch_size, c.row_frames)
        used = 0
        taken: list[int] = []
        for place, utterance in enumerate(heard):
            count = features.num_stacked(len(utterance.frames), self._fbank)
            need = count + self._queries
            if need > c.row_frames:
                raise UserError(f"an utterance needs {need} encoder frames, but row_frames = {c.row_frames}")
            fits = np.flatnonzero(room >= need)
            if len(taken) == self.slots or not len(fits) or used + len(utterance.frames) > self._frames:
                continue
            row = int(fits[0])
            self._place(batch, len(taken), utterance, row, c.row_frames - int(room[row]), count, used)
            taken.append(place)
            room[row] -= need
            used += len(utterance.frames)
        return batch, taken

    def _place(
        self, batch: dict[str, np.ndarray], slot: int, heard: Heard, row: int, start: int, count: int, used: int
    ) -> None:
        frames = len(heard.frames)
        span = slice(used, used + frames)
        batch["fbank"][span], batch["owner"][span], batch["time"][span] = heard.frames, slot, np.arange(frames)
        batch["lengths"][slot] = frames
        first, end = start + self._queries, start + self._queries + count
        batch["segment_ids"][row, start:end] = slot + 1
        batch["positions"][row, start:end] = np.arange(1, end - start + 1)
        batch["gather"][row, first:end] = used + features.stacked_rows(frames, self._fbank)
        batch["unpack"][slot, :count] = row * self._config.row_frames + np.arange(first, end)
        if not 0 < len(heard.labels) <= min(count, self._labels):
            raise UserError(
                f"an utterance of {count} frames has {len(heard.labels)} pieces of text; at least one and at most one "
                "for each frame are needed"
            )
        batch["labels"][slot, : len(heard.labels)] = heard.labels


class CtcStream(BatchStream):
    """Shuffled epochs over the training utterances, each at a tempo of its own; a function of the seed."""

    def __init__(self, program: CtcProgram, packer: Packer, seed: int):
        self._program, self._packer = program, packer
        self._random = np.random.default_rng((seed, 1))
        self._waiting: list[Heard] = []
        self._order: list[int] = []
        self._taken = 0

    def __next__(self) -> Any:
        config = self._program.config
        # A few more than fit, to choose from: what does not fit into this batch comes first in the next.
        while len(self._waiting) < self._packer.slots:
            if not self._order:
                self._order = list(self._random.permutation(config.utterances))
            self._waiting.append(self._faster(self._program.heard(int(self._order.pop())), config.augmentation.tempo))
        batch, taken = self._packer(self._waiting)
        gone = set(taken)
        self._waiting = [heard for place, heard in enumerate(self._waiting) if place not in gone]
        self._taken += 1
        return batch

    def _faster(self, heard: Heard, tempo: float) -> Heard:
        """Frames dropped or repeated evenly, pitch kept."""
        rate = 1.0 + tempo * self._random.uniform(-1.0, 1.0)
        index = (np.arange(int(len(heard.frames) / rate)) * rate).astype(np.int32)
        return Heard(heard.frames[index], heard.labels)


def augment(batch: Any, mean: jax.Array, config: Augmentation, key: jax.Array) -> jax.Array:
    """Disturbs the filter banks of a `Packer` batch.

    Args:
        batch: see `Packer`.
        mean: float32 [num_mels], the average log energies; stands for what is hidden.
        config: how much.
        key: for all draws.

    Returns:
        float32 [F, num_mels].
    """
    x, owner, time = batch["fbank"].astype(jnp.float32), batch["owner"], batch["time"]
    utterances, mels = len(batch["lengths"]), x.shape[-1]
    speaker = jnp.maximum(owner, 0)

    def draw(name: str, shape: tuple[int, ...], low: float, high: float) -> jax.Array:
        """One draw for each utterance, [U, *shape], spread to its frames."""
        values = jax.random.uniform(rng.named(key, name), (utterances, *shape), minval=low, maxval=high)
        return jnp.take(values, speaker, axis=0)

    level = draw("gain", (1,), -config.gain_db, config.gain_db)
    slope = jnp.linspace(-1.0, 1.0, mels)[None]
    x += _NEPERS * (level + slope * draw("tilt", (1,), -config.tilt_db, config.tilt_db))
    # Powers of independent sounds add up. The other sound is whoever speaks some seconds on in the batch.
    other = jnp.roll(x, len(x) // 3, axis=0) + _NEPERS * draw("babble", (1,), *config.babble_db)
    steady = jnp.max(mean) + _NEPERS * (draw("floor", (1,), *config.floor_db) + slope * draw("colour", (1,), -6.0, 6.0))
    grain = jax.random.normal(rng.named(key, "grain"), x.shape)
    x = jnp.logaddexp(jnp.logaddexp(x, other), steady + 0.5 * grain)
    bins = jnp.arange(mels)[None]
    hidden = jnp.zeros(x.shape, bool)
    for i in range(config.mel_masks):
        width = draw(f"mel width {i}", (1,), 0.0, config.mel_width)
        start = draw(f"mel start {i}", (1,), 0.0, 1.0) * (mels - width)
        hidden |= (bins >= start) & (bins < start + width)
    length = jnp.take(batch["lengths"], speaker)[:, None]
    for i in range(config.time_masks):
        # Of a short utterance no more than an eighth is hidden at a time.
        width = draw(f"time width {i}", (1,), 0.0, 1.0) * jnp.minimum(config.time_width, length / 8)
        start = draw(f"time start {i}", (1,), 0.0, 1.0) * (length - width)
        hidden |= (time[:, None] >= start) & (time[:, None] < start + width)
    return jnp.where(hidden, mean[None], x)
