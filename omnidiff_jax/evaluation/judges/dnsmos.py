"""The judge of how speech sounds: DNSMOS (P.835, arXiv 2110.01763), a network that predicts listeners' opinions."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.judges.remembered import Remembered, of_speech
from omnidiff_jax.media.features import resample
from omnidiff_jax.records import Waveform
from omnidiff_jax.tokenizers.assets import fingerprint

FILE = "sig_bak_ovr.onnx"
RATE = 16000
_SECONDS = 9.01
_WINDOW = 144160  # samples
# Of the official script, for every voice alike: raw outputs to opinions, from the square down.
_POLYNOMIALS = (
    (-0.08397278, 1.22083953, 0.0052439),
    (-0.13166888, 1.60915514, -0.39604546),
    (-0.06766283, 1.11546468, 0.04602535),
)


class Opinion(NamedTuple):
    """Mean opinions of listeners, 1 (bad) to 5 (excellent): of the voice, of what is behind it, of all."""

    signal: float
    background: float
    overall: float


# What is not there at all.
NOTHING = Opinion(1.0, 1.0, 1.0)


class DnsmosJudge:
    """DNSMOS by onnxruntime.

    Attributes:
        name: with a hash of the network.
    """

    def __init__(self, folder: Path, session: Any = None):
        """Reads a folder with `sig_bak_ovr.onnx`.

        Args:
            folder: it.
            session: in place of onnxruntime's, an object with its `run`.

        Raises:
            UserError: there is none, it cannot be read, or onnxruntime is not installed.
        """
        file = folder / FILE
        if not file.is_file():
            raise UserError(f"{folder} has no {FILE}; a folder of DNSMOS has")
        self.name = f"dnsmos-{fingerprint([file])[:8]}"
        self._session = session or _session(file)
        self._heard = Remembered(self._opinions, of_speech)

    def opinion(self, speech: Waveform) -> Opinion:
        """Of the whole clip: the mean over windows of 9.01 s, one a second, as the official script takes them."""
        return self._heard([speech])[0] if len(speech.samples) else NOTHING

    def _opinions(self, clips: list[Waveform]) -> list[Opinion]:
        return [self._opinion(clip) for clip in clips]

    def _opinion(self, speech: Waveform) -> Opinion:
        found = []
        for window in windows(resample(speech.samples, speech.rate, RATE)):
            raw = np.asarray(self._session.run(None, {"input_1": window[None]})[0], np.float64).ravel()
            found.append([np.polyval(line, value) for line, value in zip(_POLYNOMIALS, raw, strict=True)])
        return Opinion(*map(float, np.mean(found, axis=0)))


def windows(samples: np.ndarray) -> list[np.ndarray]:
    """float32 [144160] each, of float32 [n] at 16 kHz, n > 0; a shorter clip is doubled until it fills one.

    As in the official script: the last whole window is left out where there are several, and so is every window whose
    end is rounded to a sample too few (the eighth to the 24th).
    """
    while len(samples) < _WINDOW:
        samples = np.concatenate([samples, samples])
    count = int(len(samples) // RATE - _SECONDS) + 1
    ends = [(start, int((start + _SECONDS) * RATE)) for start in range(count)]
    return [samples[start * RATE : end] for start, end in ends if end - start * RATE == _WINDOW]


def _session(file: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("judging how speech sounds needs onnxruntime: pip install 'omnidiff_jax[commons]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own kinds, which have no common one
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{file} cannot be read as a network ({why}); copy it again") from error
    (given,) = session.get_inputs()
    if given.name != "input_1" or given.shape[-1] != _WINDOW:
        raise UserError(f"{file} is not DNSMOS: it takes {given.name} {given.shape}, not input_1 [1, {_WINDOW}]")
    return session
