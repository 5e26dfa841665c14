"""Training of the HiFT vocoder against critics of its waveforms, from true spectrograms (arXiv 2309.09493 §2.4)."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from omnidiff_jax import rng
from omnidiff_jax.config import Count, Natural, NonNegative
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.features import MelConfig, log_mel, resample
from omnidiff_jax.media.pitch import pitch
from omnidiff_jax.models.hift import Hift, HiftConfig, draw_source_noise
from omnidiff_jax.models.hift import critics as judging
from omnidiff_jax.records import Waveform
from omnidiff_jax.tokenizers.speech import SpeechDecoder, init_hift
from omnidiff_jax.tokenizers.vocoders import GriffinLim
from omnidiff_jax.training.program import BatchStream, TrainProgram
from omnidiff_jax.training.tokenizers.spoken import Spoken, Utterances

# Of the last convolution's first outputs: they are logarithms, and what begins loud is clipped and has no gradient.
_BEGINS = 0.1


@dataclasses.dataclass(frozen=True)
class VocoderTraining:
    """What the vocoder and its critics minimise; weights are HiFi-GAN's.

    Attributes:
        model: sizes of the vocoder.
        critics: sizes of its critics; None = it learns from spectrogram and pitch alone.
        start: step from which the vocoder feels its critics; they learn from step 0.
        mel: weight of the mean absolute error of the log-mel.
        adversarial: weight of the critics' scores.
        matching: weight of the difference of their features.
        pitch: weight of the mean absolute error of the pitch, in Hz.
        crop_frames: mel frames of a training row; a shorter utterance is followed by silence.
        batch_size: rows a step.
        utterances: how many there are; training keeps them in memory and draws from them.
        validation_size: utterances of `VocoderProgram.validate`.
    """

    model: HiftConfig = dataclasses.field(default_factory=HiftConfig)
    critics: judging.CriticsConfig | None = dataclasses.field(default_factory=judging.CriticsConfig)
    start: Natural = 0
    mel: NonNegative = 45.0
    adversarial: NonNegative = 1.0
    matching: NonNegative = 2.0
    pitch: NonNegative = 0.1
    crop_frames: Count = 32
    batch_size: Count = 16
    utterances: Count = 10_000
    validation_size: Count = 50


class VocoderProgram(TrainProgram):
    """Parameters are {"hift": ...}, and "critics" beside it where there are any.

    Both players learn in the same step from one loss: each sees the other's parameters, or waveforms, as constants.

    Args:
        config: what is trained.
        decoder: whose spectrograms are made audible; it is exported with this vocoder.
        spoken: speech to learn from.

    Raises:
        UserError: the vocoder reads other spectrograms than the decoder makes.
    """

    def __init__(self, config: VocoderTraining, decoder: SpeechDecoder, spoken: Spoken):
        mel, model = decoder.config.mel, config.model
        if (model.sample_rate, model.frame_samples, model.mels) != (mel.rate, mel.hop, mel.num_mels):
            raise UserError(
                f"training.model reads {model.mels} mels, a frame every {model.frame_samples} samples at "
                f"{model.sample_rate} Hz, but the speech decoder makes {mel.num_mels}, every {mel.hop} at {mel.rate} Hz"
            )
        self.config, self._decoder, self._spoken, self._mel = config, decoder, spoken, mel
        self._model = Hift(config.model)
        self._critics = judging.Critics(config.critics) if config.critics else None

    def init(self, key: jax.Array) -> Any:
        hift = meta.unbox(init_hift(self.config.model, rng.named(key, "hift")))
        hift["conv_out"]["scale"] = _BEGINS * hift["conv_out"]["scale"]
        params = {"hift": hift}
        if self._critics is not None:
            wave = jnp.zeros((1, self.config.crop_frames * self._mel.hop))
            params["critics"] = self._critics.init(rng.named(key, "critics"), wave)["params"]
        return params

    def loss(self, params: Any, batch: Any, key: jax.Array, step: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Of batches {"wave" float32 [B, T * hop], "mel" float32 [B, T, M], "pitch" float32 [B, T] Hz}."""
        config, (rows, frames, _) = self.config, batch["mel"].shape
        noise = draw_source_noise(key, rows, batch["wave"].shape[1], config.model.harmonics)
        made, parts = self._model.apply({"params": params["hift"]}, batch["mel"], jnp.full(rows, frames), noise)
        metrics = {
            "mel": jnp.mean(jnp.abs(self._log_mel(made) - self._log_mel(batch["wave"]))),
            "pitch": jnp.mean(jnp.abs(parts["f0"] - batch["pitch"])),
        }
        loss = config.mel * metrics["mel"] + config.pitch * metrics["pitch"]
        if self._critics is None:
            return loss, metrics
        # Not a conditional: on CPUs XLA computes its inside in one thread, in four times the time.
        judged, more = self._judged(params["critics"], batch["wave"], made, jnp.where(step >= config.start, 1.0, 0.0))
        return loss + judged, metrics | more

    def _log_mel(self, wave: jax.Array) -> jax.Array:
        """float [B, S] -> log-mel [B, S / hop + 1, M], centred where `features.log_mel` is not."""
        filters = jnp.asarray(self._mel.filters)
        spectrum = judging.magnitudes(wave, self._mel.n_fft, self._mel.hop)
        return jnp.log(jnp.maximum(spectrum @ filters, self._mel.floor))

    def _judged(
        self, critics: Any, real: jax.Array, made: jax.Array, felt_by: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Losses of both players, float32; the vocoder's times `felt_by`."""
        assert self._critics is not None
        fixed = {"params": jax.lax.stop_gradient(critics)}
        of_real = self._critics.apply({"params": critics}, real)
        felt = self._critics.apply(fixed, made)
        learned = judging.critics_loss(of_real, self._critics.apply({"params": critics}, jax.lax.stop_gradient(made)))
        adversarial = judging.vocoder_loss(felt)
        matching = judging.matching_loss(jax.lax.stop_gradient(of_real), felt)
        ours = self.config.adversarial * adversarial + self.config.matching * matching
        return felt_by * ours + learned, {"adversarial": adversarial, "matching": matching, "critics": learned}

    def batches(self, seed: int) -> Iterator[Any]:
        return CropStream(self.config, self._mel, self._spoken.training, seed)

    def validate(self, params: Any) -> dict[str, float]:
        """Held-out numbers: `mel_error`, the mean absolute error of the log-mel of what is made of true ones; with a
        judge, `wer` of it and `wer_original` of the speech itself. The same of Griffin-Lim beside it."""
        spoken = [self._spoken.held_out(index) for index in range(self.config.validation_size)]
        mels = [log_mel(_whole(wave, self._mel), self._mel) for wave, _ in spoken]
        settings = self._decoder.config
        ways = {
            "": self._with(params).vocoder(mels),
            "_griffin_lim": GriffinLim(self._mel, settings.griffin_lim_iterations)(mels),
        }
        report = {}
        for name, waves in ways.items():
            errors = [
                np.abs(log_mel(wave.samples, self._mel) - mel).mean() for wave, mel in zip(waves, mels, strict=True)
            ]
            report[f"mel_error{name}"] = float(np.mean(errors))
        if self._spoken.judge is not None:
            texts = [text for _, text in spoken]
            for name, waves in (ways | {"_original": [wave for wave, _ in spoken]}).items():
                report[f"wer{name}"] = self._word_errors(waves, texts)
        return report

    def _word_errors(self, waves: Sequence[Waveform], texts: Sequence[str]) -> float:
        assert self._spoken.judge is not None
        wrong, words = np.sum([self._spoken.judge(*pair) for pair in zip(waves, texts, strict=True)], axis=0)
        return float(wrong / words)

    def _with(self, params: Any) -> SpeechDecoder:
        """The decoder with this vocoder."""
        config = dataclasses.replace(self._decoder.config, hift=self.config.model)
        return SpeechDecoder(config, {"flow": self._decoder.params["flow"], "hift": params["hift"]})

    def export(self, params: Any, directory: str | os.PathLike[str]) -> None:
        """Writes what `SpeechDecoder.load` reads: the decoder with this vocoder."""
        self._with(params).save(directory)


def _whole(wave: Waveform, mel: MelConfig, frames: int = 1) -> np.ndarray:
    """float32 samples at the mel's rate, whole frames; silence behind what is shorter than `frames`."""
    samples = resample(wave.samples, wave.rate, mel.rate)
    samples = np.pad(samples, (0, max(frames * mel.hop - len(samples), 0)))
    return samples[: len(samples) // mel.hop * mel.hop]


class CropStream(BatchStream):
    """Batches of parts of utterances in a drawn order; another seed draws another one."""

    def __init__(self, config: VocoderTraining, mel: MelConfig, utterances: Utterances, seed: int):
        self._config, self._mel, self._utterances = config, mel, utterances
        self._seed, self._taken = seed, 0
        self._kept: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def __next__(self) -> Any:
        generator = np.random.default_rng((self._seed, self._taken))
        self._taken += 1
        rows = [self._row(generator) for _ in range(self._config.batch_size)]
        return dict(zip(("wave", "mel", "pitch"), map(np.stack, zip(*rows, strict=True)), strict=True))

    def _row(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Samples [T * hop], log-mel [T, M] and pitch [T] of a part."""
        samples, mel, hz = self._utterance(int(generator.integers(self._config.utterances)))
        frames, hop = self._config.crop_frames, self._mel.hop
        start = int(generator.integers(len(mel) - frames + 1))
        return samples[start * hop : (start + frames) * hop], mel[start : start + frames], hz[start : start + frames]

    def _utterance(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if index not in self._kept:
            samples = _whole(self._utterances(index)[0], self._mel, self._config.crop_frames)
            self._kept[index] = samples, log_mel(samples, self._mel), pitch(samples, self._mel.rate, self._mel.hop)
        return self._kept[index]

    def set_state(self, state: dict[str, Any]) -> None:
        self._taken = state["taken"]
