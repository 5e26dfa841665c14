"""What every clip must pass before it is data: understood by an outside recogniser, neither rushed, clipped nor silent.

A clip that fails is spoken again with another seed; one that still fails is rejected, and counted by the reason.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from data_pipelines.speakers.speaker import Line, Speaker
from omnidiff_jax.config import Count, Positive, Share
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.judges.named import open_judge
from omnidiff_jax.evaluation.normalisers import Normaliser
from omnidiff_jax.records import Waveform
from omnidiff_jax.words import edit_distance

SILENT = "silent"
CLIPPED = "clipped"
PAUSE = "a long pause"
PACE = "too fast or too slow"
NOT_UNDERSTOOD = "not understood"
REASONS = (SILENT, CLIPPED, PAUSE, PACE, NOT_UNDERSTOOD)

_WINDOW = 0.02  # seconds
_QUIET = 0.01  # of the clip's peak
_FULL_SCALE = 0.999

Heard = Callable[[Waveform], str]


@dataclasses.dataclass(frozen=True)
class GateConfig:
    """Thresholds, all of them inclusive.

    Attributes:
        judge: of what is heard: `whisper:FOLDER` or `pocketsphinx`, which is too weak for synthetic speech in many
            voices; "" = nobody listens, and only the signal is looked at.
        normaliser: how words are compared.
        word_error_rate: most word errors, as a share of the words that were to be said.
        seconds_per_word: least and most, from the first sound to the last.
        clipped: largest share of samples at full scale.
        pause: longest silence within, seconds.
        attempts: times that a clip is spoken at most.
    """

    judge: str = ""
    normaliser: Normaliser = Normaliser()
    word_error_rate: Share = 0.1
    seconds_per_word: tuple[Positive, Positive] = (0.1, 1.5)
    clipped: Share = 0.001
    pause: Positive = 1.5
    attempts: Count = 3

    def __post_init__(self) -> None:
        least, most = self.seconds_per_word
        if least > most:
            raise UserError(f"gate.seconds_per_word = {list(self.seconds_per_word)}: the least stands first")


@dataclasses.dataclass(frozen=True)
class Clip:
    """What became of a line.

    Attributes:
        line: as it was spoken last.
        speech: the clip.
        failed: reasons of the attempts that failed, in their order.
        accepted: whether the last attempt passed.
        errors, words: what the recogniser missed, of how many words; 0 errors where nobody listened.
    """

    line: Line
    speech: Waveform
    failed: tuple[str, ...]
    accepted: bool
    errors: int
    words: int


class Gate:
    """A speaker whose clips are all looked at.

    Attributes:
        recogniser: its name; "" where nobody listens.
    """

    def __init__(self, config: GateConfig, speaker: Speaker, hear: Heard | None = None):
        """Args:
            config: the thresholds.
            speaker: that speaks.
            hear: in place of the judge that the config names.

        Raises:
            UserError: the judge cannot be opened.
        """
        self._config, self._speaker = config, speaker
        judge = open_judge(config.judge, "speech") if config.judge and hear is None else None
        self.recogniser: str = judge.name if judge else config.judge
        self._hear: Heard | None = judge.hear if judge else hear

    def spoken(self, lines: Sequence[Line]) -> list[Clip]:
        """The lines spoken, those that fail again and again, all together each time.

        Args:
            lines: their `seed` is the first attempt's, the next ones count up.

        Returns:
            a clip each; it does not depend on the other lines.
        """
        clips: list[Clip | None] = [None] * len(lines)
        failed: dict[int, list[str]] = collections.defaultdict(list)
        waiting = list(range(len(lines)))
        for attempt in range(self._config.attempts):
            again = [dataclasses.replace(lines[i], seed=lines[i].seed + attempt) for i in waiting]
            for i, line, speech in zip(waiting, again, self._speaker.say(again), strict=True):
                reason, errors, words = self._judged(line.text, speech)
                failed[i] += [reason] if reason else []
                clips[i] = Clip(line, speech, tuple(failed[i]), not reason, errors, words)
            waiting = [i for i in waiting if not clips[i].accepted]  # type: ignore[union-attr]
            if not waiting:
                break
        return [clip for clip in clips if clip is not None]

    def _judged(self, text: str, speech: Waveform) -> tuple[str, int, int]:
        """Why a clip fails, or ""; the recogniser's errors, and the words."""
        expected = self._config.normaliser.words(text)
        if reason := fault(speech, len(expected), self._config):
            return reason, 0, len(expected)
        if self._hear is None:
            return "", 0, len(expected)
        errors = edit_distance(expected, self._config.normaliser.words(self._hear(speech)))
        return NOT_UNDERSTOOD if errors > self._config.word_error_rate * len(expected) else "", errors, len(expected)


def fault(speech: Waveform, words: int, config: GateConfig) -> str:
    """What is wrong with a clip's signal, one of `REASONS`, or "".

    Args:
        speech: the clip; samples that are not finite count as silent.
        words: that it should hold.
        config: the thresholds.
    """
    samples = np.abs(speech.samples)
    peak = float(samples.max(initial=0.0))
    if not 0.0 < peak < np.inf:
        return SILENT
    if (samples >= _FULL_SCALE).mean() > config.clipped:
        return CLIPPED
    window = max(round(_WINDOW * speech.rate), 1)
    blocks = np.pad(samples, (0, -len(samples) % window)).reshape(-1, window).max(axis=1)
    loud = np.flatnonzero(blocks > _QUIET * peak)
    if max((int(b - a) - 1 for a, b in itertools.pairwise(loud)), default=0) * window / speech.rate > config.pause:
        return PAUSE
    least, most = config.seconds_per_word
    seconds = (loud[-1] - loud[0] + 1) * window / speech.rate
    return "" if least * words <= seconds <= most * max(words, 1) else PACE
