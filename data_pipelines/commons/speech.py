"""Speech of Commons: clips that are spoken once, pass a gate, and are kept in a folder.

A neural speaker takes seconds for a clip, so every clip is kept where it was made: a build that was stopped goes on,
and a folder of clips serves any number of sets. Learned sentences are joined of clips of their pieces, of which few
voices say a name, or are some of a fixed number of whole ones.
"""

import copy
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.speakers.gate import Gate, GateConfig
from data_pipelines.speakers.kinds import SpeakerConfig
from data_pipelines.speakers.speaker import Line
from omnidiff_jax.config import Count, Natural, Share, build, to_dict
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import path, write_bytes
from omnidiff_jax.media.audio import read_audio, write_wav
from omnidiff_jax.media.features import resample
from omnidiff_jax.records import RejectedRecord, Waveform, stable_id

SETTINGS = "speech.json"
NOT_ACCEPTED = "a clip did not pass the gate"
NOT_SPOKEN = "a clip has not been spoken"
_VERSION = 1
_REJECTED = ".rejected"
_PARTS = 1 << 16  # in which a share of names is counted
_GAP, _MARGIN, _QUIET = 0.06, 0.03, 0.01  # seconds between pieces; seconds kept around one; share of the peak
_CELL = 0.08  # seconds of a speech code


@dataclasses.dataclass(frozen=True)
class SpeechConfig:
    """What stands in the `speech.json` of a folder of clips.

    Attributes:
        speaker: who speaks.
        gate: what every clip must pass.
        held_out: share of the voices that ask that only exams hear.
        voices_of_name: learned voices that say a name; the more, the more clips.
        names: share of the learned names that are said where speech is learned.
        sentences: whole ones in learned voices, heard in training beside those that are joined.
    """

    speaker: SpeakerConfig = SpeakerConfig()
    gate: GateConfig = GateConfig()
    held_out: Share = 0.2
    voices_of_name: Count = 4
    names: Share = 1.0
    sentences: Natural = 3000


