"""What the tests of the page do on it, and what they see: questions asked, films taken step by step, colours."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

CIRCLE = "small red circle top left, big blue square bottom right, on white"
TRIANGLE = CIRCLE.replace("red circle", "green triangle")
QUESTION = "what comes after five"
# Milliseconds; the machine may have other things to do.
WAIT = 60_000
LAST = ".turn.assistant:last-child"


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
    from playwright.sync_api import expect

    page.select_option("#preset", preset)
    if attached:
        page.set_input_files("#file", [str(path) for path in attached])
        expect(page.locator("#attached li")).to_have_count(len(attached))
    page.fill("#words", words)
    page.click("#send")
    done(page)


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
