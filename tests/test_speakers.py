"""Speakers: the same samples for the same line, as many voices as promised; and the gate that every clip passes."""

import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.speakers import gate as gates
from data_pipelines.speakers.cloned import Request
from data_pipelines.speakers.espeak_engine import phonemes
from data_pipelines.speakers.gate import Gate, GateConfig, fault
from data_pipelines.speakers.kinds import Cloned, Kokoro, ScenesSpeaker, SpeakerConfig
from data_pipelines.speakers.kokoro import KokoroSpeaker, asking_voice, parts, respelt
from data_pipelines.speakers.speaker import Line, pace
from omnidiff_jax.config import build, to_dict
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.normalisers import Normaliser, Whisper
from omnidiff_jax.media.audio import write_wav
from omnidiff_jax.records import Waveform

RATE = 16000
QUESTION = "What is on the table?"


def tone(seconds, level=0.5, rate=RATE):
    return (level * np.sin(np.arange(round(seconds * rate)) * 0.3)).astype(np.float32)


def quiet(seconds):
    return np.zeros(round(seconds * RATE), np.float32)


# ---- espeak ------------------------------------------------------------------------------------------------


def test_a_thousand_voices_of_espeak_are_all_different():
    speaker = SpeakerConfig().open()
    assert speaker.voices == 1000 and len({speaker.described(voice) for voice in range(1000)}) == 1000
    with pytest.raises(UserError, match="1024"):
        SpeakerConfig(voices=1025).open()


def test_a_line_is_the_same_again_and_another_seed_says_it_otherwise():
    speaker = SpeakerConfig().open()
    lines = [Line(QUESTION, 3), Line(QUESTION, 400), Line(QUESTION, None), Line(QUESTION, 3, seed=1)]
    together = speaker.say(lines)
    for line, speech in zip(reversed(lines), reversed(together), strict=True):
        (alone,) = speaker.say([line])
        np.testing.assert_array_equal(alone.samples, speech.samples)
    assert len({speech.samples.tobytes() for speech in together}) == 4
    assert together[3].seconds > together[0].seconds, "what was not understood is said more slowly"
    assert pace(0) == 1.0 and all(0.8 < pace(seed) < 1.0 for seed in range(1, 50))


def test_answers_on_the_grid_are_those_of_scenes():
    whole, by_word = (
        config.open().say([Line("a red circle", None)])[0] for config in (SpeakerConfig(), ScenesSpeaker())
    )
    assert len(by_word.samples) % 1280 == 0 and len(whole.samples) % 1280 != 0


def test_phonemes_of_clauses():
    assert phonemes(["red", "", "big boats"], "gmw/en-US") == ["ɹˈɛd", "", "bˈɪɡ bˈoʊts"]


# ---- Kokoro ------------------------------------------------------------------------------------------------


class Network:
    """What onnxruntime's session of Kokoro does, in short: half a second a phoneme, by style and speed."""

    def __init__(self):
        self.given = []

    def get_inputs(self):
        return [types.SimpleNamespace(name=name) for name in ("tokens", "style", "speed")]

    def run(self, outputs, given):
        self.given.append(given)
        assert given["tokens"].dtype == np.int64 and given["style"].shape == (1, 256)
        length = (given["tokens"].shape[1] - 2) / 20 / float(given["speed"][0])
        return [tone(length, float(given["style"][0, 0]), 24000)]


@pytest.fixture
def kokoro(tmp_path):
    """A folder of the form, whose packs are constant, and a config of it."""
    (tmp_path / "voices").mkdir()
    for number, name in enumerate(("af_heart", "am_adam", "bf_emma", "ff_siwis")):
        np.full((510, 1, 256), 0.2 + 0.2 * number, "<f4").tofile(tmp_path / "voices" / f"{name}.bin")
    signs = "$ " + respelt("The quick brown fox jumps over a lazy dog, what is on the table?", "a")
    (tmp_path / "config.json").write_text(
        json.dumps({"vocab": {sign: i for i, sign in enumerate(dict.fromkeys(signs))}})
    )
    return Kokoro(folder=str(tmp_path))


def opened(config):
    """A speaker of the config, with a stand-in for the network."""
    return KokoroSpeaker(config.folder, config.voices, config.answer, config.languages, session=Network())


