"""The scorecard's arithmetic and shape, the Scenes exams under perfect and absent answers, and the report's page."""

import html.parser
import json
import os
import shutil

import numpy as np
import pytest
from benchmark_toys import mme, sat, text

from data_pipelines.benchmarks.yes_no import MME
from data_pipelines.scenes.exams import exam
from omnidiff_jax.answering.queries import Request, Response
from omnidiff_jax.evaluation.exam import Case, Exam, Measure, interval, sit
from omnidiff_jax.evaluation.report import View, write_report
from omnidiff_jax.evaluation.scorecard import labelled, table, write_scorecard
from omnidiff_jax.records import Waveform
from omnidiff_jax.tasks.registry import TASKS, task

ENTRY = {"metric", "value", "higher_is_better", "n", "ceiling", "floor", "judge", "decoding"}


class Answering:
    """Stands in for a Generator: answers by request id, `strip` where steps are asked for."""

    def __init__(self, answers):
        self._answers = answers

    def __call__(self, chosen, requests, *, strips=False):
        for request in requests:
            chosen.check_inputs(given(request))
        return [self._answers[request.request_id] for request in requests]

    def decoding(self, chosen):
        return chosen.decoding


def given(request):
    media = {name for name in ("image", "audio", "hole") if getattr(request, name) is not None}
    return media | ({"text"} if request.text else set())


def says(responses, cases):
    return np.array([r.text == c.meta["answer"] for r, c in zip(responses, cases, strict=True)], float), np.ones(
        len(cases)
    )


def letters_missed(responses, cases):
    """The first letters that are wrong, of all letters of the answer."""
    pairs = [(r.text, c.meta["answer"]) for r, c in zip(responses, cases, strict=True)]
    wrong = [sum(a != b for a, b in zip(said.ljust(len(right)), right, strict=False)) for said, right in pairs]
    return np.array(wrong, float), np.array([len(right) for _, right in pairs], float)


RIGHT = Measure("exact", "equality", True, says)
MISSED = Measure("letter errors", "equality", False, letters_missed)


def small_exam(*measures, answers=("red", "two", "big", "top")):
    cases = [Case(Request("?", request_id=i), Response(a), {"answer": a}) for i, a in enumerate(answers)]
    return Exam(task("text_qa"), tuple(cases), measures)


def test_a_perfect_model_reaches_the_ceiling_and_its_floor_is_far():
    sat = small_exam(RIGHT, MISSED)
    result = sit(sat, Answering([case.truth for case in sat.cases]))
    entry = result.entry
    assert ENTRY <= set(entry) and entry["n"] == 4
    assert (entry["value"], entry["ceiling"], entry["floor"]) == (1.0, 1.0, 0.0)
    (also,) = entry["also"]
    assert (also["value"], also["ceiling"], also["higher_is_better"]) == (0.0, 0.0, False) and also["floor"] > 0.5
    assert result.verdicts.tolist() == [1, 1, 1, 1] and result.responses == [case.truth for case in sat.cases]


def test_a_wrong_model_is_at_its_floor():
    sat = small_exam(MISSED, RIGHT)
    entry = sit(sat, Answering([Response("xyz")] * 4)).entry
    assert (entry["value"], entry["ceiling"], entry["floor"]) == (1.0, 0.0, 1.0)
    assert (entry["also"][0]["value"], entry["also"][0]["ceiling"]) == (0.0, 1.0)


def test_shares_are_of_the_whole_not_means_of_cases():
    sat = small_exam(MISSED, answers=("a", "bcd"))
    assert sit(sat, Answering([Response("x"), Response("bcd")])).entry["value"] == 0.25


def test_a_judge_that_cannot_fail_is_seen():
    lenient = Measure("lenient", "none", True, lambda responses, cases: (np.ones(len(cases)), np.ones(len(cases))))
    entry = sit(small_exam(lenient), Answering([Response("wrong")] * 4)).entry
    assert entry["floor"] == entry["ceiling"] == 1.0


def test_strips_are_of_the_first_cases_in_their_order():
    sat = small_exam(RIGHT)
    result = sit(sat, Answering([Response(str(i)) for i in range(4)]), strips=2)
    assert [response.text for response in result.responses] == ["0", "1", "2", "3"]


def test_the_file_has_the_contracts_shape(tmp_path):
    sat = small_exam(RIGHT, MISSED)
    entries = {"text_qa": sit(sat, Answering([case.truth for case in sat.cases])).entry}
    write_scorecard(tmp_path, entries, {}, {"train": 1.5}, 7)
    (written,) = tmp_path.iterdir()
    content = json.loads(written.read_text())
    assert written.name == "scorecard.json" and set(content) == {"step", "tasks", "exams", "seconds", "versions"}
    assert ENTRY <= set(content["tasks"]["text_qa"]) and content["seconds"] == {"train": 1.5}
    assert {"python", "jax", "omnidiff_jax"} <= set(content["versions"])
    decoding = content["tasks"]["text_qa"]["decoding"]
    assert decoding["length"] == 64 and decoding["sampler"]["confidence"]["kind"] == "entropy"
    lines = table(entries).splitlines()
    assert len(lines) == 3 and "1.000" in lines[1] and "(lower is better)" in lines[2]


