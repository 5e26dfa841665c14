"""How speech sounds and what is heard in it: windows, opinions and words by stand-ins of the networks."""

import sys
import types

import numpy as np
import pytest

from omnidiff_jax.answering.queries import Request, Response
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.exam import Case
from omnidiff_jax.evaluation.judges import dnsmos
from omnidiff_jax.evaluation.judges.dnsmos import NOTHING, DnsmosJudge, Opinion, windows
from omnidiff_jax.evaluation.judges.named import JUDGES, open_judge
from omnidiff_jax.evaluation.normalisers import Normaliser
from omnidiff_jax.evaluation.sounds import heard, sounding
from omnidiff_jax.records import Waveform

RNG = np.random.default_rng(0)


class Session:
    """A network whose raw outputs are told; keeps what it is given."""

    def __init__(self, *raw):
        self.raw, self.given = list(raw), []

    def run(self, outputs, given):
        self.given.append(given["input_1"])
        return [np.array([self.raw[(len(self.given) - 1) % len(self.raw)]], np.float32)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / dnsmos.FILE).write_bytes(b"x")
    return tmp_path


def clip(seconds, rate=16000):
    return Waveform(RNG.standard_normal(int(seconds * rate)).astype(np.float32) / 8, rate)


# Number of windows that the official script takes: of a clip as it is, of one that it doubles first.
@pytest.mark.parametrize(
    ("seconds", "count"), [(9.01, 1), (9.99, 1), (10, 1), (11, 2), (16, 7), (18, 7), (5, 1), (6.0, 3), (8.5, 7)]
)
def test_windows_are_those_of_the_official_script(seconds, count):
    samples = clip(seconds).samples
    found = windows(samples)
    assert len(found) == count and all(window.shape == (144160,) for window in found)
    times = -(-144160 // len(samples))
    endless = np.tile(samples, 2 * times)
    for second, window in enumerate(found):
        np.testing.assert_array_equal(window, endless[second * 16000 :][:144160])


def test_opinions_are_polynomials_of_the_raw_ones(folder):
    session = Session((3.0, 4.0, 2.0), (1.0, 1.0, 1.0))
    judge = DnsmosJudge(folder, session)
    assert judge.name.startswith("dnsmos-")
    # a square + b raw + c, by hand.
    expected = np.array(
        [
            -0.08397278 * 9 + 1.22083953 * 3 + 0.0052439,
            -0.13166888 * 16 + 1.60915514 * 4 - 0.39604546,
            -0.06766283 * 4 + 1.11546468 * 2 + 0.04602535,
        ]
    )
    np.testing.assert_allclose(judge.opinion(clip(9.01)), expected, rtol=1e-6)
    session.given.clear()
    long = clip(11, 24000)
    ones = [-0.08397278 + 1.22083953 + 0.0052439, -0.13166888 + 1.60915514 - 0.39604546, 1.0938272]
    np.testing.assert_allclose(judge.opinion(long), (expected + ones) / 2, rtol=1e-6)
    assert len(session.given) == 2 and session.given[0].shape == (1, 144160)
    assert judge.opinion(long).overall > 0 and len(session.given) == 2  # a clip is heard once
    assert judge.opinion(Waveform(np.zeros(0, np.float32), 16000)) == NOTHING


def test_what_cannot_judge(folder, monkeypatch):
    with pytest.raises(UserError, match="cannot be read as a network"):
        pytest.importorskip("onnxruntime", reason="the extra commons")
        open_judge(f"dnsmos:{folder}", "speech quality")
    with pytest.raises(UserError, match="reads speech quality; this exam needs one of speech: whisper, pocketsphinx"):
        open_judge(f"dnsmos:{folder}", "speech")
    other = types.SimpleNamespace(name="image", shape=["N", 3, 224, 224])
    stand_in = types.SimpleNamespace(
        SessionOptions=types.SimpleNamespace,
        InferenceSession=lambda *_, **__: types.SimpleNamespace(get_inputs=lambda: [other]),
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", stand_in)
    with pytest.raises(UserError, match="is not DNSMOS: it takes image"):
        DnsmosJudge(folder)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs onnxruntime: pip install 'omnidiff_jax\[commons\]'"):
        DnsmosJudge(folder)
    (folder / dnsmos.FILE).unlink()
    with pytest.raises(UserError, match=r"has no sig_bak_ovr.onnx"):
        DnsmosJudge(folder)
    assert {kind.reads for kind in JUDGES.values()} == {"speech", "speech quality", "picture", "picture features"}


def test_speech_in_memory_is_heard_once_and_its_words_counted():
    clips = [clip(0.1, rate) for rate in (16000, 24000, 22050)]
    texts = dict(zip((len(c.samples) for c in clips), ("A cat.", "a dog", "two red cars"), strict=True))
    asked = []

    def hear(speech):
        asked.append(speech)
        return texts.get(len(speech.samples), "")

    measure = heard(types.SimpleNamespace(name="ear", hear=hear), Normaliser())
    assert (measure.judge, measure.higher_is_better) == ("ear", False)
    cases = [Case(Request(), Response(), {"spoken": text}) for text in ("a cat", "a frog", "two red cars", "gone")]
    responses = [*(Response(audio=c) for c in clips), Response()]
    for _ in range(3):
        errors, words = measure.score(responses, cases)
        assert errors.tolist() == [0, 1, 0, 1] and words.tolist() == [2, 2, 3, 1]
    assert len(asked) == 4
    errors, words = measure.score(responses[2:] + responses[:2], cases)
    assert errors.sum() / words.sum() > 0.8 and len(asked) == 4


def test_how_answers_sound():
    judge = types.SimpleNamespace(name="mos", opinion=lambda speech: Opinion(4.0, 4.0, speech.seconds))
    measure = sounding(judge)
    top, bottom = measure.score([Response(audio=clip(3)), Response()], [None, None])
    assert top.tolist() == [3.0, 1.0] and bottom.tolist() == [1.0, 1.0] and measure.higher_is_better