def test_kokoro_speaks_in_packs_blends_speeds_and_pitches(kokoro):
    speaker = opened(kokoro)
    network = speaker._session
    assert speaker.voices == 1000 and len({asking_voice(n, ["a", "b", "c"]) for n in range(1000)}) == 1000
    assert all("ff_siwis" not in speaker.described(voice) for voice in range(50)), "only English packs ask"
    assert speaker.described(None).startswith("af_heart, speed 1.00, pitch 1.00")
    lines = [Line(QUESTION, voice) for voice in (0, 1, 700, None)] + [Line(QUESTION, 0, seed=2)]
    clips = speaker.say(lines)
    styles = [float(given["style"][0, 0]) for given in network.given]
    assert styles[:2] == pytest.approx([0.2, 0.4]) and 0.2 < styles[2] < 0.6 and styles[3] == pytest.approx(0.2)
    assert len({clip.samples.tobytes() for clip in clips}) == 5
    assert all(clip.rate == 24000 and clip.samples.dtype == np.float32 for clip in clips)
    assert clips[4].seconds > clips[0].seconds
    # A pitch is spoken at another speed and resampled: the length is that of the voice's own speed.
    phonemes_said = network.given[0]["tokens"].shape[1] - 2
    told = speaker.described(0)
    speed = float(told.split("speed ")[1].split(",")[0])
    assert clips[0].seconds == pytest.approx(phonemes_said / 20 / speed, rel=0.01)


def test_kokoro_cuts_long_texts_after_sentences():
    text = " ".join(["abc def."] * 120)
    found = parts(text)
    assert len(found) > 1 and all(len(part) <= 400 for part in found)
    assert " ".join(found) == text and all(part.endswith(".") for part in found)
    assert "".join(parts("a" * 1000)) == "a" * 1000


def test_kokoro_folders_that_cannot_be_used(kokoro, monkeypatch):
    folder = Path(kokoro.folder)
    with pytest.raises(UserError, match="af_heart"):
        opened(Kokoro(folder=kokoro.folder, answer="af_hart"))
    with pytest.raises(UserError, match="language 'f'"):
        opened(Kokoro(folder=kokoro.folder, languages="af"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="omnidiff_jax\\[kokoro\\]"):
        kokoro.open()
    (folder / "voices" / "af_heart.bin").write_bytes(b"short")
    with pytest.raises(UserError, match=r"af_heart\.bin"):
        opened(kokoro).say([Line("red", None)])
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"vocab\.json"):
        opened(kokoro)
    with pytest.raises(UserError, match="no folder"):
        Kokoro(folder=str(folder / "nowhere")).open()


# ---- cloning -----------------------------------------------------------------------------------------------

ASKED: list[list[Request]] = []


def speak(requests):
    """The function that a cloning model's package would give."""
    ASKED.append(requests)
    return [Waveform(np.tile(one.clip.samples[:800], len(one.text)) * 0.9**one.seed, one.clip.rate) for one in requests]


def too_few(requests):
    return []


@pytest.fixture
def clips(tmp_path):
    for number, name in enumerate(("anna", "ben", "cara")):
        write_wav(tmp_path / f"{name}.wav", Waveform(tone(1.0, 0.2 + 0.2 * number), RATE))
        (tmp_path / f"{name}.txt").write_text(f"This is {name}.\n")
    ASKED.clear()
    return Cloned(function=f"{__name__}:speak", clips=str(tmp_path), answer="ben", batch=2, licence="CC0-1.0")


def test_a_cloning_model_speaks_in_the_voices_of_clips(clips):
    speaker = clips.open()
    assert speaker.voices == 2 and speaker.licence == "CC0-1.0"
    assert [speaker.described(voice) for voice in (0, 1, None)] == ["clip anna.wav", "clip cara.wav", "clip ben.wav"]
    lines = [Line("one", 0), Line("two two", 1), Line("three", None, seed=4)]
    said = speaker.say(lines)
    assert [len(batch) for batch in ASKED] == [2, 1]
    assert [request.words for batch in ASKED for request in batch] == ["This is anna.", "This is cara.", "This is ben."]
    assert [request.seed for batch in ASKED for request in batch] == [0, 0, 4]
    assert [len(speech.samples) for speech in said] == [800 * len(line.text) for line in lines]


def test_cloning_models_that_cannot_be_used(clips):
    def refused(match, **others):
        with pytest.raises(UserError, match=match):
            Cloned(**{**{name: getattr(clips, name) for name in ("function", "clips", "answer")}, **others}).open()

    refused("cannot be imported", function="no.such.package:speak")
    refused("cannot be imported", function=f"{__name__}:spaek")
    refused("no function", function=f"{__name__}:ASKED")
    refused("'ben'", answer="bem")
    refused("no folder", clips=os.path.join(clips.clips, "nowhere"))
    with pytest.raises(UserError, match="0 waveforms for 1"):
        Cloned(function=f"{__name__}:too_few", clips=clips.clips, answer="ben").open().say([Line("a", 0)])
    Path(clips.clips, "cara.txt").unlink()
    refused(r"cara\.wav")


