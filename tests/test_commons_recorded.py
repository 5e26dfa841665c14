"""Recorded people: what is said in which recording, an exam of it, and that nothing else may be made of it."""

import json
import types

import numpy as np
import pytest
from commons_toys import write_world

from data_pipelines.commons import recorded
from data_pipelines.commons.packages import PARTS
from data_pipelines.commons.recorded import TEXTS, known_words, prompts, recorded_exam
from data_pipelines.commons.things import open_world
from experiments.programs import EXAMS, READERS
from omnidiff_jax.answering.queries import Response
from omnidiff_jax.data.readers import SourceConfig, check_learned
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.exam import sit
from omnidiff_jax.media.audio import write_wav
from omnidiff_jax.records import Waveform

TRANSCRIPTS = """; a comment
digits/1: one
vm-goodbye: Goodbye. (pause)
owl: an owl, 2
beep: [a tone]
long: never ends
gone: no file
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("commons")
    write_world(place)
    rng = np.random.default_rng(0)
    for number, name in enumerate(("digits/1", "vm-first", "vm-goodbye", "owl", "beep", "long", "unknown")):
        seconds = 9 if name == "long" else 0.2 + number / 100
        speech = rng.standard_normal(int(8000 * seconds)).astype(np.float32) / 9
        write_wav(place / f"prompts/wavs/{name}.wav", Waveform(speech, 8000))
    write_wav(place / "recorded/librivox/a-1.wav", Waveform(rng.standard_normal(4000).astype(np.float32) / 9, 16000))
    lines = "<s> he was not an ill disposed young man </s> (a-1)\n<s> no such file </s> (a-2)\n"
    (place / "recorded/librivox/transcription").write_text(lines)
    for part in ("prompts", "recorded"):
        (place / part / "about.json").write_text(json.dumps({"holds": PARTS[part].holds}))
    return place


@pytest.fixture
def judge(monkeypatch):
    """A recogniser that hears "one" in all there is, and keeps what it heard."""
    heard = []
    hear = lambda speech: heard.append(speech) or "one"  # noqa: E731
    monkeypatch.setattr(recorded, "judge", lambda part, folder: types.SimpleNamespace(name="deaf", hear=hear))
    return heard


class Scripted:
    """A model that answers everything with one text."""

    def __init__(self, text):
        self.text = text

    def __call__(self, task, requests, strips=False):
        return [Response(text=self.text) for _ in requests]

    def decoding(self, task):
        return task.decoding


def test_what_is_said_is_told_by_names_and_by_a_file(folder):
    told = lambda: {one.file.stem: one.text for one in prompts(folder)}  # noqa: E731
    assert told() == {"1": "one", "vm-first": "first"}
    (folder / TEXTS).write_text(TRANSCRIPTS)
    try:
        found = told()
        assert found == {"1": "one", "vm-first": "first", "vm-goodbye": "Goodbye.", "owl": "an owl, 2"} | {
            "long": "never ends"
        }
    finally:
        (folder / TEXTS).unlink()


def test_the_exam_has_words_of_commons_with_others_beside(folder, judge):
    assert {"owl", "what", "one", "of"} <= known_words(open_world(str(folder)))
    (folder / TEXTS).write_text(TRANSCRIPTS)
    try:
        found = recorded_exam("asr", 9, str(folder))
    finally:
        (folder / TEXTS).unlink()
    texts = lambda one: {case.meta["answer"] for case in one.cases}  # noqa: E731
    assert texts(found) == {"one"}, "first is no word of this miniature"
    assert texts(found.further["prompts"]) == {"first", "Goodbye.", "an owl, 2"}, "nothing of 9 s"
    assert texts(found.further["reading"]) == {"he was not an ill disposed young man"}
    assert all(case.request.audio.rate == 8000 for case in found.cases)
    pytest.importorskip("whisper_normalizer", reason="the extra commons")
    entry = sit(found, Scripted("1")).entry
    assert entry["value"] == 0 and entry["metric"] == "word error rate", "numbers are written in either way"
    (also,) = entry["also"]
    assert also["judge"] == "deaf" and also["value"] == also["ceiling"] == also["floor"] == 0
    beside = entry["further"]["prompts"]
    assert beside["n"] == 3 and beside["also"][0]["value"] == pytest.approx(1.0)
    assert len(judge) == 5, "each recording is heard once"


def test_few_cases_are_the_same_ones(folder):
    few, all_of_them = (recorded_exam("asr", count, str(folder)) for count in (1, 9))
    assert few.cases[0].request.request_id == all_of_them.cases[0].request.request_id
    assert len(all_of_them.measures) == 1, "no Whisper here"


def test_what_is_missing_is_named(tmp_path, folder):
    with pytest.raises(UserError, match=r"needs Commons: --data=DIR"):
        EXAMS["recorded"].exam("asr", 1, None)
    write_world(tmp_path)
    with pytest.raises(UserError, match=r"prompts/wavs is missing; get it by .* --part=prompts`$"):
        recorded_exam("asr", 1, str(tmp_path))
    (tmp_path / "prompts").symlink_to(folder / "prompts")
    with pytest.raises(UserError, match=r"cannot read .*transcription .* --part=recorded`$"):
        recorded_exam("asr", 1, str(tmp_path))


@pytest.mark.parametrize("reader", ["jsonl", "folder", "librispeech"])
def test_nothing_is_trained_on_them(folder, tmp_path, reader):
    for place in ("prompts", "prompts/wavs/digits", "recorded/librivox/set.jsonl", ""):
        source = SourceConfig(reader, "asr", str(folder / place), split="mine")
        with pytest.raises(UserError, match="is test data of the exam `recorded` on Commons: who trains on it"):
            check_learned("mine", source, READERS[reader])
    elsewhere = SourceConfig(reader, "asr", str(tmp_path), root=str(folder / "prompts"), split="mine")
    with pytest.raises(UserError, match="test data"):
        check_learned("mine", elsewhere, READERS[reader])
    for fine in (str(tmp_path / "of" / "mine"), str(folder / "google" / "pictures"), "gs://bucket/prompts"):
        check_learned("mine", SourceConfig(reader, "asr", fine, split="mine"), READERS[reader])
