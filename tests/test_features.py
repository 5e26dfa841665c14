"""Acoustic features: the released numbers, librosa's filters, and inverses."""

import math

import librosa
import numpy as np
import pytest
import scipy.signal

from omnidiff_jax.errors import UserError
from omnidiff_jax.media import features as F


@pytest.fixture(scope="module")
def frontend(golden):
    return np.load(golden / "01_sensevoice_frontend.npz")


def pipeline(samples, fixture, noise=None):
    stacked = F.stack_frames(F.fbank(samples, noise=noise))
    return F.normalise(stacked, fixture["in/cmvn_shift"], fixture["in/cmvn_scale"])


def test_released_front_end(frontend):
    wave = frontend["in/waveform"]
    fbank = F.fbank(wave)
    np.testing.assert_allclose(fbank, frontend["out/fbank"], rtol=0, atol=1e-3)
    np.testing.assert_array_equal(F.stack_frames(frontend["out/fbank"]), frontend["out/lfr"])
    np.testing.assert_allclose(F.fbank(np.zeros(800, np.float32)), frontend["out/fbank_silence800"], atol=1e-5)
    filters = F.kaldi_filters(80, 257, 16000, 20.0)[:256].T  # the reference makes them in float32
    np.testing.assert_allclose(filters, frontend["out/mel_banks_80x256"], rtol=0, atol=2e-5)
    for name, samples, noise in [
        ("features", wave, None),
        ("features_dither1", wave, frontend["in/dither_noise"]),
        ("features_short", frontend["in/waveform_short"], None),
        ("features_len400", wave[:400], None),
        ("features_len16007", wave[:16007], None),
    ]:
        expected = frontend[f"out/{name}"]
        np.testing.assert_allclose(pipeline(samples, frontend, noise), expected, rtol=0, atol=1e-4, err_msg=name)
        assert len(expected) == F.num_stacked(F.num_frames(len(samples)))


def test_stacking_is_exact_for_every_length(frontend):
    cases = [name for name in frontend.files if name.startswith("in/lfr_case_T")]
    assert len(cases) == 12
    for name in cases:
        expected = frontend[name.replace("in/", "out/")]
        np.testing.assert_array_equal(F.stack_frames(frontend[name]), expected, err_msg=name)


def test_rates(golden):
    rates = np.load(golden / "08_rates.npz")
    for n, frames, stacked, tokens in zip(
        *(rates[k] for k in ("in/n_samples_16k", "out/kaldi_frames", "out/lfr_frames", "out/audio_context_tokens")),
        strict=True,
    ):
        assert F.num_frames(int(n)) == frames
        assert F.num_stacked(int(frames)) == stacked
        assert stacked + 4 == tokens


def test_released_resampling(golden):
    fixture = np.load(golden / "09_resample.npz")
    for rate in (8000, 22050, 24000, 48000):
        out = F.resample(fixture[f"in/wave_{rate}"], rate, 16000)
        np.testing.assert_allclose(out, fixture[f"out/wave_{rate}_to_16000"], rtol=0, atol=2e-5, err_msg=str(rate))


