"""The microphone of the page in Chromium, which hears a file."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from paged import LAST, done
from scipy.signal import fftconvolve

from omnidiff_jax.media.features import resample

for needed in ("playwright", "starlette", "uvicorn", "av"):
    pytest.importorskip(needed)

from playwright.sync_api import expect  # noqa: E402

from omnidiff_jax.serving import audio  # noqa: E402


@pytest.fixture
def recorded(monkeypatch):
    """The recordings that the server was sent, as files' bytes."""
    contents, read = [], audio.read_sound

    def reading(content, *args):
        contents.append(content)
        return read(content, *args)

    monkeypatch.setattr(audio, "read_sound", reading)
    return contents


def alike(samples, rate: int, others, other_rate: int) -> float:
    """The largest correlation, from 0 to 1, of two recordings at any delay."""
    pairs = ((samples, rate), (others, other_rate))
    one, other = (resample(np.asarray(part, np.float32), at, 16_000) for part, at in pairs)
    return np.abs(fftconvolve(one, other[::-1])).max() / (np.linalg.norm(one) * np.linalg.norm(other))


@pytest.mark.slow
def test_the_microphone_is_heard_and_says_what_it_does(opened, url, model, microphone, recorded):
    page = opened(url, permissions=["microphone"])
    page.evaluate(
        """() => {
          const devices = navigator.mediaDevices, ask = devices.getUserMedia.bind(devices);
          devices.getUserMedia = async (wanted) => (window.stream = await ask(wanted));
          const [clock, level] = ["clock", "level"].map((id) => document.getElementById(id));
          window.loudest = 0;
          new MutationObserver(() => (window.loudest = Math.max(window.loudest, level.value))).observe(clock, {
            childList: true,
          });
        }"""
    )
    page.select_option("#preset", "asr")
    assert not page.locator("#recording").is_visible()
    page.click("#record")
    expect(page.locator("#clock")).to_contain_text("recording 0:01")
    assert page.get_attribute("#record", "aria-pressed") == "true" and page.inner_text("#record") == "Stop recording"
    # The file has ended: silence, which is told.
    expect(page.locator("#clock")).to_contain_text("nothing is heard")
    page.click("#record")
    expect(page.locator("#attached audio")).to_have_count(1)
    assert not page.locator("#recording").is_visible() and page.inner_text("#record") == "Record"
    assert page.evaluate("stream.getTracks().map(track => track.readyState)") == ["ended"]
    assert page.evaluate("loudest") > 0.1
    page.click("#send")
    done(page)
    (wav,) = recorded
    samples, rate = soundfile.read(io.BytesIO(wav))
    assert wav[:4] == b"RIFF" and samples.ndim == 1 and alike(samples, rate, *soundfile.read(microphone)) > 0.5
    expected = model.answer("asr", audio=wav)
    assert page.locator(f"{LAST} .content p").text_content().strip() == expected.text != ""


@pytest.mark.slow
def test_where_there_is_no_worklet_the_microphone_records_webm(opened, url, recorded):
    page = opened(url, permissions=["microphone"])
    page.evaluate("delete BaseAudioContext.prototype.audioWorklet")
    page.select_option("#preset", "asr")
    page.click("#record")
    expect(page.locator("#clock")).to_contain_text("recording 0:02")
    assert not page.locator("#level").is_visible()
    page.click("#send")  # ends the recording
    done(page)
    assert [content[:4] for content in recorded] == [b"\x1a\x45\xdf\xa3"]
    assert page.locator(f"{LAST} .content p").text_content().strip()
