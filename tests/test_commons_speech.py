"""What the programs of speech learn from Commons: clips that are there, voices and sentences that are held out."""

import json

import numpy as np
import pytest
from commons_toys import write_world

from data_pipelines.commons.heard import whole_sentences
from data_pipelines.commons.speaking import pieces, speak
from data_pipelines.commons.speech import open_clips
from data_pipelines.commons.tasks import make_record
from data_pipelines.commons.things import open_world
from data_pipelines.commons.tokenizers.speech import CommonsSpeechEncoderRun, heard_pieces, said, whisper_judge
from experiments.common import load_config
from experiments.programs import TOKENIZERS
from omnidiff_jax.config import build
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import Waveform
from omnidiff_jax.tokenizers.text import SentencePieceConfig
from omnidiff_jax.training.tokenizers.spoken import joined

CONFIGS = "experiments/configs/tokenizers"
SETTINGS = {"speaker": {"kind": "espeak", "voices": 3}, "held_out": 0.34, "voices_of_name": 1, "sentences": 40}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A miniature of Commons whose clips are spoken, but for those of exams."""
    place = tmp_path_factory.mktemp("commons")
    write_world(place)
    (place / "clips").mkdir()
    (place / "clips" / "speech.json").write_text(json.dumps(SETTINGS))
    world, clips = open_world(str(place)), open_clips(f"{place}/clips")
    speak(clips, pieces(world, clips))
    return place


@pytest.fixture(scope="module")
def world(folder):
    return open_world(str(folder))


@pytest.fixture(scope="module")
def clips(folder):
    return open_clips(f"{folder}/clips")


def silent(clips, monkeypatch):
    monkeypatch.setattr(clips._gate, "spoken", lambda lines: pytest.fail(f"{lines} were spoken"))


def test_what_is_learned_is_joined_of_clips_that_are_there(world, clips, monkeypatch):
    silent(clips, monkeypatch)
    for name in ("asr", "tts"):
        utterance = said(world, clips.kept(), name, ("train",))
        first, again = utterance(7), utterance(7)
        assert first[1] == again[1] and (first[0].samples == again[0].samples).all()
        assert len({utterance(index)[1] for index in range(12)}) > 4
    heard = said(world, clips.kept(), "asr", ("train",))
    assert not any(mark in text for index in range(30) for mark in ",?:" for text in [heard(index)[1]])


def test_whole_sentences_are_heard_in_learned_voices_beside_joined_ones(world, clips, monkeypatch):
    """All that training hears is among the pieces that are spoken ahead; a picture has no sentence of its own."""
    ahead, heard = set(pieces(world, clips)), []
    monkeypatch.setattr(
        clips,
        "joined",
        lambda texts, voice, *how: heard.append((texts, voice)) or Waveform(np.ones(9, np.float32), 16000),
    )
    whole = set(whole_sentences(world, clips))
    assert 20 < len(whole) <= 40 and whole <= ahead
    assert {voice for _, voice in whole} <= set(clips.voices(learned=True))
    kinds = {text.split()[0] for text, _ in whole}
    assert {"what", "is"} <= kinds and kinds & {"draw", "please", "show", "a"}
    for name, some in (("asr", True), ("spoken_qa", True), ("s2i", True), ("spoken_vqa", False)):
        heard.clear()
        records = [make_record(world, name, index, "train", clips) for index in range(60)]
        asked = [(texts, voice) for texts, voice in heard if voice is not None]
        assert {(text, voice) for texts, voice in heard for text in texts} <= ahead
        found = [voiced for texts, voice in asked if len(texts) == 1 and (voiced := (texts[0], voice)) in whole]
        assert 12 < len(found) < 48 if some else len({text for text, _ in found}) < 2
        assert all(record.meta["heard"] for record in records)


def test_a_sentence_without_all_of_its_clips_is_left_out(world, clips, folder, monkeypatch):
    silent(clips, monkeypatch)
    learned = said(world, clips.kept(), "tts", ("train",))
    (missing,) = clips._folder.glob("answer/an-owl-*.wav")
    content = missing.read_bytes()
    assert any("owl" in learned(index)[1] for index in range(60))
    missing.unlink()
    try:
        assert not any("owl" in learned(index)[1] for index in range(60))
    finally:
        missing.write_bytes(content)
    bare = open_clips(f"{folder}/clips").kept()
    bare._folder = folder / "nothing"
    with pytest.raises(UserError, match=rf"none has all of its clips .*run `omnidiff data speak {folder}`$"):
        said(world, bare, "asr", ("train",))(0)


def test_held_out_sentences_are_in_other_voices_and_of_other_things(world, clips, monkeypatch):
    voices = []
    monkeypatch.setattr(
        clips,
        "joined",
        lambda texts, voice, *how: voices.append((texts, voice)) or Waveform(np.ones(9, np.float32), 16000),
    )
    heard = said(world, clips, "asr", ("test",))
    for index in range(6):
        heard(index)
    assert {voice for _, voice in voices} <= set(clips.voices(learned=False))
    assert all(len(texts) == 1 for texts, _ in voices), "a whole sentence"
    never = {thing.one for thing in world.of(True)}
    answered = said(world, clips, "tts", ("test", "concepts"))
    texts = [answered(index)[1] for index in range(24)]
    assert any(name in text for text in texts[1::2] for name in never)
    assert not any(name in text for text in texts[::2] for name in never)


def test_pieces_spell_what_is_never_learned(world):
    text = heard_pieces(world, SentencePieceConfig(kind="bpe", size=400))
    for thing in world.things:
        assert text.decode(text.encode(thing.one)) == thing.one
    assert len(text.encode("what kind of thing is")) <= 6


def test_utterances_are_joined_in_their_order():
    one = lambda index: (Waveform(np.full(2, index, np.float32), 8000), f"{index}")  # noqa: E731
    wave, text = joined(one, 3)(2)
    assert text == "6 7 8" and wave.rate == 8000 and wave.samples.tolist() == [6, 6, 7, 7, 8, 8]


def test_no_judge_without_a_whisper(folder):
    assert whisper_judge(folder) is None


def test_the_encoder_opens_on_held_out_voices(folder, clips, monkeypatch):
    silent(clips, monkeypatch)
    words = [f"--config.folder={folder}", "--config.pieces.size=400"]
    words += ["--config.training.utterances=6", "--config.training.cmvn_utterances=3"]
    config = load_config(f"{CONFIGS}/commons_speech_encoder.py", words)
    assert TOKENIZERS[config.program] is CommonsSpeechEncoderRun
    program = build(CommonsSpeechEncoderRun, config).open().program
    pieces_known = program.hearing.units
    assert program.config.encoder.vocab_size == len(pieces_known) + 1
    batch = next(program.batches(0))
    assert (batch["labels"].max() <= len(pieces_known)) and batch["lengths"].any()