@pytest.mark.parametrize("name", TASKS)
def test_the_exam_of_every_task_can_be_passed_and_failed(name):
    """Right answers reach the ceiling; other cases' answers, and no answer, do not."""
    sat = exam(name, 4)
    truths = {case.request.request_id: case.truth for case in sat.cases}
    passed = sit(sat, Answering(truths)).entry
    failed = sit(sat, Answering(dict.fromkeys(truths, Response()))).entry
    for good, bad in zip((passed, *passed.get("also", ())), (failed, *failed.get("also", ())), strict=True):
        assert good["value"] == good["ceiling"] == bad["ceiling"]
        sign = 1 if good["higher_is_better"] else -1
        assert sign * (good["ceiling"] - bad["value"]) > 0.5
        assert sign * (good["ceiling"] - good["floor"]) > 0 or "untouched" in good["metric"]


class Page(html.parser.HTMLParser):
    """Collects what a page shows and loads."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.text, self.open = [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.sources += [values[name] for name in ("src", "href", "srcset", "data") if values.get(name)]
        self.open.append(tag)

    def handle_data(self, data):
        self.text += data


def sound(pitch):
    return Waveform(np.sin(np.arange(8000) / pitch).astype(np.float32) * 0.5, 16000)


def views():
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return {
        "vqa": [
            View("what <b>color</b>?", "red & blue", "red", True, prompt_image=picture, strip=("· · /", "red · /"))
        ],
        "t2i": [View("small red circle", "", "small red circle", False, image=picture, strip=(picture, picture))],
        "tts": [View("two", "", "two", None, audio=sound(9.0)), View("x", "", "", True, prompt_audio=sound(20.0))],
    }


def lines():
    for step in range(1, 41):
        name = "stage1" if step <= 20 else "stage2"
        tasks = {"t2i": 3.0 / step} | ({"asr": 4.0 / step} if step > 20 else {})
        yield {
            "step": step,
            "stage": name,
            "loss": 3.0 / step,
            "task_loss": tasks,
            "noise_loss": {"0.00-0.25": 1 / step},
        }


def test_the_report_is_one_file_that_needs_nothing_else(tmp_path):
    sat = small_exam(RIGHT, MISSED)
    scorecard = write_scorecard(
        tmp_path, {"text_qa": sit(sat, Answering([Response("red")] * 4)).entry}, {}, {"train": 61.0}, 7
    )
    write_report(tmp_path / "report.html", "A <run>", scorecard, list(lines()), views())
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert "http" not in text.lower() and "@import" not in text
    kinds = [source.split(";")[0] for source in page.sources]
    assert set(kinds) == {"data:image/png", "data:audio/wav"}
    assert kinds.count("data:audio/wav") == 2 and kinds.count("data:image/png") == 1 + 1 + 3 + 2
    for piece in (
        "A <run>",
        "what <b>color</b>?",
        "red & blue",
        "expected: red",
        "· · /",
        "exact",
        "letter errors",
        "61 s",
    ):
        assert piece in page.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "scorecard.json"]


def test_a_report_without_training_or_steps(tmp_path):
    write_report(tmp_path / "report.html", "empty", {"tasks": {}}, [], {})
    assert "Scorecard" in Page((tmp_path / "report.html").read_text()).text


def test_intervals_hold_the_share_and_narrow_with_cases():
    hits = np.array([1.0] * 19 + [0.0])
    low, high = interval(hits, np.ones(20))
    assert low < 0.95 < high and 0.75 < low < 0.8 and high > 0.98  # Wilson: 0.764 to 0.991
    assert interval(np.ones(50), np.ones(50))[0] < 1.0 == interval(np.ones(50), np.ones(50))[1]
    wide, narrow = (interval(np.tile([0.0, 1.0, 2.0], n), np.full(3 * n, 4.0)) for n in (10, 100))
    assert wide[0] < narrow[0] < 0.25 < narrow[1] < wide[1]
    assert interval(np.zeros(0), np.zeros(0)) == (0.0, 0.0)


def test_two_exams_of_one_task_stand_side_by_side(tmp_path):
    entry = sit(small_exam(RIGHT), Answering([Response("red")] * 4)).entry
    scores = {name: {"tasks": {"text_qa": entry}} for name in ("scenes", "plain")}
    assert list(labelled(scores)) == ["text_qa", "plain: text_qa"]
    lines = table(labelled(scores)).splitlines()
    assert lines[1].startswith("text_qa") and lines[2].startswith("plain: text_qa") and "0.05-0.70" in lines[1]
    scorecard = {"tasks": {}, "exams": scores}
    write_report(tmp_path / "r.html", "t", scorecard, [], {}, note="rests on nothing")
    page = (tmp_path / "r.html").read_text()
    assert "plain: text_qa" in page and "rests on nothing" in page


def with_a_benchmark(place):
    """A report with every table that there is and a card of every kind."""
    entry = sat("mme", MME, mme(place / "data", "table"), place / "out", text(lambda request: "Yes"))
    scorecard = {"tasks": {}, "exams": {"mme": entry}}
    write_report(place / "report.html", "t", scorecard, list(lines()), views())
    return place / "report.html"


def test_tables_of_a_report_lie_in_boxes_of_their_own(tmp_path):
    written = with_a_benchmark(tmp_path).read_text()
    assert written.count("<table") == written.count("<div class=wide tabindex=0><table") == 2
    assert "name=viewport" in written and "<th class=n>n of n" in written and "<td class=n>16 of 16" in written
    assert "answered</p><p>nothing</p>" in written  # a card without an answer says so


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 390, 1280])
def test_a_report_is_as_wide_as_its_page(width, tmp_path):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium on PATH")
    path = with_a_benchmark(tmp_path)
    flags = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=flags)
        page = opened.new_page(viewport={"width": width, "height": 800}, is_mobile=width < 1000)
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        wide = page.evaluate("[...document.querySelectorAll('.wide')].map(box => [box.scrollWidth, box.clientWidth])")
        assert all(inner == outer for inner, outer in wide) == (width == 1280)
        opened.close()
