"""Decoding settings by name: those of the released evaluation scripts and of the released demo, as data.

Answers lie on this project's canvas: pictures have as many positions as codes, speech begins with a given token. The
quirks of the released sampler are on (`SamplerConfig.released`, the top-k of 50 that its library sets among them).
"""

import dataclasses
from collections.abc import Mapping

from omnidiff_jax.sampling.config import ASR_LENGTH, TTS_LENGTH, SamplerConfig
from omnidiff_jax.tasks.registry import Decoding

# T = L // 2: just below a half, where a half is rounded up.
_HALF = 0.49999


def _released(
    share: float = 1.0, repetition: float = 1.0, position: float = 1.0, guidance: float = 0.0
) -> SamplerConfig:
    """The released `generate` with the arguments that its scripts have in common; T is a share of L."""
    settings = SamplerConfig.released(
        1, top_p=0.9, repetition_penalty=repetition, max_position_penalty=position, cfg=guidance
    )
    return dataclasses.replace(settings, steps=None, steps_per_token=share)


_SPOKEN = Decoding(_released(repetition=1.2), 128, prefill=0.2, stop="never")
_DRAWN = {
    "t2i": Decoding(_released(repetition=1.2, position=2.0), stop="never", unconditional="random"),
    "s2i": Decoding(_released(repetition=1.5, position=2.0, guidance=2.0), stop="never"),
}

# Set -> task -> settings.
DECODINGS: Mapping[str, Mapping[str, Decoding]] = {
    # tools/evaluate_asr.py, evaluate_libritts.py, evaluate_imageqa_mme.py; the rest has no script and is the demo's.
    "released": {
        "asr": Decoding(_released(_HALF), adaptive=ASR_LENGTH, stop="never"),
        "tts": Decoding(_released(_HALF, repetition=1.2), adaptive=TTS_LENGTH, stop="never"),
        "vqa": Decoding(_released(), 8, stop="never"),
        "spoken_vqa": _SPOKEN,
        **_DRAWN,
    },
    # tools/inference.py.
    "released_demo": {
        "asr": Decoding(_released(_HALF), 50, stop="never"),
        "tts": Decoding(_released(_HALF, repetition=1.2), 50, stop="never"),
        "vqa": Decoding(_released(), 64, stop="never"),
        "spoken_vqa": _SPOKEN,
        **_DRAWN,
    },
}
