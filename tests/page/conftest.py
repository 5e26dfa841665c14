"""Chromium, its microphone, and the page of a served nano model."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import soundfile
from paged import CIRCLE, QUESTION, WAIT

import omnidiff_jax
from data_pipelines.scenes.speech import heard_voice, say

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def microphone(tmp_path_factory):
    """What the browser's microphone hears, once, then nothing: half a second of silence and a question."""
    wave = say(QUESTION, heard_voice(3))
    path = tmp_path_factory.mktemp("microphone") / "question.wav"
    soundfile.write(path, np.concatenate([np.zeros(wave.rate // 2, np.float32), wave.samples]), wave.rate)
    return path


@pytest.fixture(scope="module")
def chromium(microphone):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no chromium on PATH")
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    flags += ["--disable-gpu", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    flags += [f"--use-file-for-fake-audio-capture={microphone}%noloop"]
    api.expect.set_options(timeout=WAIT)
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=BROWSER, args=flags)
        except api.Error as error:
            pytest.skip(f"{BROWSER} does not start: {error.message[:200]}")
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium):
    """Opens the page of a server; nothing may be asked of another host, nor end in an error of the page."""
    from playwright.sync_api import expect

    contexts, told, asked = [], [], []

    def open_(url, key="", **options):
        context = chromium.new_context(**{"viewport": {"width": 1100, "height": 850}, **options})
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        context.set_default_timeout(WAIT)
        page = context.new_page()
        page.on("console", lambda message: told.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.goto(url)
        if key:
            expect(page.locator("#status")).to_have_text("the server asks for a key")
            page.fill("#key", key)
            page.keyboard.press("Tab")
            told.remove(next(text for text in told if "401" in text))
        expect(page.locator("#status")).to_have_text("nano")
        assert not page.locator("#door").is_visible()
        return page

    yield open_
    for context in contexts:
        context.close()
    hosts = {address.split("/")[2] for address in asked if not address.startswith(("data:", "blob:"))}
    assert len(hosts) <= 1 and not told, (hosts, told)


@pytest.fixture(scope="module")
def model():
    return omnidiff_jax.load("nano", rows=4)


@pytest.fixture(scope="module")
def url(model):
    from served import serving

    from omnidiff_jax.serving.limits import Limits

    with serving(model, limits=Limits()) as running:
        yield running.url


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """A picture, and speech that describes one and that asks."""
    folder = tmp_path_factory.mktemp("attached")
    model.answer("t2i", text=CIRCLE).image.save(folder / "picture.png")
    for name, words in {"scene": CIRCLE, "colour": "what color is the circle", "question": QUESTION}.items():
        wave = say(words, heard_voice(3))
        soundfile.write(folder / f"{name}.wav", wave.samples, wave.rate)
    return folder
