"""Measures of speech in memory by outside judges: word errors as a recogniser hears it, and how it sounds."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from omnidiff_jax.answering.queries import Response
from omnidiff_jax.evaluation.exam import Case, Measure
from omnidiff_jax.evaluation.judges.dnsmos import NOTHING
from omnidiff_jax.evaluation.judges.remembered import Remembered, of_speech
from omnidiff_jax.evaluation.measures import Counts
from omnidiff_jax.evaluation.normalisers import Normaliser, Whisper
from omnidiff_jax.evaluation.transcripts import word_edits
from omnidiff_jax.records import Waveform

_WHISPER = Whisper()


def heard(judge: Any, normaliser: Normaliser = _WHISPER, metric: str = "word error rate of the speech") -> Measure:
    """Word errors against `meta["spoken"]`; no speech is as wrong as silence.

    Args:
        judge: with `name` and `hear`, such as `WhisperJudge`; it takes waveforms of any rate and hears each once.
        normaliser: how words are compared.
        metric: name of the measure.
    """

    def transcribed(clips: list[Waveform]) -> list[str]:
        return [judge.hear(clip) for clip in clips]

    hear = Remembered(transcribed, of_speech)

    def score(responses: Sequence[Response], cases: Sequence[Case]) -> Counts:
        clips = [response.audio or Waveform(np.zeros(0, np.float32), 16000) for response in responses]
        edits = word_edits([case.meta["spoken"] for case in cases], hear(clips), normaliser)
        return np.array([edit.errors for edit in edits], float), np.array([edit.words for edit in edits], float)

    return Measure(metric, judge.name, False, score)


def sounding(judge: Any) -> Measure:
    """Mean opinion of how the speech sounds, 1 to 5; no speech is 1.

    Shuffled answers sound as they did: the floor is the value, and only the ceiling says something.

    Args:
        judge: with `name` and `opinion`, such as `DnsmosJudge`.
    """

    def score(responses: Sequence[Response], cases: Sequence[Case]) -> Counts:
        found = [judge.opinion(r.audio).overall if r.audio is not None else NOTHING.overall for r in responses]
        return np.array(found, float), np.ones(len(cases))

    return Measure("overall quality of the speech", judge.name, True, score)
