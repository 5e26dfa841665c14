"""Judges of speech: Whisper from a local folder, and pocketsphinx with its own language model."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from omnidiff_jax.errors import UserError
from omnidiff_jax.media.features import resample
from omnidiff_jax.records import Waveform
from omnidiff_jax.tokenizers.assets import fingerprint

_RATE = 16000
_EXTRA = "pip install 'omnidiff_jax[benchmarks]'"


class WhisperJudge:
    """OpenAI's Whisper, the language not forced, greedily.

    A folder of CTranslate2 (`model.bin`) is read by faster-whisper, one of transformers (`model.safetensors`) by its
    pipeline with time stamps, as the released script does with whisper-large-v3; newer versions of it would look for
    the best of five beams, and are told not to.

    Attributes:
        name: with a hash of the folder.
    """

    def __init__(self, folder: Path):
        """Raises UserError where the folder holds no Whisper, or the package that reads it is missing."""
        if (folder / "model.bin").is_file():
            if not (folder / "tokenizer.json").is_file():  # it would be looked for on the network
                raise UserError(f"{folder} has model.bin without tokenizer.json; copy the whole folder of Whisper")
            self._hear = _by_faster_whisper(folder)
        elif (folder / "model.safetensors").is_file() and (folder / "preprocessor_config.json").is_file():
            self._hear = _by_transformers(folder)
        else:
            raise UserError(
                f"{folder} is no Whisper: it has neither model.bin nor model.safetensors with its processor"
            )
        self.name = f"whisper-{fingerprint([folder])[:8]}"

    def hear(self, speech: Waveform) -> str:
        """What was said; "" where there is nothing."""
        if not len(speech.samples):
            return ""
        return str(self._hear(resample(speech.samples, speech.rate, _RATE))).strip()


def _by_faster_whisper(folder: Path) -> Any:
    try:
        from faster_whisper import WhisperModel
    except ImportError as error:
        raise UserError(f"{folder}: a Whisper of CTranslate2 needs faster-whisper: {_EXTRA}") from error
    try:
        model = WhisperModel(str(folder), compute_type="default", local_files_only=True)
    except Exception as error:  # a damaged tokenizer raises nothing more particular
        raise UserError(f"{folder} cannot be read as Whisper ({error}); copy the whole folder") from error

    def hear(samples: np.ndarray) -> str:
        segments, _ = model.transcribe(samples, beam_size=1, temperature=0.0, condition_on_previous_text=False)
        return " ".join(segment.text.strip() for segment in segments)

    return hear


def _by_transformers(folder: Path) -> Any:
    try:
        from transformers import pipeline
    except ImportError as error:
        raise UserError(
            f"{folder}: a Whisper of transformers needs the extra torch: pip install 'omnidiff_jax[torch]'"
        ) from error
    try:
        listen = pipeline("automatic-speech-recognition", model=str(folder))
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be read as Whisper ({error}); copy the whole folder") from error
    greedy = {"num_beams": 1, "do_sample": False}

    def hear(samples: np.ndarray) -> str:
        heard = listen({"raw": samples, "sampling_rate": _RATE}, return_timestamps=True, generate_kwargs=greedy)
        return str(heard["text"])

    return hear


class SphinxJudge:
    """pocketsphinx with the acoustic and language model of its package: weak, but it needs nothing else.

    Attributes:
        name: of the package and its version.
    """

    def __init__(self) -> None:
        """Raises UserError where the package is missing."""
        try:
            import importlib.metadata

            from pocketsphinx import Decoder
        except ImportError as error:
            raise UserError("judging speech needs pocketsphinx: pip install 'omnidiff_jax[eval]'") from error
        self._decoder = Decoder(loglevel="FATAL")
        self.name = f"pocketsphinx-{importlib.metadata.version('pocketsphinx')}"

    def hear(self, speech: Waveform) -> str:
        """What was said; "" where nothing is heard."""
        samples = resample(speech.samples, speech.rate, _RATE)
        if not np.abs(samples).max(initial=0.0) > 0:
            return ""
        self._decoder.start_utt()
        pcm = (np.clip(samples, -1, 1) * 32767).astype(np.int16)
        self._decoder.process_raw(pcm.tobytes(), no_search=False, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr if found else ""
