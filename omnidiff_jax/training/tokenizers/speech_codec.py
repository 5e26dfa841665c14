"""Training of the speech tokenizer: a vector-quantized Whisper encoder, with a linear head that redraws what it heard.

GLM-4-Voice trains its tokenizer on transcripts (arXiv 2412.02612 §2.1); a spectrogram teaches without any.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from omnidiff_jax import rng
from omnidiff_jax.config import Count
from omnidiff_jax.media.features import resample
from omnidiff_jax.models.vq import VqLossConfig, k_means, vq_losses
from omnidiff_jax.models.whisper_vq import RATE, WhisperVQConfig, WhisperVQEncoder, log_mel_batch
from omnidiff_jax.tokenizers.speech import SpeechTokenizer
from omnidiff_jax.training.program import TrainProgram
from omnidiff_jax.training.tokenizers.spoken import Utterances


@dataclasses.dataclass(frozen=True)
class SpeechCodecTraining:
    """What the speech tokenizer minimises.

    Attributes:
        model: sizes of the encoder.
        quantizer: weights of the quantizer's losses.
        crop_codes: length of the training pieces, at most the encoder's longest.
        batch_size: pieces a step.
        validation_size: utterances of `SpeechCodecProgram.validate`.
    """

    model: WhisperVQConfig = dataclasses.field(default_factory=WhisperVQConfig)
    quantizer: VqLossConfig = dataclasses.field(default_factory=VqLossConfig)
    crop_codes: Count = 25
    batch_size: Count = 32
    validation_size: Count = 200


class SpeechCodecProgram(TrainProgram):
    """Parameters are {"encoder": ..., "head": ...}; only the encoder is exported."""

    def __init__(self, config: SpeechCodecTraining, utterances: Utterances, held_out: Utterances):
        self.config = config
        self._encoder = WhisperVQEncoder(config.model)
        self._head = nn.Dense(config.model.samples_per_code // 160 * config.model.num_mels)
        self._utterances, self._held_out = utterances, held_out

    def init(self, key: jax.Array) -> Any:
        model = self.config.model
        frames = model.samples_per_code // 160
        mels, valid = jnp.zeros((1, frames, model.num_mels)), jnp.ones((1, frames), bool)
        encoder = meta.unbox(self._encoder.init(rng.named(key, "encoder"), mels, valid)["params"])
        encoder["codebook"] = self._first_rows(encoder)
        head = self._head.init(rng.named(key, "head"), jnp.zeros((1, 1, model.width)))["params"]
        return {"encoder": encoder, "head": head}

    def _first_rows(self, encoder: Any) -> jax.Array:
        """Means of where the untrained encoder puts speech (k-means): with rows elsewhere, most would never be
        chosen."""
        config = self.config
        pieces: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
        batches = self.batches(0)
        for _ in range(4 * config.model.codebook_size // (config.batch_size * config.crop_codes) + 1):
            batch = next(batches)
            pieces |= {mel.tobytes(): (mel, valid) for mel, valid in zip(batch["mels"], batch["valid"], strict=True)}
        mels, valid = (np.stack(part) for part in zip(*pieces.values(), strict=True))
        features = self._encoder.apply({"params": encoder}, mels, valid).features.reshape(-1, config.model.width)
        # Fewer distinct pieces than rows: some rows begin as twins.
        first = jnp.resize(features, (config.model.codebook_size, config.model.width))
        return k_means(features, first)

    def loss(self, params: Any, batch: Any, key: jax.Array, step: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Of batches {"mels" float32 [B, T, M], "valid" bool [B, T]}."""
        out = self._encoder.apply({"params": params["encoder"]}, batch["mels"], batch["valid"])
        drawn = self._head.apply({"params": params["head"]}, out.hidden).reshape(batch["mels"].shape)
        error = jnp.abs(drawn - batch["mels"]).mean(axis=-1)
        mel = jnp.sum(error * batch["valid"]) / jnp.sum(batch["valid"])
        codebook = params["encoder"]["codebook"]
        quantizer, metrics = vq_losses(out.features, out.codes, out.valid, codebook, self.config.quantizer)
        return mel + quantizer, {"mel": mel} | metrics

    def batches(self, seed: int) -> Iterator[Any]:
        return piece_batches(self.config, self._utterances, seed)

    def validate(self, params: Any) -> dict[str, float]:
        """Held-out numbers: `codes_used`, `code_perplexity`, the effective number of codes, and `mel_error`, the mean
        absolute error of what the head draws of a batch."""
        tokenizer = SpeechTokenizer(self.config.model, params["encoder"])
        spoken = [self._held_out(index) for index in range(self.config.validation_size)]
        codes = tokenizer.encode([wave for wave, _ in spoken])
        share = np.bincount(np.concatenate(codes), minlength=tokenizer.codebook_size) / sum(map(len, codes))
        share = share[share > 0]
        batch = next(piece_batches(self.config, self._held_out, 0))
        _, drawn = jax.jit(self.loss)(params, batch, jax.random.key(0), jnp.int32(0))
        return {
            "mel_error": float(drawn["mel"]),
            "codes_used": float(len(share)),
            "code_perplexity": float(np.exp(-np.sum(share * np.log(share)))),
        }

    def export(self, params: Any, directory: str | os.PathLike[str]) -> None:
        """Writes what `SpeechTokenizer.load` reads."""
        SpeechTokenizer(self.config.model, params["encoder"]).save(directory)


def piece_batches(config: SpeechCodecTraining, utterances: Utterances, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of pieces, cut from successive utterances; another seed starts elsewhere."""
    size = config.crop_codes * config.model.samples_per_code

    # Where words are always spoken alike, so are utterances and pieces.
    @functools.lru_cache(maxsize=2048)
    def resampled(samples: bytes, rate: int) -> np.ndarray:
        return resample(np.frombuffer(samples, np.float32), rate, RATE)

    @functools.lru_cache(maxsize=16384)
    def features(piece: bytes) -> tuple[np.ndarray, np.ndarray]:
        mels, valid = log_mel_batch([np.frombuffer(piece, np.float32)], config.model, size)
        return mels[0], valid[0]

    waiting: list[np.ndarray] = []
    for index in itertools.count(seed * 10_000_000 % 2**31):
        wave, _ = utterances(index)
        samples = resampled(wave.samples.tobytes(), wave.rate)
        waiting += [samples[i : i + size] for i in range(0, len(samples), size)]
        while len(waiting) >= config.batch_size:
            taken, waiting = waiting[: config.batch_size], waiting[config.batch_size :]
            mels, valid = zip(*(features(piece.tobytes()) for piece in taken), strict=True)
            yield {"mels": np.stack(mels), "valid": np.stack(valid)}
