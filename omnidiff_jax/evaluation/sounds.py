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
_NOTHING = Waveform(np.zeros(0, np.float32), 16000)


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
        clips = [response.audio or _NOTHING for response in responses]
        edits = word_edits([case.meta["spoken"] for case in cases], hear(clips), normaliser)
        return np.array([edit.errors for edit in edits], float), np.array([edit.words for edit in edits], float)

    return Measure(metric, judge.name, False, score)


def written(normaliser: Normaliser = _WHISPER) -> Measure:
    """Word errors of the text against `meta["answer"]`, of speech whose numbers may be written in either way.

    Args:
        normaliser: how words are compared.
    """

    def score(responses: Sequence[Response], cases: Sequence[Case]) -> Counts:
        return _errors(cases, [response.text for response in responses], normaliser)

    return Measure("word error rate", "edit distance, Whisper's normaliser", False, score)


def asked(judge: Any, normaliser: Normaliser = _WHISPER) -> Measure:
    """Word errors of the judge itself in what the model was asked to hear, against `meta["answer"]`.

    No answer changes it: value, ceiling and floor are one number.

    Args:
        judge: as `heard` takes it.
        normaliser: how words are compared.
    """
    hear = Remembered(lambda clips: [judge.hear(clip) for clip in clips], of_speech)

    def score(responses: Sequence[Response], cases: Sequence[Case]) -> Counts:
        clips = [case.request.audio or _NOTHING for case in cases]
        return _errors(cases, hear(clips), normaliser)

    return Measure("word error rate of the judge itself", judge.name, False, score)


def _errors(cases: Sequence[Case], texts: Sequence[str], normaliser: Normaliser) -> Counts:
    edits = word_edits([case.meta["answer"] for case in cases], texts, normaliser)
    return np.array([edit.errors for edit in edits], float), np.array([edit.words for edit in edits], float)


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
