"""`omnidiff commons`: its steps, what it goes on from, and the presets of Commons' configs."""

import json
import os
import re
from pathlib import Path

import pytest
from commons_toys import write_world

from data_pipelines.commons.heard import MAKERS
from data_pipelines.commons.speaking import pieces
from data_pipelines.commons.speech import open_clips
from data_pipelines.commons.tasks import make_record
from data_pipelines.commons.things import open_world
from experiments import commons
from experiments.common import load_config
from experiments.configs.commons_presets import PRESETS
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import Waveform

ROOT = Path(__file__).parents[1]
TRUE = Path(os.environ.get("OMNIDIFF_COMMONS") or "nowhere")
FILES = {
    name: f"experiments/configs/{folder}{name}.py"
    for folder, names in {
        "tokenizers/": [f"commons_{name}" for name in ("text", "image", "speech_encoder", "speech_tokenizer")]
        + ["commons_speech_decoder", "commons_vocoder"],
        "": ["commons"],
    }.items()
    for name in names
}


@pytest.fixture
def folder(tmp_path):
    write_world(tmp_path / "fetched")
    return tmp_path / "fetched"


@pytest.fixture
def performed(monkeypatch):
    """The steps that were run; none is."""
    steps = []
    monkeypatch.setattr(commons, "perform", steps.append)
    return steps


def call(workdir, *words):
    commons.COMMAND.call(commons.run, [f"--workdir={workdir}", *words])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_changes_no_more_than_it_says(preset):
    for name, file in FILES.items():
        planned, chosen = (load_config(f"{file}{word}").to_dict() for word in ("", f":{preset}"))
        row = PRESETS[preset].get(name, {})
        for key, value in row.items():
            *parents, last = key.split(".")
            place, before = chosen, planned
            for parent in parents:
                place, before = place[parent], before[parent]
            assert place[last] == value
            place[last] = before[last]
        for one in (planned, chosen):
            for source in one.get("data", {}).get("sources", {}).values():
                source.pop("examples")
        assert chosen == planned
    with pytest.raises(UserError, match=f"did you mean {preset!r}"):
        load_config(f"{FILES['commons']}:{preset}s")


def test_steps_are_the_documented_commands(tmp_path):
    block = re.search(r"```sh\n(omnidiff data fetch commons.*?)```", (ROOT / "docs/commons.md").read_text(), re.DOTALL)
    documented = [line for line in block[1].replace("\\\n", "").splitlines() if line.startswith("omnidiff")]
    steps = commons.plan(tmp_path, tmp_path / "commons", "", 0, 200)
    names = {"TEXT": "text", "IMAGE": "image", "HEARS": "hears", "CODES": "codes", "MEL": "mel", "VOICE": "voice"}
    names |= {"RUN": "model", "COMMONS": "commons"}
    for line, step in zip(documented, steps, strict=True):
        told = re.sub(r"\b(?<![.\w])(" + "|".join(names) + r")\b", lambda found: f"{tmp_path}/{names[found[1]]}", line)
        assert set(told.split()) <= set(step.line.split()), step.name


def test_steps_that_are_done_are_not_done_again(tmp_path, folder, performed, monkeypatch, capsys):
    words = [f"--commons={folder}", "--preset=miniature", "--steps=3"]
    call(tmp_path / "run", *words)
    assert [step.name for step in performed][:3] == ["clips", "text", "image"] and performed[-1].name == "exams"
    assert all("--config.total_steps=3" in step.words for step in performed if step.name in ("image", "voice", "model"))
    assert all(":miniature" in step.line for step in performed if step.words[0] == "train")
    (tmp_path / "run/steps.json").write_text(json.dumps({performed[0].line: 5.0, performed[1].line: 2.0}))
    before = performed[:]
    performed.clear()
    capsys.readouterr()

    def failing(step):
        performed.append(step)
        if step.name == "hears":
            raise UserError("no")

    monkeypatch.setattr(commons, "perform", failing)
    with pytest.raises(UserError, match="^no$"):
        call(tmp_path / "run", *words)
    assert performed == before[2:4]
    said = capsys.readouterr().out
    assert "9 steps, of which 2 are done" in said and "1/9 clips: done in 5 s" in said
    performed.clear()
    with pytest.raises(UserError):
        call(tmp_path / "run", *words)
    assert [step.name for step in performed] == ["hears"]


