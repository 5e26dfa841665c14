"""The page in Chromium: how it opens, what it refuses, answers side by side, by keyboard, on a phone, in the dark."""

from __future__ import annotations

import json
import types
import urllib.error
import urllib.request

import pytest
from paged import CIRCLE, LAST, TRIANGLE, ask, contrast, done, set_up, wider

from omnidiff_jax.tasks.registry import TASKS

for needed in ("playwright", "starlette", "uvicorn", "av"):
    pytest.importorskip(needed)

from playwright.sync_api import expect  # noqa: E402
from served import serving  # noqa: E402

PHONES = (390, 320)


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
            expect(page.locator("#status")).to_contain_text(told)
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
    expect(page.locator("#painting")).to_be_visible()
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
