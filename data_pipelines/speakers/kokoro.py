"""Kokoro-82M (Apache-2.0, hexgrad; StyleTTS 2, arXiv 2306.07691) by onnxruntime, from a folder of one's own.

The network takes phonemes (espeak-ng's, respelt as it was trained on), a style of 256 numbers that depends on how many
there are, and a speed. A voice is a pack of styles, or a blend of two; pitch is changed by speaking at another speed
and resampling, which moves formants too, as in a smaller or larger speaker.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.speakers.espeak_engine import phonemes
from data_pipelines.speakers.speaker import Line, drawn, pace
from omnidiff_jax.config import suggest
from omnidiff_jax.errors import UserError
from omnidiff_jax.fetching import local_copy
from omnidiff_jax.media.features import resample
from omnidiff_jax.records import Waveform, stable_id
from omnidiff_jax.tokenizers.assets import fingerprint

RATE = 24000
_STYLES, _WIDTH = 510, 256  # a pack has a style for every number of phonemes
_LONGEST = 400  # phonemes spoken at once
_MARKS = ';:,.!?—…"()“”'
_ACCENTS = {"a": "gmw/en-US", "b": "gmw/en-GB-x-rp"}
# espeak's spelling -> the network's; diphthongs and affricates are one sign each.
_RESPELT = (
    *(
        ("eɪ", "A"),
        ("aɪ", "I"),
        ("aʊ", "W"),
        ("ɔɪ", "Y"),
        ("dʒ", "ʤ"),
        ("tʃ", "ʧ"),
        ("ɚɹ", "əɹ"),
        ("ɚ", "əɹ"),
        ("r", "ɹ"),
    ),
    *(("əl", "ᵊl"), ("ɐ", "ə"), ("ʲ", ""), ("\u0303", ""), ("\u0329", ""), ("x", "k"), ("ç", "k")),
)
_RESPELT_AS = {
    "a": (("oʊ", "O"), ("ɜː", "ɜɹ"), ("ɪə", "iə"), ("ː", "")),
    "b": (("əʊ", "Q"), ("eə", "ɛː"), ("iə", "ɪə")),
}


@dataclasses.dataclass(frozen=True)
class KokoroVoice:
    """A voice of packs.

    Attributes:
        pack: whose accent it has.
        blended: another pack.
        share: of the other pack's styles, 0 = none.
        speed: of speech.
        pitch: factor, in hundredths.
    """

    pack: str
    blended: str
    share: float = 0.0
    speed: float = 1.0
    pitch: int = 100

    @property
    def described(self) -> str:
        blend = f" with {self.share:.2f} of {self.blended}" if self.share else ""
        return f"{self.pack}{blend}, speed {self.speed:.2f}, pitch {self.pitch / 100:.2f}"


def asking_voice(number: int, packs: Sequence[str]) -> KokoroVoice:
    """Voice `number` of those that ask: every pack by itself first, then blends; speed and pitch differ in all."""
    pack = packs[number % len(packs)]
    blended = packs[(number + 1 + stable_id("blend", number) % max(len(packs) - 1, 1)) % len(packs)]
    share = drawn(0.2, 0.5, "share", number) if number >= len(packs) else 0.0
    pitch = round(drawn(94, 107, "pitch", number))
    return KokoroVoice(pack, blended, share, drawn(0.88, 1.15, "speed", number), pitch)


def respelt(text: str, language: str) -> str:
    """Phonemes of a text as the network reads them, marks of punctuation kept.

    Args:
        text: English.
        language: "a" or "b".
    """
    pieces = re.split(f"([{re.escape(_MARKS)}]+)", text)
    spoken = phonemes(pieces[::2], _ACCENTS[language])
    joined = "".join(
        part for said, mark in zip(spoken, [*pieces[1::2], ""], strict=True) for part in (said, mark and f"{mark} ")
    )
    for theirs, ours in (*_RESPELT, *_RESPELT_AS[language]):
        joined = joined.replace(theirs, ours)
    return " ".join(joined.split())


class KokoroSpeaker:
    """Voices of packs and their blends. See `speaker.Speaker`."""

    def __init__(
        self, folder: str, voices: int, answer: str, languages: str, licence: str = "Apache-2.0", session: Any = None
    ):
        """Args:
            folder, voices, answer, languages, licence: as `kinds.Kokoro` says.
            session: in place of the folder's network, an object with `run` and `get_inputs` of onnxruntime's.

        Raises:
            UserError: a file is missing or damaged, or onnxruntime is not installed.
        """
        place = local_copy(folder)
        if not place.is_dir():
            raise UserError(f"speaker.folder = {folder!r} is no folder; it must hold Kokoro (docs/data.md)")
        self._vocabulary = _vocabulary(place)
        self._packs = {file.stem: file for file in sorted((place / "voices").glob("*.bin"))}
        self._styles: dict[str, np.ndarray] = {}
        self._asking = [name for name in self._packs if name[0] in languages]
        strange = set(languages) - set(_ACCENTS)
        if strange or answer not in self._packs or answer[0] not in _ACCENTS:
            wanted = min(strange) if strange else answer
            known = _ACCENTS if strange else self._packs
            raise UserError(f"speaker: no {'language' if strange else 'pack'} {wanted!r}; {suggest(wanted, known)}")
        if not self._asking:
            raise UserError(f"{place}/voices has no pack of speaker.languages = {languages!r}")
        self._answer, self.voices, self.licence = (
            KokoroVoice(answer, answer),
            voices,
            licence,
        )
        self.name = f"kokoro-{fingerprint([place])[:8]}"
        self._session = session or _session(place)
        self._tokens, self._style, self._speed = (given.name for given in self._session.get_inputs())

    def say(self, lines: Sequence[Line]) -> list[Waveform]:
        """float32 at 24 kHz. The network takes one line at a time: its exports have no batch."""
        return [self._say(line) for line in lines]

    def described(self, voice: int | None) -> str:
        return self._voice(voice).described

    def _voice(self, number: int | None) -> KokoroVoice:
        return self._answer if number is None else asking_voice(number, self._asking)

    def _say(self, line: Line) -> Waveform:
        voice = self._voice(line.voice)
        pitch = voice.pitch / 100
        speed = np.array([voice.speed * pace(line.seed) / pitch], np.float32)
        spoken = []
        for part in parts(respelt(line.text, voice.pack[0])):
            ids = [self._vocabulary[sign] for sign in part if sign in self._vocabulary]
            if not ids:
                continue
            tokens = np.array([[0, *ids, 0]], np.int64)
            given = {self._tokens: tokens, self._style: self._styled(voice, len(ids)), self._speed: speed}
            spoken.append(np.asarray(self._session.run(None, given)[0], np.float32).ravel())
        samples = np.concatenate(spoken) if spoken else np.zeros(0, np.float32)
        return Waveform(np.clip(resample(samples, RATE // 100 * voice.pitch, RATE), -1.0, 1.0), RATE)

    def _styled(self, voice: KokoroVoice, length: int) -> np.ndarray:
        """float32 [1, 256], for so many phonemes."""
        first, other = (self._pack(name)[min(length, _STYLES) - 1] for name in (voice.pack, voice.blended))
        return ((1 - voice.share) * first + voice.share * other).astype(np.float32)

    def _pack(self, name: str) -> np.ndarray:
        if name not in self._styles:
            file = self._packs[name]
            if file.stat().st_size != 4 * _STYLES * _WIDTH:
                raise UserError(f"{file} must be {_STYLES} styles of {_WIDTH} float32; copy it again")
            self._styles[name] = np.fromfile(file, "<f4").reshape(_STYLES, 1, _WIDTH)
        return self._styles[name]


def parts(spelt: str) -> list[str]:
    """Phonemes in parts that are not too long for the network, cut after sentences where that is enough."""
    found: list[str] = []
    for sentence in re.split(r"(?<=[.!?…]) ", spelt):
        for begin in range(0, len(sentence), _LONGEST):
            piece = sentence[begin : begin + _LONGEST]
            if found and len(found[-1]) + len(piece) < _LONGEST:
                found[-1] += f" {piece}"
            else:
                found.append(piece)
    return found


def _vocabulary(folder: Path) -> Mapping[str, int]:
    """Phoneme -> id, of whichever JSON file of the folder has it."""
    for name in ("vocab.json", "config.json", "tokenizer.json"):
        try:
            content = json.loads((folder / name).read_bytes())
        except (OSError, ValueError):
            continue
        for place in (content, content.get("model", {})) if isinstance(content, dict) else ():
            if isinstance(vocabulary := place.get("vocab"), dict):
                return vocabulary
    raise UserError(f"{folder} has no vocab.json, config.json or tokenizer.json with the phonemes' ids; copy it there")


def _session(folder: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("speaker kokoro needs onnxruntime: pip install 'omnidiff_jax[kokoro]'") from error
    files = sorted(folder.glob("*.onnx"))
    if len(files) != 1:
        raise UserError(f"{folder} has {len(files)} files *.onnx; it must hold one, the network")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # a process a core; and sums are in one order
    try:
        return onnxruntime.InferenceSession(str(files[0]), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds
        raise UserError(f"{files[0]} cannot be read by onnxruntime ({str(error)[:200]}); copy it again") from error
