"""The examples as users run them, against one server of the shipped model; the notebook cell by cell."""

from __future__ import annotations

import ast
import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

import omnidiff_jax
from data_pipelines.scenes.speech import heard_voice, say

for needed in ("openai", "starlette", "uvicorn"):
    pytest.importorskip(needed)

from served import serving  # noqa: E402

from omnidiff_jax.serving.limits import Limits  # noqa: E402

EXAMPLES = Path(__file__).parents[1] / "examples"
SCENE = "small red circle top left, big blue square bottom right, on white"
ASKED = ("what color is the circle", "what color is the square")


def test_every_example_is_told_of():
    told = set(re.findall(r"^\| `([\w.]+)", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert told == {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")} - {"common.py"}
    for cell in json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.fixture(scope="module")
def model():
    return omnidiff_jax.load("nano", rows=4)


@pytest.fixture(scope="module")
def url(model):
    with serving(model, limits=Limits()) as server:
        yield server.url


@pytest.fixture(scope="module")
def photo(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    model.answer("t2i", text=SCENE).image.save(path)
    return path


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    paths = [tmp_path_factory.mktemp("asked") / f"{number}.wav" for number in range(len(ASKED))]
    for path, words in zip(paths, ASKED, strict=True):
        wave = say(words, heard_voice(3))
        soundfile.write(path, wave.samples, wave.rate)
    return paths


@pytest.fixture
def example(monkeypatch, capsys):
    """Runs an example with arguments; what it prints."""

    def run(name: str, *args: object) -> str:
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_speech_to_image(example, url, tmp_path):
    told = example("speech_to_image.py", url, tmp_path, SCENE, "big yellow triangle bottom left, on black")
    for line, folder in zip(told.splitlines(), (tmp_path / "1", tmp_path / "2"), strict=True):
        steps = sorted(path.name for path in folder.glob("step_*.png"))
        assert f": {len(steps)} steps, " in line and steps
        last, picture = (np.asarray(Image.open(folder / name).convert("RGB")) for name in (steps[-1], "picture.png"))
        np.testing.assert_array_equal(last, picture)


@pytest.mark.slow
def test_spoken_assistant(example, url, photo, questions, tmp_path):
    assert "red" in example("spoken_assistant.py", url, photo, questions[0], tmp_path / "answer.wav")
    assert soundfile.info(tmp_path / "answer.wav").duration > 0.3


@pytest.mark.slow
def test_support_agent(example, url, photo, questions, tmp_path):
    lines = example("support_agent.py", url, photo, tmp_path, *questions).splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["you", "agent"] * 2
    assert [line.partition(": ")[2] for line in lines[::2]] == list(ASKED) and "red" in lines[1]
    assert (tmp_path / "1.wav").exists()


@pytest.mark.slow
def test_repair(example, url, photo, tmp_path):
    large = Image.open(photo).convert("RGB").resize((192, 160))
    large.save(tmp_path / "large.png")
    words = SCENE.replace("red circle", "green triangle")
    told = example("repair.py", url, tmp_path / "large.png", "0,0,80,80", words, tmp_path / "new.png")
    changed = ast.literal_eval(told.partition("within ")[2])
    assert changed[2] <= 80 and changed[3] <= 80
    assert Image.open(tmp_path / "new.png").size == large.size


@pytest.mark.slow
def test_variations(example, url, tmp_path):
    told = example("variations.py", url, "big blue square", tmp_path / "sheet.png", "--n=5")
    count, different = map(int, re.findall(r"(\d+) (?:pictures|different)", told))
    assert count == 5 and different > 1 and Image.open(tmp_path / "sheet.png").size == (3 * 72 + 8, 2 * 72 + 8)


@pytest.mark.slow
def test_the_tour_runs_cell_by_cell():
    names: dict[str, object] = {}
    shown = []
    for cell in json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        # As a notebook does: what stands last is shown.
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "tour.ipynb", "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), "tour.ipynb", "eval"), names))
    assert names["caption"] == SCENE and names["colour"] == "red" and names["heard"] == ASKED[0]
    assert "red" in names["spoken"].text
    assert names["drawn"].steps == len(names["drawn"].film) == 16
    assert all(isinstance(one, str | tuple | Image.Image) or "<audio" in one._repr_html_() for one in shown)
