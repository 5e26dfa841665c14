"""Every task clicked through on the page in Chromium: answers and films are those of the model without a server."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import soundfile
from paged import CIRCLE, LAST, QUESTION, TRIANGLE, ask, done, pixels, replayed, same, set_up, slide
from PIL import Image

from omnidiff_jax.tasks.registry import TASKS

for needed in ("playwright", "starlette", "uvicorn", "av"):
    pytest.importorskip(needed)

from playwright.sync_api import expect  # noqa: E402

from omnidiff_jax.serving import images  # noqa: E402

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
        page.wait_for_function("audio => audio.duration > 0", arg=content.locator("audio").element_handle())
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
        expect(page.locator(f"{LAST} .film span")).to_have_text(f"step {steps} of {steps}")


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
    expect(page.locator("#status")).to_contain_text("needs a painted hole")
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
