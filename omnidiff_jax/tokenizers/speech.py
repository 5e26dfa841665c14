"""Speech to codes, 12.5 a second, and back: GLM-4-Voice's tokenizer, and its flow decoder with a vocoder."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from omnidiff_jax.config import Natural, Seed
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.features import MelConfig, resample
from omnidiff_jax.models.flow import FlowConfig, FlowDecoder
from omnidiff_jax.models.flow.layers import length_mask
from omnidiff_jax.models.flow.matching import sample
from omnidiff_jax.models.hift import Hift, HiftConfig, draw_source_noise
from omnidiff_jax.models.whisper_vq import (
    RATE,
    WhisperVQConfig,
    WhisperVQEncoder,
    log_mel_batch,
    num_codes,
    pieces,
)
from omnidiff_jax.records import Waveform
from omnidiff_jax.tokenizers import assets
from omnidiff_jax.tokenizers.buckets import Buckets
from omnidiff_jax.tokenizers.vocoders import GriffinLim, HiftVocoder, Vocoder

# Codes of one batch: 8 pieces of 30 s. The decoder takes long to compile, so it has few shapes.
_PLACES = 3000
ENCODER_ROWS = (1, 8, 64, 512)
_REMEMBERED = 1 << 16
_DECODER_ROWS = (1, 16)
_DECODER_SHORTEST = 32


class SpeechTokenizer:
    """Waveforms -> codes, one for every 80 ms begun, in fixed batch shapes.

    An utterance is cut into pieces of the encoder's longest length (30 s in the released model), each encoded alone.
    The codes of the last pieces are remembered: utterances recur from epoch to epoch, and words within them.

    Attributes:
        config: sizes of the encoder.
        params: its parameters.
    """

    def __init__(self, config: WhisperVQConfig, params: Any, rows: tuple[int, ...] = ENCODER_ROWS):
        self.config = config
        self.params = jax.device_put(meta.unbox(params))
        self._memory: dict[bytes, np.ndarray] = {}
        places = max(_PLACES, rows[0] * config.max_codes)
        self._buckets = Buckets(min(16, config.max_codes), rows, places, longest=config.max_codes)

    @classmethod
    def load(cls, directory: str | os.PathLike[str], rows: tuple[int, ...] = ENCODER_ROWS) -> "SpeechTokenizer":
        """Reads a folder written by `save`; `assets.nano_dir("speech_tokenizer")` holds the shipped one.

        Raises:
            UserError: see `assets.load`.
        """
        return cls(*assets.load(directory, WhisperVQConfig, tokenizer_shapes), rows)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes config and parameters (float16)."""
        assets.save(directory, self.config, self.params)

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    def encode(self, waveforms: Sequence[Waveform]) -> list[np.ndarray]:
        """Codes of each waveform, int32 [ceil(seconds * 12.5)], whatever its neighbours; any rate, mono.

        Several channels are not mixed: the released tokenizer hears the first (`media.audio.read_audio`, "first").

        Raises:
            UserError: a waveform without samples.
        """
        cut = [pieces(resample(w.samples, w.rate, RATE), self.config) for w in waveforms]
        for index, parts in enumerate(cut):
            if not parts:
                raise UserError(f"audio {index} has 0 samples and no speech codes; give at least one sample")
        names = [[_digest(part) for part in parts] for parts in cut]
        wanted = {
            name: part for row, parts in zip(names, cut, strict=True) for name, part in zip(row, parts, strict=True)
        }
        found = {name: self._memory[name] for name in wanted if name in self._memory}
        fresh = [name for name in wanted if name not in found]
        found |= zip(fresh, self._encode_pieces([wanted[name] for name in fresh]), strict=True)
        if len(self._memory) > _REMEMBERED:
            self._memory.clear()
        self._memory |= found
        return [np.concatenate([found[name] for name in row]) for row in names]

    def _encode_pieces(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes of each piece (16 kHz samples)."""
        codes: list[np.ndarray] = [np.zeros(0, np.int32)] * len(parts)
        for group in self._buckets.groups([num_codes(len(part), self.config) for part in parts]):
            mels, valid = log_mel_batch(
                [parts[i] for i in group.members], self.config, group.length * self.config.samples_per_code
            )
            surplus = ((0, group.rows - len(mels)), (0, 0))
            batch = np.pad(mels, (*surplus, (0, 0))), np.pad(valid, surplus, mode="edge")
            out = np.asarray(_encode(self.config, self.params, *batch))
            for row, i in enumerate(group.members):
                codes[i] = out[row, : group.lengths[row]]
        return codes


def _digest(samples: np.ndarray) -> bytes:
    return hashlib.blake2b(samples.tobytes(), digest_size=16).digest()


@functools.partial(jax.jit, static_argnums=0)
def _encode(config: WhisperVQConfig, params: Any, mels: jax.Array, valid: jax.Array) -> jax.Array:
    return WhisperVQEncoder(config).apply({"params": params}, mels, valid).codes


def tokenizer_shapes(config: WhisperVQConfig) -> Any:
    """The tokenizer's parameter tree as `jax.ShapeDtypeStruct`s."""
    frames = config.samples_per_code // 160
    mels = jax.ShapeDtypeStruct((1, frames, config.num_mels), jnp.float32)
    valid = jax.ShapeDtypeStruct((1, frames), jnp.bool_)
    return meta.unbox(jax.eval_shape(WhisperVQEncoder(config).init, jax.random.key(0), mels, valid)["params"])


@dataclasses.dataclass(frozen=True)
class SpeechDecoderConfig:
    """How codes become sound.

    Attributes:
        flow: codes -> log-mel.
        mel: what that log-mel is.
        hift: the vocoder network; None = Griffin-Lim.
        griffin_lim_iterations: where that is the vocoder.
        seed: of the noise that every utterance starts from.
    """

    flow: FlowConfig = dataclasses.field(default_factory=FlowConfig)
    mel: MelConfig = dataclasses.field(default_factory=MelConfig)
    hift: HiftConfig | None = dataclasses.field(default_factory=HiftConfig)
    griffin_lim_iterations: Natural = 32
    seed: Seed = 42

    def __post_init__(self) -> None:
        described = (self.flow.sample_rate, self.flow.hop, self.flow.mels)
        if described != (self.mel.rate, self.mel.hop, self.mel.num_mels):
            raise ValueError(f"flow makes (rate, hop, mels) = {described}, mel says {self.mel}")


class SpeechDecoder:
    """Codes -> waveforms, in fixed batch shapes. An utterance's sound depends on its codes alone, not on its batch.

    Attributes:
        config: sizes of the parts.
        params: {"flow": ...}, and "hift" beside it where that is the vocoder.
    """

    def __init__(self, config: SpeechDecoderConfig, params: Any):
        self.config = config
        self.params = jax.device_put(meta.unbox(params))
        self._buckets = Buckets(_DECODER_SHORTEST, _DECODER_ROWS, _PLACES)
        self.vocoder: Vocoder
        if config.hift is None:
            self.vocoder = GriffinLim(config.mel, config.griffin_lim_iterations)
        else:
            shortest, places = config.flow.frames(_DECODER_SHORTEST), config.flow.frames(_PLACES)
            frames = Buckets(shortest, _DECODER_ROWS, places)
            self.vocoder = HiftVocoder(config.hift, self.params["hift"], frames, config.seed)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "SpeechDecoder":
        """Reads a folder written by `save`; `assets.nano_dir("speech_decoder")` holds the shipped one.

        Raises:
            UserError: see `assets.load`.
        """
        flow, hift = Path(directory) / "flow", Path(directory) / "hift"
        if assets.is_converted(flow):  # the released decoder is two checkpoints
            flow_config, flow_params = assets.load(flow, FlowConfig, _flow_shapes)
            hift_config, hift_params = assets.load(hift, HiftConfig, _hift_shapes)
            config = SpeechDecoderConfig(flow=flow_config, hift=hift_config)
            return cls(config, {"flow": flow_params, "hift": hift_params})
        return cls(*assets.load(directory, SpeechDecoderConfig, decoder_shapes))

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes config and parameters (float16)."""
        assets.save(directory, self.config, self.params)

    def decode(self, codes: Sequence[np.ndarray], noise: Sequence[np.ndarray] | None = None) -> list[Waveform]:
        """Speaks codes.

        Args:
            codes: int [k] of each utterance, k may be 0.
            noise: what each flow starts from, [frames, mels] (`FlowConfig.frames`); None = `config.seed`'s.

        Raises:
            UserError: a code is out of range.
        """
        return self.vocoder(self.mels(codes, noise))

    def mels(self, codes: Sequence[np.ndarray], noise: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
        """Log-mel spectrograms float32 [frames, mels]; arguments as in `decode`."""
        flow = self.config.flow
        codes = [np.asarray(c, np.int32).reshape(-1) for c in codes]
        for index, row in enumerate(codes):
            if row.size and (row.min() < 0 or row.max() >= flow.codes):
                raise UserError(
                    f"speech codes must lie in 0..{flow.codes - 1}, utterance {index} has {row.min()}..{row.max()}"
                )
        mels: list[np.ndarray] = [np.zeros((0, flow.mels), np.float32)] * len(codes)
        for group in self._buckets.groups([len(row) for row in codes]):
            frames = np.array([flow.frames(int(n)) for n in group.lengths], np.int32)
            size = flow.frames(group.length)
            z = np.broadcast_to(self._noise(size), (group.rows, size, flow.mels)).copy()
            if noise is not None:
                for place, i in enumerate(group.members):
                    z[place, : frames[place]] = noise[i]
            batch = group.pad([codes[i] for i in group.members])
            found = np.asarray(_flow(flow, self.params["flow"], batch, group.lengths, z, frames))
            for place, i in enumerate(group.members):
                mels[i] = found[place, : frames[place]]
        return mels

    def _noise(self, frames: int) -> np.ndarray:
        """float32 [frames, mels]; a longer one begins like a shorter one."""
        generator = np.random.default_rng(self.config.seed)
        return generator.standard_normal((frames, self.config.flow.mels), np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _flow(
    config: FlowConfig, params: Any, codes: jax.Array, lengths: jax.Array, noise: jax.Array, frames: jax.Array
) -> jax.Array:
    return sample(FlowDecoder(config), params, codes, lengths, noise, length_mask(frames, noise.shape[1]))


def decoder_shapes(config: SpeechDecoderConfig) -> Any:
    """The decoder's parameter tree as `jax.ShapeDtypeStruct`s."""
    shapes = {"flow": _flow_shapes(config.flow)}
    if config.hift is not None:
        shapes["hift"] = _hift_shapes(config.hift)
    return shapes


def _flow_shapes(config: FlowConfig) -> Any:
    return meta.unbox(jax.eval_shape(lambda: init_flow(config, jax.random.key(0))))


def _hift_shapes(config: HiftConfig) -> Any:
    return meta.unbox(jax.eval_shape(lambda: init_hift(config, jax.random.key(0))))


def init_flow(config: FlowConfig, key: jax.Array) -> Any:
    """Fresh parameters of the flow decoder."""
    frames = config.frames(2)
    noise, mask = jnp.zeros((1, frames, config.mels)), jnp.ones((1, frames), bool)
    codes, lengths = jnp.zeros((1, 2), jnp.int32), jnp.full((1,), 2)
    return FlowDecoder(config).init(key, codes, lengths, noise, mask, jnp.zeros(1))["params"]


def init_hift(config: HiftConfig, key: jax.Array) -> Any:
    """Fresh parameters of the vocoder."""
    noise = draw_source_noise(key, 1, 2 * config.frame_samples, config.harmonics)
    return Hift(config).init(key, jnp.zeros((1, 2, config.mels)), jnp.full((1,), 2), noise)["params"]