def test_kinds_are_named_in_configs(clips):
    for config in (SpeakerConfig(), ScenesSpeaker(voices=20), Kokoro(folder="k"), clips):
        assert build(SpeakerConfig, to_dict(config)) == config
    with pytest.raises(UserError, match="kokoro"):
        build(SpeakerConfig, {"kind": "kokorro"})


# ---- the gate ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "words", "reason"),
    [
        (tone(2.0), 5, ""),
        (quiet(2.0), 5, gates.SILENT),
        (quiet(0.0), 5, gates.SILENT),
        (np.full(RATE, np.nan, np.float32), 5, gates.SILENT),
        (np.clip(tone(2.0, 1.5), -1, 1), 5, gates.CLIPPED),
        (tone(2.0, 0.99), 5, ""),
        (np.concatenate([tone(1.0), quiet(1.6), tone(1.0)]), 5, gates.PAUSE),
        (np.concatenate([tone(1.0), quiet(1.4), tone(1.0)]), 5, ""),
        (np.concatenate([quiet(3.0), tone(2.0), quiet(3.0)]), 5, ""),
        (tone(0.4), 5, gates.PACE),
        (tone(8.0), 5, gates.PACE),
        (np.concatenate([quiet(3.0), tone(0.4), quiet(3.0)]), 5, gates.PACE),
    ],
)
def test_faults_of_a_signal(samples, words, reason):
    assert fault(Waveform(samples, RATE), words, GateConfig()) == reason


class Attempts:
    """A speaker whose clips are as loud as their place in a script, which says what its listener hears."""

    name, licence, voices = "attempts", "none", 1

    def __init__(self, script):
        self.calls = []
        self._places = [(text, seed) for text, heard in script.items() for seed in range(len(heard))]
        self._heard = [said for heard in script.values() for said in heard]

    def say(self, lines):
        self.calls.append([(line.text, line.seed) for line in lines])
        levels = [0.1 + 0.05 * self._places.index((line.text, line.seed)) for line in lines]
        return [Waveform(tone(1.0, level), RATE) for level in levels]

    def hear(self, speech):
        return self._heard[round((float(speech.samples.max()) - 0.1) / 0.05)]


def test_what_is_not_understood_is_said_again_and_then_rejected():
    script = {
        "a red fox": ["A red fox."],
        "the big blue boat": ["the pig blew a boat", "the big blue boat"],
        "one two": ["won too", "one to", "on two"],
    }
    speaker = Attempts(script)
    spoken = Gate(GateConfig(), speaker, speaker.hear).spoken([Line(text, 0) for text in script])
    assert [clip.accepted for clip in spoken] == [True, True, False]
    assert [clip.failed for clip in spoken] == [(), (gates.NOT_UNDERSTOOD,), (gates.NOT_UNDERSTOOD,) * 3]
    assert [(clip.errors, clip.words, clip.line.seed) for clip in spoken] == [(0, 3, 0), (0, 4, 1), (1, 2, 2)]
    assert speaker.calls == [
        [(text, 0) for text in script],
        [("the big blue boat", 1), ("one two", 1)],
        [("one two", 2)],
    ]
    lenient = Gate(GateConfig(word_error_rate=0.5, attempts=1), speaker, speaker.hear)
    assert [clip.accepted for clip in lenient.spoken([Line(text, 0) for text in script])] == [True, False, False]


def test_words_are_compared_as_the_normaliser_says():
    speaker = Attempts({"ten red": ["10 red"]})

    def accepted(normaliser):
        (clip,) = Gate(GateConfig(normaliser=normaliser, attempts=1), speaker, speaker.hear).spoken(
            [Line("ten red", 0)]
        )
        return clip.accepted

    assert not accepted(Normaliser())
    pytest.importorskip("whisper_normalizer")
    assert accepted(Whisper())


def test_thresholds_come_from_configs():
    config = build(GateConfig, {"seconds_per_word": [0.2, 0.9], "normaliser": "whisper", "judge": "whisper:W"})
    assert config.seconds_per_word == (0.2, 0.9) and isinstance(config.normaliser, Whisper)
    for wrong, match in (
        ({"seconds_per_word": [0.9, 0.2]}, "least stands first"),
        ({"word_error_rate": 1.5}, "word_error_rate"),
        ({"attempts": 0}, "attempts"),
    ):
        with pytest.raises(UserError, match=match):
            build(GateConfig, wrong)
    with pytest.raises(UserError, match="judge"):
        Gate(GateConfig(judge="whispr:X"), Attempts({}))