class Clips:
    """A folder of clips, and the speaker who speaks what is missing."""

    def __init__(self, folder: Path, config: SpeechConfig, gate: Gate | None = None):
        """Args:
            folder: that holds them.
            config: who speaks, and what passes.
            gate: in place of the one that `config` describes.

        Raises:
            UserError: speaker or judge cannot be opened, or all voices or none would be held out.
        """
        speaker = config.speaker.open()
        gate = gate or Gate(config.gate, speaker)
        self._gate: Gate | None = gate
        order = sorted(range(speaker.voices), key=lambda voice: stable_id("commons voice", voice))
        kept = round(config.held_out * len(order))
        self._held_out, self._learned = sorted(order[:kept]), sorted(order[kept:])
        if not self._held_out or not self._learned:
            raise UserError(
                f"held_out = {config.held_out} of {speaker.voices} voices leaves none to learn or none for exams; "
                f"change it in {folder / SETTINGS}"
            )
        self._of_name, self._names = config.voices_of_name, config.names
        self.sentences = config.sentences
        told = [_VERSION, speaker.name, gate.recogniser, _gate_settings(config.gate)]
        self._folder = folder / "clips" / hashlib.blake2b(json.dumps(told).encode(), digest_size=6).hexdigest()
        choice = [*told, config.held_out, config.voices_of_name, speaker.voices, config.sentences]
        choice += [config.names] if config.names < 1.0 else []
        self.identity = hashlib.blake2b(json.dumps(choice).encode(), digest_size=16).hexdigest()

    def kept(self) -> "Clips":
        """The same clips, of which none is spoken: what is missing is refused, as `NOT_SPOKEN`."""
        silent = copy.copy(self)
        silent._gate = None
        return silent

    def voices(self, learned: bool) -> Sequence[int]:
        """Voices that ask: those that are learned, or those for exams; no voice is both."""
        return self._learned if learned else self._held_out

    def says(self, name: str) -> bool:
        """Whether a name is said at all where speech is learned."""
        return bool(self._voices_of(name))

    def names(self, voice: int, name: str) -> bool:
        """Whether a learned voice says a name."""
        return voice in self._voices_of(name)

    def joined(self, pieces: Sequence[str], voice: int | None, pace: float = 1.0, gap: float = _GAP) -> Waveform:
        """Pieces said one after the other, each a clip; voice None = the one that answers.

        Args:
            pieces: what is said.
            voice: that says it.
            pace: of a voice that asks; pitch goes with it, as on a tape.
            gap: seconds between the pieces of a voice that asks.

        A piece of the answering voice begins on the grid of speech codes and is followed by silence up to it: a code
        that hears its own 80 ms is then the same wherever the piece stands.

        Returns:
            float32 at the speaker's rate; of voices that ask without silence at the ends.

        Raises:
            RejectedRecord: a piece did not pass the gate, or may not be spoken (`kept`).
        """
        clips = [self._clip(piece, voice) for piece in pieces]
        rate = clips[0].rate
        if voice is None:
            cell = round(_CELL * rate)
            return Waveform(
                np.concatenate([np.pad(clip.samples, (0, -len(clip.samples) % cell)) for clip in clips]), rate
            )
        silence = np.zeros(round(gap * rate), np.float32)
        parts = [part for clip in clips for part in (silence, clip.samples)][1:]
        return Waveform(resample(np.concatenate(parts), round(pace * rate), rate), rate)

    @functools.lru_cache(maxsize=1 << 14)  # noqa: B019 (a folder of clips lives as long as its process)
    def _voices_of(self, name: str) -> frozenset[int]:
        if stable_id("commons said", name) % _PARTS >= self._names * _PARTS:
            return frozenset()
        ranked = sorted(self._learned, key=lambda voice: stable_id("commons voice of", name, voice))
        return frozenset(ranked[: self._of_name])

    def _clip(self, text: str, voice: int | None) -> Waveform:
        """A clip, spoken now if nobody has spoken it and there is a gate."""
        words = re.sub("[^a-z0-9]+", "-", text.lower())[:40].strip("-")
        digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
        file = self._folder / ("answer" if voice is None else f"{voice:04d}") / f"{words}-{digest}.wav"
        rejected = file.with_suffix(_REJECTED)
        if file.is_file():
            return read_audio(file)
        who = f"{text!r} by {voice if voice is not None else 'the answering voice'}"
        if not rejected.is_file():
            if self._gate is None:
                raise RejectedRecord(NOT_SPOKEN, who)
            (clip,) = self._gate.spoken([Line(text, voice)])
            if clip.accepted:
                write_wav(file, _trimmed(clip.speech))
                return read_audio(file)  # what is read later is what is heard now
            write_bytes(rejected, "\n".join(clip.failed).encode())
        raise RejectedRecord(NOT_ACCEPTED, who)


def _trimmed(speech: Waveform) -> Waveform:
    loud = np.abs(speech.samples) > _QUIET * float(np.abs(speech.samples).max(initial=0.0))
    first, last = int(loud.argmax()), len(loud) - int(loud[::-1].argmax())
    margin = round(_MARGIN * speech.rate)
    return Waveform(speech.samples[max(first - margin, 0) : last + margin], speech.rate)


def _gate_settings(config: GateConfig) -> dict[str, object]:
    """What decides which clips pass, without the place where the judge lies."""
    return {key: value for key, value in to_dict(config).items() if key != "judge"}


@functools.lru_cache(maxsize=4)
def open_clips(folder: str) -> Clips:
    """The clips of a folder with a `speech.json`; once in a process.

    Raises:
        UserError: no such file, no JSON, or a setting that cannot be.
    """
    place = path(folder)
    file = place / SETTINGS
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        how = 'write one, such as {"speaker": {"kind": "espeak"}} (docs/commons.md)'
        raise UserError(f"cannot read {file} ({error.strerror}); {how}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}); it may hold {_fields()}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must be an object; it may hold {_fields()}")
    return Clips(place, build(SpeechConfig, content, str(file)))


def _fields() -> str:
    return ", ".join(field.name for field in dataclasses.fields(SpeechConfig))
