"""The page in Chromium: every task clicked through, its films, the microphone, by keyboard, on a phone, in the dark."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import types
import urllib.error
import urllib.request

import numpy as np
import pytest
import soundfile
from PIL import Image
from scipy.signal import fftconvolve

import omnidiff_jax
from data_pipelines.scenes.speech import heard_voice, say
from omnidiff_jax.media.features import resample
from omnidiff_jax.tasks.registry import TASKS

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
for needed in ("starlette", "uvicorn", "av"):
    pytest.importorskip(needed)

from served import serving  # noqa: E402

from omnidiff_jax.serving import audio, images  # noqa: E402
from omnidiff_jax.serving.limits import Limits  # noqa: E402

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH")

CIRCLE = "small red circle top left, big blue square bottom right, on white"
TRIANGLE = CIRCLE.replace("red circle", "green triangle")
QUESTION = "what comes after five"
PHONES = (390, 320)
# Milliseconds; the machine may have other things to do.
WAIT = 60_000
LAST = ".turn.assistant:last-child"


@pytest.fixture(scope="module")
def microphone(tmp_path_factory):
    """What the browser's microphone hears, once, then nothing: half a second of silence and a question."""
    wave = say(QUESTION, heard_voice(3))
    path = tmp_path_factory.mktemp("microphone") / "question.wav"
    soundfile.write(path, np.concatenate([np.zeros(wave.rate // 2, np.float32), wave.samples]), wave.rate)
    return path


@pytest.fixture(scope="module")
def chromium(microphone):
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
            api.expect(page.locator("#status")).to_have_text("the server asks for a key")
            page.fill("#key", key)
            page.keyboard.press("Tab")
            told.remove(next(text for text in told if "401" in text))
        api.expect(page.locator("#status")).to_have_text("nano")
        assert not page.locator("#door").is_visible()
        return page

    yield open_
    for context in contexts:
        context.close()
    hosts = {address.split("/")[2] for address in asked if not address.startswith(("data:", "blob:"))}
    assert len(hosts) <= 1 and not told, (hosts, told)


def wider(page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth") > page.viewport_size["width"]


def contrast(page, selector: str) -> float:
    """How an element's words stand out from what is behind them, after WCAG."""
    colours = page.eval_on_selector(
        selector,
        """element => {
          const opaque = colour => !/, 0\\)|transparent/.test(colour);
          let behind = element;
          while (!opaque(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
          return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
        }""",
    )
    channels = [np.array([float(part) for part in colour.strip("rgba()").split(",")[:3]]) / 255 for colour in colours]
    linear = [np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in channels]
    low, high = sorted(float(c @ [0.2126, 0.7152, 0.0722]) for c in linear)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("scheme", "key"), [("light", ""), ("dark", "secret")])
def test_the_page_opens_small_and_refuses_what_lacks_something(opened, scheme, key):
    stub = types.SimpleNamespace(generator=None, picture_size=64)
    with serving(stub, key=key) as server:
        page = opened(server.url, key, viewport={"width": PHONES[1], "height": 640}, color_scheme=scheme)
        assert not wider(page)
        names = page.eval_on_selector_all("#preset option", "options => options.map(option => option.value)")
        assert set(names) == {"chat", *TASKS}
        page.click("#starters button")
        assert page.input_value("#preset") == "t2i" and CIRCLE == page.input_value("#words")
        page.fill("#words", "")
        for name, told in {"asr": "needs a recording", "inpainting": "needs a picture", "tts": "needs words"}.items():
            page.select_option("#preset", name)
            page.click("#send")
            api.expect(page.locator("#status")).to_contain_text(told)
        for selector in ("h1", "#hint", "#send", "#record", "#status", "#starters button"):
            assert contrast(page, selector) >= 4.5, selector


def test_canvases_are_refused_where_nothing_is_streamed():
    with serving(types.SimpleNamespace(generator=None, picture_size=64)) as server:
        body = json.dumps({"model": "nano", "prompt": CIRCLE, "include_canvas": True}).encode()
        request = urllib.request.Request(
            f"{server.url}/v1/images/generations", body, {"Content-Type": "application/json"}
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code == 400 and b"include_canvas" in refused.value.read()


# From here on with the shipped model.


@pytest.fixture(scope="module")
def model():
    return omnidiff_jax.load("nano", rows=4)


@pytest.fixture(scope="module")
def url(model):
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


def set_up(page, **settings) -> None:
    page.eval_on_selector("#settings", "details => details.open = true")
    page.select_option("#reveal", settings.pop("reveal", "schedule"))
    for name, value in settings.items():
        page.fill(f"#setting-{name}", str(value))
    page.eval_on_selector("#settings", "details => details.open = false")


def done(page) -> None:
    page.wait_for_selector(f"{LAST}[aria-busy=false]", timeout=5 * WAIT)
    assert not page.locator(f"{LAST} .failed").count(), page.inner_text(LAST)


def ask(page, preset: str, words: str = "", attached=()) -> None:
    page.select_option("#preset", preset)
    if attached:
        page.set_input_files("#file", [str(path) for path in attached])
        api.expect(page.locator("#attached li")).to_have_count(len(attached))
    page.fill("#words", words)
    page.click("#send")
    done(page)


FORMS = {("text",): "text", ("image",): "image", ("audio",): "speech", ("text", "audio"): "text_and_speech"}


def content_of(part: dict) -> dict:
    """A part of a turn, as the library takes it."""
    if part["type"] == "text":
        return part
    data = part["image_url"]["url"] if part["type"] == "image_url" else part["input_audio"]["data"]
    return {"image" if part["type"] == "image_url" else "audio": base64.b64decode(data.rpartition(",")[2])}


def alone(model, body: dict):
    """What the library answers to a conversation that the page sent, with the film."""
    turns = [
        {"role": turn["role"], "content": turn["content"]}
        if isinstance(turn["content"], str)
        else {"role": turn["role"], "content": [content_of(part) for part in turn["content"]]}
        for turn in body["messages"]
    ]
    settings = body.get("settings", {}) | ({"length": body["max_tokens"]} if "max_tokens" in body else {})
    return model.chat(turns, FORMS[tuple(body["modalities"])], seed=body.get("seed", 0), settings=settings, film=True)


def pixels(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))


def slide(slider, number: int) -> None:
    slider.evaluate("(at, to) => { at.value = to; at.dispatchEvent(new Event('input')); }", number)


def replayed(page) -> list:
    """What is seen at every stop of the last answer's slider: pictures uint8 [H, W, 3] or texts."""
    slider, frame = page.locator(f"{LAST} .film input"), page.locator(f"{LAST} .film .frame")
    seen = []
    for number in range(1, int(slider.get_attribute("max")) + 1):
        slide(slider, number)
        addresses = frame.locator("img").evaluate_all("rows => rows.filter(row => !row.hidden).map(row => row.src)")
        seen.append(np.concatenate([pixels(a) for a in addresses]) if addresses else frame.text_content())
    return seen


def same(found: list, film: list) -> None:
    assert len(found) == len(film)
    for one, other in zip(found, film, strict=True):
        np.testing.assert_array_equal(one, other)


ASKED = {
    "text_qa": (f"{CIRCLE}. what color is the circle", ()),
    "t2i": (CIRCLE, ()),
    "captioning": ("", ("picture.png",)),
    "vqa": ("what color is the circle", ("picture.png",)),
    "tts": ("it is red", ()),
    "asr": ("", ("question.wav",)),
    "spoken_qa": ("", ("question.wav",)),
    "s2i": ("", ("scene.wav",)),
    "spoken_vqa": ("", ("colour.wav", "picture.png")),
}
SAID = {"text_qa": "red", "captioning": CIRCLE, "vqa": "red", "asr": QUESTION, "spoken_qa": "six", "spoken_vqa": "red"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ASKED)
def test_a_task_is_clicked_through_and_its_film_is_the_models(opened, url, model, files, name):
    words, attached = ASKED[name]
    page = opened(url)
    kind = TASKS[name].answer
    # What is typed or seen, word after word; the rest as the model's own settings reveal it.
    planned = kind == "text" and name != "asr"
    set_up(page, seed=3, reveal="schedule" if planned else "")
    with page.expect_request("**/v1/*/*") as sent:
        ask(page, name, words, [files / file for file in attached])
    if name == "asr":
        expected = model.answer(name, audio=files / attached[0], seed=3, film=True)
    else:
        expected = alone(model, sent.value.post_data_json)
    content = page.locator(f"{LAST} .content")
    assert content.locator("p").text_content().strip() == expected.text
    if name in SAID:
        assert SAID[name] in expected.text
    if expected.image is not None:
        np.testing.assert_array_equal(pixels(content.locator("img").get_attribute("src")), np.asarray(expected.image))
    if expected.audio is not None:
        sound = base64.b64decode(content.locator("audio").get_attribute("src").partition(",")[2])
        samples, _ = soundfile.read(io.BytesIO(sound))
        np.testing.assert_allclose(samples, expected.audio.samples, atol=1e-3)
    steps = expected.steps
    assert len(expected.film) == steps and (steps > 1 or not planned)
    assert page.inner_text(f"{LAST} .facts").startswith(f"{steps} step")
    assert page.locator(f"{LAST} .film span").text_content() == f"step {steps} of {steps}"
    # While the slider stands at the end the answer is seen, before it the canvas; rows of speech always are.
    assert content.is_visible() and page.locator(f"{LAST} .frame").is_visible() == ("speech" in kind)
    same(replayed(page), expected.film)
    if steps > 1:
        slide(page.locator(f"{LAST} .film input"), 1)
        assert page.locator(f"{LAST} .frame").is_visible() and content.is_visible() == ("speech" in kind)
        page.click(f"{LAST} .film button")
        api.expect(page.locator(f"{LAST} .film span")).to_have_text(f"step {steps} of {steps}")


@pytest.mark.slow
def test_a_picture_is_repaired_with_the_brush(opened, url, model, files, monkeypatch):
    holes, read = [], images.read_hole

    def reading(*args):
        holes.append(read(*args))
        return holes[-1]

    monkeypatch.setattr(images, "read_hole", reading)
    page = opened(url)
    set_up(page, seed=3, reveal="")
    page.select_option("#preset", "inpainting")
    page.set_input_files("#file", str(files / "picture.png"))
    page.fill("#words", TRIANGLE)
    page.click("#send")
    api.expect(page.locator("#status")).to_contain_text("needs a painted hole")
    page.locator("#brush").scroll_into_view_if_needed()
    box = page.locator("#brush").bounding_box()
    page.locator("#radius").fill("20")
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.3, steps=3)
    page.mouse.up()
    page.click("#send")
    done(page)
    (hole,) = holes
    before, edit = np.asarray(Image.open(files / "picture.png").convert("RGB")), hole.edit
    assert 0.05 < edit.mean() < 0.5 and edit[16, 16] and not edit[-1, -1]
    after = pixels(page.locator(f"{LAST} .content img").get_attribute("src"))
    np.testing.assert_array_equal(after[~edit], before[~edit])
    red, green, blue = after[:32, :32].reshape(-1, 3).astype(int).T
    assert ((green > red + 60) & (green > blue + 60)).sum() > 20
    expected = model.answer("inpainting", text=TRIANGLE, image=before, hole=edit, seed=3, film=True)
    same(replayed(page), expected.film)


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
    api.expect(page.locator("#clock")).to_contain_text("recording 0:01")
    assert page.get_attribute("#record", "aria-pressed") == "true" and page.inner_text("#record") == "Stop recording"
    # The file has ended: silence, which is told.
    api.expect(page.locator("#clock")).to_contain_text("nothing is heard")
    page.click("#record")
    api.expect(page.locator("#attached audio")).to_have_count(1)
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
    api.expect(page.locator("#clock")).to_contain_text("recording 0:02")
    assert not page.locator("#level").is_visible()
    page.click("#send")  # ends the recording
    done(page)
    assert [content[:4] for content in recorded] == [b"\x1a\x45\xdf\xa3"]
    assert page.locator(f"{LAST} .content p").text_content().strip()


@pytest.mark.slow
def test_answers_stand_side_by_side_and_a_conversation_goes_on_with_one(opened, url):
    page = opened(url)
    set_up(page, n=3)
    page.eval_on_selector("#settings", "details => details.open = true")
    assert page.locator("#alike").is_visible()
    page.fill("#setting-temperature", "1")
    assert not page.locator("#alike").is_visible()
    ask(page, "t2i", "big blue square")  # where is left open
    answers = page.locator(f"{LAST} .answer")
    boxes = [answers.nth(i).bounding_box() for i in range(3)]
    assert len({box["y"] for box in boxes}) == 1 and boxes[0]["x"] < boxes[1]["x"] < boxes[2]["x"]
    drawn = answers.locator(".content img").evaluate_all("found => found.map(image => image.src)")
    assert len(drawn) == 3 and len(set(drawn)) > 1
    assert answers.locator(".film input").evaluate_all("found => found.map(slider => slider.max)") == ["16"] * 3
    page.fill("#setting-n", "2")
    page.select_option("#preset", "chat")
    page.select_option("#answer", "text")
    ask(page, "chat", f"{CIRCLE}. what color is the circle")
    page.check(f"{LAST} .answer:last-child input[type=radio]")
    kept = page.locator(f"{LAST} .answer:last-child .content p").text_content()
    page.fill("#setting-n", "")
    page.fill("#words", "what color is the square")
    with page.expect_request("**/chat/completions") as sent:
        page.click("#send")
    done(page)
    turns = sent.value.post_data_json["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"] and turns[1]["content"] == kept


@pytest.mark.slow
def test_it_works_by_keyboard_alone(opened, url, files):
    page = opened(url)
    choosers = []
    # From the start: playwright begins to look for them some time after it is asked to.
    page.on("filechooser", lambda chooser: choosers.append(chooser))

    def reach(selector: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate(f"document.activeElement.matches({selector!r})"):
                return
        raise AssertionError(f"{selector} cannot be reached")

    reach("#preset")
    page.keyboard.type("Repair")
    assert page.input_value("#preset") == "inpainting"
    reach("#file")
    page.keyboard.press("Enter")
    while not choosers:
        page.wait_for_timeout(50)
    choosers[0].set_files(str(files / "picture.png"))
    api.expect(page.locator("#painting")).to_be_visible()
    page.evaluate("document.activeElement.blur()")
    reach("#brush")
    for key in ["ArrowLeft"] * 6 + ["ArrowUp"] * 6 + ["Space"]:
        page.keyboard.press(key)
    reach("#words")
    page.keyboard.type(TRIANGLE)
    page.keyboard.press("Enter")
    done(page)
    assert page.evaluate("document.activeElement.id") == "words"
    reach("#settings summary")
    page.keyboard.press("Enter")
    reach("#reveal")
    page.keyboard.type("as")
    page.evaluate("document.activeElement.blur()")
    reach("#preset")
    page.keyboard.type("Draw")
    reach("#words")
    page.keyboard.type(CIRCLE)
    page.keyboard.press("Enter")
    done(page)
    page.evaluate("document.activeElement.blur()")
    reach(f"{LAST} .film input")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text(f"{LAST} .film span") == "step 15 of 16" and page.locator(f"{LAST} .frame img").is_visible()
    # What has the focus is seen to have it.
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.slow
@pytest.mark.parametrize("width", PHONES)
def test_on_a_phone_nothing_is_wider_than_the_screen(opened, url, files, width):
    page = opened(url, viewport={"width": width, "height": 700}, color_scheme="dark", has_touch=True, is_mobile=True)
    set_up(page, n=2)
    ask(page, "t2i", CIRCLE)
    ask(page, "spoken_vqa", "", [files / "colour.wav", files / "picture.png"])
    page.select_option("#preset", "inpainting")
    page.set_input_files("#file", str(files / "picture.png"))
    page.eval_on_selector("#settings", "details => details.open = true")
    assert not wider(page)
    page.eval_on_selector("#settings", "details => details.open = false")
    page.select_option("#preset", "chat")
    assert not wider(page)
    assert page.locator("#conversation").bounding_box()["height"] > 200
    for selector in (".turn.user p", f"{LAST} .facts", f"{LAST} .film span", "#hint"):
        assert contrast(page, selector) >= 4.5, selector
