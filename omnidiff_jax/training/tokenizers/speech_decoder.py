"""Training of the speech decoder: flow matching from the frozen tokenizer's codes to log-mel spectrograms."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax.core import meta

from omnidiff_jax.config import Count, NonNegative, Share
from omnidiff_jax.media.features import log_mel, resample
from omnidiff_jax.models.flow import FlowDecoder, matching
from omnidiff_jax.models.flow.layers import length_mask
from omnidiff_jax.records import Waveform
from omnidiff_jax.tokenizers.speech import RATE, SpeechDecoder, SpeechDecoderConfig, SpeechTokenizer, init_flow
from omnidiff_jax.training.program import BatchStream, TrainProgram
from omnidiff_jax.training.tokenizers.spoken import Judge, Utterances


@dataclasses.dataclass(frozen=True)
class SpeechDecoderTraining:
    """How the speech decoder learns.

    Attributes:
        model: sizes; the vocoder is not trained here.
        crop_codes: codes of a training row; of a longer utterance, a part is used.
        batch_size: rows a step.
        utterances: how many there are; training keeps their spectrograms in memory and draws from them.
        prior: weight of the error of the flow's condition, taken as a spectrogram (released: 0); one voice is learned
            much faster with it.
        prompt_rate: share of rows in which a first part of the target mel is given as the prompt (released: 0.5).
        prompt_length: longest prompt, as a share of the row.
        validation_size: utterances of `SpeechDecoderProgram.validate`.
    """

    model: SpeechDecoderConfig = dataclasses.field(default_factory=SpeechDecoderConfig)
    crop_codes: Count = 100
    batch_size: Count = 32
    utterances: Count = 10_000
    prior: NonNegative = 0.0
    prompt_rate: Share = 0.5
    prompt_length: Share = 0.3
    validation_size: Count = 100


class SpeechDecoderProgram(TrainProgram):
    """Parameters are those of the flow decoder."""

    def __init__(
        self,
        config: SpeechDecoderTraining,
        tokenizer: SpeechTokenizer,
        utterances: Utterances,
        held_out: Utterances,
        judge: Judge | None = None,
    ):
        self.config = config
        self._model = FlowDecoder(config.model.flow)
        self._tokenizer, self._utterances, self._held_out, self._judge = tokenizer, utterances, held_out, judge

    def init(self, key: jax.Array) -> Any:
        return meta.unbox(init_flow(self.config.model.flow, key))

    def loss(self, params: Any, batch: Any, key: jax.Array, step: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Of batches {"codes" int32 [B, L], "lengths" int32 [B], "mel" float32 [B, T, M], "frames" int32 [B],
        "prompts" int32 [B]: frames given as the prompt}."""
        flow = self.config.model.flow
        mel, mask = batch["mel"], length_mask(batch["frames"], batch["mel"].shape[1])
        prompted = length_mask(batch["prompts"], mel.shape[1])
        condition = matching.normalise(mel, prompted, flow)
        noise = matching.draw_noise(key, mel)
        velocity, prior = matching.training_loss(
            self._model, params, batch["codes"], batch["lengths"], mel, mask, noise, condition=condition
        )
        return velocity + self.config.prior * prior, {"velocity": velocity, "prior": prior}

    def batches(self, seed: int) -> Iterator[Any]:
        return SpokenStream(self.config, self._tokenizer, self._utterances, seed)

    def validate(self, params: Any) -> dict[str, float]:
        """Held-out numbers: `mel_error`, the mean absolute error of the log-mel; with a judge, `wer` of the decoded
        speech and `wer_original` of the speech itself."""
        config = self.config.model
        decoder = SpeechDecoder(dataclasses.replace(config, hift=None), {"flow": params})
        spoken = [self._held_out(index) for index in range(self.config.validation_size)]
        codes = self._tokenizer.encode([wave for wave, _ in spoken])
        mels = decoder.mels(codes)
        errors = [
            np.abs(mel - spectrogram(wave, len(row), config)).mean()
            for mel, row, (wave, _) in zip(mels, codes, spoken, strict=True)
        ]
        report = {"mel_error": float(np.mean(errors))}
        if self._judge is not None:
            texts = [text for _, text in spoken]
            report["wer"] = self._word_errors(decoder.vocoder(mels), texts)
            report["wer_original"] = self._word_errors([wave for wave, _ in spoken], texts)
        return report

    def _word_errors(self, waves: Sequence[Waveform], texts: Sequence[str]) -> float:
        assert self._judge is not None
        wrong, words = np.sum([self._judge(*pair) for pair in zip(waves, texts, strict=True)], axis=0)
        return float(wrong / words)

    def export(self, params: Any, directory: str | os.PathLike[str]) -> None:
        """Writes what `SpeechDecoder.load` reads, with Griffin-Lim as the vocoder."""
        SpeechDecoder(dataclasses.replace(self.config.model, hift=None), {"flow": params}).save(directory)


def spectrogram(wave: Waveform, codes: int, config: SpeechDecoderConfig) -> np.ndarray:
    """The log-mel that so many codes stand for: float32 [`FlowConfig.frames`, mels], silence behind the speech."""
    mel, flow = config.mel, config.flow
    samples = resample(wave.samples, wave.rate, mel.rate)
    frames = flow.frames(codes)
    total = round(codes / flow.code_rate * mel.rate)
    return log_mel(np.pad(samples, (0, max(total - len(samples), 0)))[:total], mel)[:frames]


class SpokenStream(BatchStream):
    """Batches of utterances in a drawn order; another seed draws another one."""

    def __init__(self, config: SpeechDecoderTraining, tokenizer: SpeechTokenizer, utterances: Utterances, seed: int):
        self._config, self._tokenizer, self._utterances = config, tokenizer, utterances
        self._seed, self._taken = seed, 0
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __next__(self) -> Any:
        config, flow = self._config, self._config.model.flow
        generator = np.random.default_rng((self._seed, self._taken))
        self._taken += 1
        rows, length = config.batch_size, config.crop_codes
        batch = {
            "codes": np.zeros((rows, length), np.int32),
            "lengths": np.zeros(rows, np.int32),
            "mel": np.zeros((rows, flow.frames(length), flow.mels), np.float32),
            "frames": np.zeros(rows, np.int32),
            "prompts": np.zeros(rows, np.int32),
        }
        for row in range(rows):
            codes, mel = self._row(int(generator.integers(config.utterances)))
            batch["codes"][row, : len(codes)], batch["lengths"][row] = codes, len(codes)
            batch["mel"][row, : len(mel)], batch["frames"][row] = mel, len(mel)
            if generator.random() < config.prompt_rate:
                batch["prompts"][row] = generator.integers(int(config.prompt_length * len(mel)) + 1)
        return batch

    def _row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes int32 [<= crop_codes] of an utterance, always the same part of it, and their mel."""
        if index not in self._kept:
            wave, _ = self._utterances(index)
            samples = resample(wave.samples, wave.rate, RATE)
            codes = self._tokenizer.encode([Waveform(samples, RATE)])[0]
            limit, per_code = self._config.crop_codes, self._tokenizer.config.samples_per_code
            start = int(np.random.default_rng(index).integers(max(len(codes) - limit, 0) + 1))
            codes = codes[start : start + limit]
            part = samples[start * per_code : (start + len(codes)) * per_code]
            self._kept[index] = codes, spectrogram(Waveform(part, RATE), len(codes), self._config.model)
        return self._kept[index]

    def set_state(self, state: dict[str, Any]) -> None:
        self._taken = state["taken"]
