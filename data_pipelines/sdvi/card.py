"""The data card beside an SDVI set: what it holds, who spoke and who listened, and what was left out."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from data_pipelines.readers.corpora import CORPORA
from data_pipelines.sdvi.opening import Opened
from data_pipelines.sdvi.records import SAID, Made, SdviConfig
from omnidiff_jax.config import to_dict

CARD, README = "card.json", "README.md"
_ANSWERING = "answering"


def _counter() -> Any:
    return dataclasses.field(default_factory=collections.Counter)


@dataclasses.dataclass
class Tally:
    """What became of candidates; tallies of parts add up.

    Attributes:
        candidates, accepted, rewritten: numbers of them; `rewritten` of the accepted ones.
        rejected: by reason.
        spoken_again: attempts that failed, of all candidates, by reason.
        clips, seconds, errors, words: of accepted clips, by voice.
    """

    candidates: int = 0
    accepted: int = 0
    rewritten: int = 0
    rejected: collections.Counter[str] = _counter()
    spoken_again: collections.Counter[str] = _counter()
    clips: collections.Counter[str] = _counter()
    seconds: collections.Counter[str] = _counter()
    errors: int = 0
    words: int = 0

    def count(self, made: Made) -> None:
        """Adds a candidate."""
        self.candidates += 1
        for clip in made.clips:
            self.spoken_again.update(clip.failed)
        if made.record is None:
            self.rejected[made.reason] += 1
            return
        self.accepted += 1
        self.rewritten += made.rewritten
        for clip in made.clips:
            voice = _ANSWERING if clip.line.voice is None else str(clip.line.voice)
            self.clips[voice] += 1
            self.seconds[voice] += clip.speech.seconds  # type: ignore[assignment]
            self.errors += clip.errors
            self.words += clip.words

    def add(self, other: "Tally") -> None:
        """Adds what another one counted."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def to_dict(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Tally":
        """The inverse of `to_dict`."""
        values: dict[str, Any] = {
            name: collections.Counter(value) if isinstance(value, dict) else value for name, value in content.items()
        }
        return cls(**values)


def card(config: SdviConfig, made: Opened, tally: Tally) -> dict[str, Any]:
    """The card as JSON: the same for the same set, however it was built."""
    asking = sorted((voice for voice in tally.clips if voice != _ANSWERING), key=int)
    corpus = CORPORA.get(config.source.reader)
    settings = to_dict(config)
    return {
        "task": config.task,
        "fingerprint": made.fingerprint,
        "candidates": tally.candidates,
        "accepted": tally.accepted,
        "rewritten": tally.rewritten,
        "rejected": dict(sorted(tally.rejected.items())),
        "failed_attempts": dict(sorted(tally.spoken_again.items())),
        "clips": sum(tally.clips.values()),
        "seconds": round(sum(tally.seconds.values()), 2),
        "seconds_of_answers": round(tally.seconds[_ANSWERING], 2),
        "speaker": made.speaker.name,
        "voices": {
            "asking": made.speaker.voices,
            "heard": len(asking),
            "answering": made.speaker.described(None) if config.task == "spoken_vqa" else "none",
        },
        "clips_of_voices": {voice: [tally.clips[voice], made.speaker.described(int(voice))] for voice in asking},
        "recogniser": made.gate.recogniser or "none",
        "word_error_rate": round(tally.errors / tally.words, 4) if tally.words and made.gate.recogniser else None,
        "thresholds": {key: value for key, value in settings["gate"].items() if key != "judge"},
        "licences": {
            "speech": made.speaker.licence,
            "source": corpus.licence if corpus else "its own",
        },
        "settings": settings,
    }


def readme(told: Mapping[str, Any]) -> str:
    """The card for people, in Markdown."""
    voices, said = told["voices"], " and ".join(SAID[told["task"]])
    heard = (
        "" if told["word_error_rate"] is None else f", word error rate {told['word_error_rate']:.4f} of what is here"
    )
    rows = [
        ("samples", f"{told['accepted']} of {told['candidates']} candidates, {told['rewritten']} rewritten"),
        ("speech", f"{told['clips']} clips ({said}), {told['seconds']:.0f} s"),
        ("speaker", f"{told['speaker']}; {voices['heard']} of {voices['asking']} voices ask"),
        ("answering voice", voices["answering"]),
        (
            "recogniser",
            told["recogniser"] + heard,
        ),
        ("thresholds", ", ".join(f"{key} {value}" for key, value in told["thresholds"].items())),
        ("licence of the speech", told["licences"]["speech"]),
        ("licence of the source", told["licences"]["source"]),
    ]
    table = [f"| {name} | {value} |" for name, value in rows]
    reasons = [f"| {reason} | {count} |" for reason, count in told["rejected"].items()] or ["| none | 0 |"]
    again = ", ".join(f"{reason}: {count}" for reason, count in told["failed_attempts"].items()) or "none"
    return "\n".join(
        [
            f"# SDVI: {told['task']}\n",
            *("| | |", "|---|---|", *table, ""),
            *("| rejected | candidates |", "|---|---|", *reasons, ""),
            f"Attempts that failed, spoken again or rejected: {again}. `{CARD}` has the voices and all settings.",
            "",
        ]
    )