def test_parts_are_linked_and_clips_only_where_all_voices_are_wanted(tmp_path, folder, performed):
    (folder / "clips").mkdir()
    (folder / "clips" / "speech.json").write_text('{"speaker": {"voices": 7}}')
    call(tmp_path / "whole", f"--commons={folder}")
    assert (tmp_path / "whole/commons/clips").resolve() == folder / "clips"
    call(tmp_path / "small", f"--commons={folder}", "--preset=miniature")
    told = json.loads((tmp_path / "small/commons/clips/speech.json").read_text())
    assert told["speaker"] == {"kind": "espeak", "voices": 4} and told["names"] == 0.05
    assert (tmp_path / "small/commons/google").resolve() == folder / "google"
    assert open_world(str(tmp_path / "small/commons")).things
    (folder / "kokoro").mkdir()
    call(tmp_path / "natural", f"--commons={folder}", "--preset=miniature")
    assert json.loads((tmp_path / "natural/commons/clips/speech.json").read_text())["speaker"]["kind"] == "kokoro"


def test_without_a_folder_parts_are_fetched_first(tmp_path, performed):
    with pytest.raises(UserError, match="commons has no pictures; it should be a folder of `omnidiff data fetch"):
        call(tmp_path, "--archives=there")
    (fetch,) = performed
    assert fetch.words[:4] == ("data", "fetch", "commons", str(tmp_path / "commons"))
    assert "--archives=there" in fetch.words and "--part=kokoro" in fetch.words


def test_a_step_that_fails_says_how_to_go_on():
    with pytest.raises(UserError, match="step 'text' ended with status 2, for the reason above; start again to go on"):
        commons.perform(commons.Step("text", ("nothing",)))


def test_few_names_are_said_of_which_all_that_is_learned_is_made(folder, monkeypatch):
    world = open_world(str(folder))

    def opened(names):
        settings = {"speaker": {"kind": "espeak", "voices": 3}, "held_out": 0.34, "voices_of_name": 1, "sentences": 20}
        place = folder / f"clips{names}"
        place.mkdir()
        (place / "speech.json").write_text(json.dumps(settings | ({} if names is None else {"names": names})))
        clips = open_clips(str(place))
        monkeypatch.setattr(clips, "joined", lambda texts, voice, *how: said.update(texts) or Waveform([0.0], 16000))
        return clips

    said = set()
    whole, same, few = opened(None), opened(1.0), opened(0.5)
    assert whole.identity == same.identity != few.identity
    names = {thing.one for thing in world.of(held_out=False)}
    wanted = {text for text, _ in pieces(world, few)}
    assert 0 < len(names & wanted) < len(names) and names <= {text for text, _ in pieces(world, whole)}
    for name in MAKERS:
        for index in range(40):
            make_record(world, name, index, "train", few)
    assert said <= wanted, "no piece that is not spoken ahead"
    with pytest.raises(UserError, match="names in speech.json leaves no thing"):
        make_record(world, "tts", 0, "train", opened(0.0))


@pytest.mark.slow
@pytest.mark.skipif(not (TRUE / "wordnet").is_dir(), reason="OMNIDIFF_COMMONS names no folder of Commons")
def test_the_miniature_ends_in_a_report(tmp_path, omnidiff):
    """In four steps a training, two cases an exam, spoken by espeak; then all of it is there, and nothing is done."""
    parts = tmp_path / "parts"
    parts.mkdir()
    for part in ("google", "twitter", "wordnet", "imagenet", "whisper", "dnsmos", "recorded", "prompts"):
        if (TRUE / part).is_dir():
            (parts / part).symlink_to(TRUE / part)
    words = [
        "commons",
        f"--workdir={tmp_path}/run",
        f"--commons={parts}",
        "--preset=miniature",
        "--steps=4",
        "--cases=2",
    ]
    done = omnidiff(*words, timeout=3000)
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "run/model/scorecard.json").read_text())
    assert {"asr", "t2i", "spoken_vqa"} <= set(card["exams"]["commons"]["tasks"])
    assert (tmp_path / "run/model/report.html").stat().st_size > 50_000
    again = omnidiff(*words)
    assert again.returncode == 0 and "9 steps, of which 9 are done" in again.stdout
