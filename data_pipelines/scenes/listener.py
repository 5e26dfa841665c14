"""Speech back to text by pocketsphinx, restricted to what is said in the Scenes world: the judge of generated speech.

The acoustic model and the dictionary come with the package (extra `eval`); nothing here was trained by this project.
"""

import functools
import hashlib
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.scenes.language import answer_phrases, held_out_phrases
from data_pipelines.scenes.scene import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.features import resample
from omnidiff_jax.records import Waveform

if TYPE_CHECKING:
    from pocketsphinx import Decoder

RATE = 16000
_PADDING = RATE // 5  # of silence at both ends
_LEVEL = 0.5  # peak
_NOISE = 2e-3  # digital silence, which no recording has, ruins the decoder's cepstral normalisation
_BEAM = 1e-80  # narrower beams lose short answers

_HEARD: dict[bytes, str] = {}


def grammar() -> str:
    """JSGF of everything the answering voice says: answers, and captions of one to three objects."""

    def either(words: tuple[str, ...]) -> str:
        return "(" + " | ".join(words) + ")"

    thing = " ".join(either(words) for words in (SIZES, COLORS, SHAPES, PLACES))
    return "\n".join(
        (
            "#JSGF V1.0;",
            "grammar scenes;",
            f"<thing> = {thing};",
            f"<caption> = <thing> [<thing>] [<thing>] [on {either(BACKGROUNDS)}];",
            f"<answer> = {either(answer_phrases() + held_out_phrases())};",
            "public <sentence> = <caption> | <answer>;",
        )
    )


@functools.lru_cache(maxsize=1)
def _decoder() -> "Decoder":
    try:
        from pocketsphinx import Decoder
    except ImportError as error:
        raise UserError("judging speech needs pocketsphinx: pip install 'omnidiff_jax[eval]'") from error
    decoder = Decoder(lm=None, loglevel="FATAL", bestpath=False, beam=_BEAM, wbeam=_BEAM, pbeam=_BEAM)
    decoder.add_jsgf_string("scenes", grammar())
    decoder.activate_search("scenes")
    return decoder


def listen(speech: Waveform) -> str:
    """What was said, as the words of the grammar that fit best; "" if none do. The same samples give the same words.

    What was heard once is remembered. One call at a time.
    """
    digest = hashlib.blake2b(np.ascontiguousarray(speech.samples).tobytes() + b"%d" % speech.rate).digest()
    if digest not in _HEARD:
        _HEARD[digest] = _listen(speech)
    return _HEARD[digest]


def _listen(speech: Waveform) -> str:
    samples = resample(speech.samples, speech.rate, RATE)
    peak = float(np.abs(samples).max(initial=0.0))
    if peak == 0.0 or not np.isfinite(peak):
        return ""
    padded = np.pad(samples * (_LEVEL / peak), _PADDING)
    padded += _NOISE * np.random.default_rng(0).standard_normal(len(padded))
    decoder = _decoder()
    decoder.start_utt()
    decoder.process_raw((padded * 32767).astype(np.int16).tobytes(), no_search=False, full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return hypothesis.hypstr if hypothesis else ""
