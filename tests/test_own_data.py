"""docs/data.md is followed word for word: every command of the page, on media that lie as it says.

`OMNIDIFF_REAL_MEDIA` may name a folder with real `pictures/`, `held_out/`, `held_out.jsonl` and `recordings/`, as the
page has them, and with `kokoro/` and `whisper/`; without it pictures are drawn and speech is espeak's.
"""

import importlib
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
import soundfile

from data_pipelines.scenes.tasks import make_record
from data_pipelines.sdvi.records import SdviConfig
from data_pipelines.speakers.kinds import SpeakerConfig
from data_pipelines.speakers.speaker import Line
from experiments.programs import READERS
from omnidiff_jax.config import build
from omnidiff_jax.data.readers import check_source
from omnidiff_jax.media.image import write_png
from omnidiff_jax.runs.config import run_config

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
REAL = os.environ.get("OMNIDIFF_REAL_MEDIA", "")
PICTURE, RECORDING = "1f44e", "1-1-0000"  # that the page asks about


def blocks(kind: str) -> list[str]:
    """The page's code blocks of a kind, in their order."""
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """The words of every command, without the leading `omnidiff`."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line]


def test_every_command_of_the_page_is_one():
    found = commands()
    assert [words[0] for words in found].count("train") == 1 and len(found) == 11
    for name, *words in found:
        module = importlib.import_module(f"experiments.{name}")
        module.COMMAND.parse(words)
        if name == "train":
            config = run_config(module.CONFIG.value)
            assert {source.task or source.reader for source in config.sources.values()} == {"captioning", "librispeech"}
            for source, settings in config.sources.items():
                check_source(source, settings, READERS)


def test_the_settings_of_the_page_are_settings():
    plain, kokoro = (build(SdviConfig, json.loads(block)) for block in blocks("json"))
    assert plain == SdviConfig(plain.source, "spoken_vqa"), "what the page shows are the defaults"
    assert (kokoro.speaker.kind, kokoro.gate.judge) == ("kokoro", "whisper:whisper")
    for example in re.findall(r"^    (\{.*\})$", PAGE, re.MULTILINE):
        assert json.loads(example)["task"] == "captioning"


def described(folder: Path, name: str, index: int) -> str:
    """A drawn picture `name.png`; what it shows."""
    record = make_record("captioning", index, "train")
    write_png(folder / f"{name}.png", record.images[0])
    return record.meta["caption"]


def lie_down(folder: Path) -> None:
    """The media of the page, made here."""
    (folder / "pictures").mkdir()
    for index in range(24):
        (folder / "pictures" / f"{index}.txt").write_text(described(folder / "pictures", str(index), index))
    (folder / "held_out").mkdir()
    lines = []
    for index, name in enumerate((PICTURE, "1f44d")):
        answer = described(folder / "held_out", name, 100 + index)
        turns = [("user", "Describe the image.\n<|image|>"), ("assistant", answer)]
        messages = [{"role": role, "content": content} for role, content in turns]
        lines.append({"task": "captioning", "messages": messages, "images": [f"held_out/{name}.png"]})
    (folder / "held_out.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    speaker = SpeakerConfig().open()
    for split, first, count in (("train-clean", 0, 24), ("test-clean", 50, 3)):
        place = folder / "recordings" / split / "1" / "1"
        place.mkdir(parents=True)
        told = []
        for number in range(count):
            text = make_record("vqa", first + number, "train").meta["request"].upper()
            (speech,) = speaker.say([Line(text.lower(), number)])
            soundfile.write(place / f"1-1-{number:04d}.flac", speech.samples, speech.rate)
            told.append(f"1-1-{number:04d} {text}")
        (place / "1-1.trans.txt").write_text("\n".join(told) + "\n")


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_page_works_as_it_stands(omnidiff, tmp_path):
    if REAL:
        for name in ("pictures", "held_out", "recordings"):
            shutil.copytree(Path(REAL) / name, tmp_path / name)
        shutil.copy(Path(REAL) / "held_out.jsonl", tmp_path)
    else:
        lie_down(tmp_path)
    pictures = sorted((tmp_path / "held_out").glob("*.png"))[:4]
    asked = [("user", "What is in the picture?\n<|image|>"), ("assistant", "a picture")]
    messages = [{"role": role, "content": content} for role, content in asked]
    lines = [{"messages": messages, "images": [f"held_out/{picture.name}"]} for picture in pictures]
    (tmp_path / "questions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (tmp_path / "sdvi.json").write_text(blocks("json")[0])
    said = {}
    for words in commands():
        done = omnidiff(*words, cwd=tmp_path, timeout=5400)
        assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-2000:])
        said[" ".join(words)] = done.stdout
    assert (tmp_path / "pictures.html").is_file()
    for folder in ("before", "run"):
        card = (tmp_path / folder / "scorecard.json").read_text()
        assert "captioning" in card and "librispeech" in card
    samples = [words for line, words in said.items() if line.startswith("sample")]
    assert len(samples) == 2 and all(answer.strip() for answer in samples)
    spoken = ["spoken"]
    if REAL and (Path(REAL) / "kokoro").is_dir():
        for name in ("kokoro", "whisper"):
            (tmp_path / name).symlink_to(Path(REAL) / name)
        (tmp_path / "kokoro.json").write_text(blocks("json")[1])
        done = omnidiff("data", "build", "spoken_kokoro", "--sdvi=kokoro.json", cwd=tmp_path, timeout=5400)
        assert done.returncode == 0, done.stderr[-2000:]
        spoken.append("spoken_kokoro")
    for name in spoken:
        told = json.loads((tmp_path / name / "card.json").read_text())
        assert told["accepted"] + sum(told["rejected"].values()) == len(pictures)