@pytest.mark.parametrize(
    "source, target", [(44100, 16000), (44101, 16000), (16000, 22050), (96000, 16000), (8000, 8000)]
)
def test_resampling_keeps_a_tone(source, target):
    """Any pair of rates, coprime ones included: the tone comes out where it should, at its amplitude."""
    tone = lambda rate: np.sin(2 * np.pi * 1000 * np.arange(rate // 4) / rate).astype(np.float32)  # noqa: E731
    out = F.resample(tone(source), source, target)
    assert out.dtype == np.float32
    assert len(out) == -(-(source // 4) * target // source)
    edge = 200
    np.testing.assert_allclose(out[edge:-edge], tone(target)[edge : len(out) - edge], atol=5e-3)


@pytest.mark.parametrize("source, target", [(44100, 16000), (48000, 16000), (8000, 16000), (44101, 16000)])
@pytest.mark.parametrize("samples", [0, 1, 2, 441, 20_011])
def test_resampling_is_scipys_upfirdn_to_the_bit(source, target, samples):
    wave = np.random.default_rng(samples).normal(0, 0.2, samples).astype(np.float32)
    divisor = math.gcd(source, target)
    up, down = target // divisor, source // divisor
    taps, lead = F._sinc_filter(up, down, 6, 0.99)
    padded = np.pad(wave, (0, len(taps) // up + down))
    expected = scipy.signal.upfirdn(taps, padded, up, down)[lead : lead + -(-samples * up // down)]
    np.testing.assert_array_equal(F.resample(wave, source, target), expected)


@pytest.mark.parametrize("length", [400, 1024])
def test_the_window_is_scipys_to_the_bit(length):
    np.testing.assert_array_equal(F._hann(length), scipy.signal.get_window("hann", length).astype(np.float32))


def test_cmvn(tmp_path):
    random = np.random.default_rng(0)
    clips = [random.normal([3.0, -1.0], [2.0, 0.5], (n, 2)) for n in (300, 500)]
    shift, scale = F.estimate_cmvn(clips)
    normal = F.normalise(np.concatenate(clips), shift, scale)
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std(0), 1, atol=1e-4)
    path = tmp_path / "am.mvn"
    path.write_text(
        "<Nnet>\n<Splice> 2 2\n[ 0 ]\n<AddShift> 2 2\n<LearnRateCoef> 0 [ -8.5 -9.25 ]\n"
        "<Rescale> 2 2\n<LearnRateCoef> 0 [ 0.5 0.25 ]\n</Nnet>\n"
    )
    assert F.read_cmvn(path) == ((-8.5, -9.25), (0.5, 0.25))
    path.write_text("<AddShift> 1 1 [ 0 ]")
    with pytest.raises(UserError, match="am.mvn"):
        F.read_cmvn(path)
    with pytest.raises(UserError, match="nothere"):
        F.read_cmvn(tmp_path / "nothere")


def test_slaney_filters_are_librosas():
    for rate, n_fft, mels, high in [(16000, 400, 128, 8000.0), (22050, 1024, 80, 8000.0)]:
        expected = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=mels, fmin=0.0, fmax=high)
        np.testing.assert_allclose(F.slaney_filters(rate, n_fft, mels, 0.0, high).T, expected, atol=1e-7)


def test_released_whisper_log_mel(golden):
    fixture = np.load(golden / "04_whispervq.npz")
    expected = fixture["out/input_features"]
    for row in range(2):
        wave = fixture[f"in/waveform_{row}"]
        padded = np.pad(wave, (0, expected.shape[2] * 160 - len(wave)))
        np.testing.assert_allclose(F.whisper_log_mel(padded), expected[row].T, rtol=0, atol=1e-4)
    np.testing.assert_allclose(
        F.slaney_filters(16000, 400, 128, 0.0, 8000.0), fixture["out/mel_filters_201x128"], atol=1e-7
    )


def test_griffin_lim_inverts_the_mel():
    rate = 22050
    t = np.arange(rate // 2) / rate
    wave = sum(np.sin(2 * np.pi * 150 * h * t) / h for h in range(1, 9)).astype(np.float32) * 0.2
    mel = F.log_mel(wave)
    assert mel.shape == (len(wave) // 256, 80)
    out = F.griffin_lim(mel)
    assert out.shape == (len(mel) * 256,) and out.dtype == np.float32
    np.testing.assert_array_equal(out, F.griffin_lim(mel))
    error = np.abs(F.log_mel(out) - mel)[2:-2, :40]
    assert np.median(error) < 0.2, np.median(error)


def test_no_samples_are_refused():
    with pytest.raises(UserError, match="0 samples"):
        F.fbank(np.zeros(0, np.float32))
    with pytest.raises(UserError, match="shorter than one mel frame"):
        F.log_mel(np.zeros(10, np.float32))
    assert np.isfinite(F.fbank(np.zeros(2, np.float32))).all()
