"""Commons from nothing in one command: data, clips, every tokenizer, three stages, exams, and a report to open.

    omnidiff commons --workdir=DIR --preset=miniature                      meant for twenty minutes of two cores
    omnidiff commons --workdir=DIR --commons=COMMONS                       as planned: docs/commons.md has the hours

Each step is a command of docs/commons.md, shown before it runs in a process of its own. Started again it goes on:
what is done stands in DIR/steps.json with its seconds, and a training goes on where it was stopped. COMMONS is a folder
of `omnidiff data fetch commons`, which is asked to fetch what is not there; its parts are linked into DIR/commons, and
so are its clips, if nobody asks for other voices. Without Kokoro among its parts espeak speaks.
"""

import dataclasses
import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.commons.packages import PARTS
from data_pipelines.commons.speech import SETTINGS
from experiments.common import Command
from experiments.configs.commons_presets import PLANNED, PRESETS, VOICES
from experiments.launch.local import end, start
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import path, write_bytes
from omnidiff_jax.training.operations.lock import only_run

COMMAND = Command("commons", __doc__)
WORKDIR = COMMAND.string("workdir", "folder of all that is made", "workdirs/commons")
FOLDER = COMMAND.string("commons", "folder of `omnidiff data fetch commons` (default: DIR/commons, fetched first)")
ARCHIVES = COMMAND.string("archives", "folder of packages downloaded elsewhere, to fetch from")
PRESET = COMMAND.choice("preset", "of all configs (default: as planned)", tuple(PRESETS))
STEPS = COMMAND.integer("steps", "most steps of a training", 0, minimum=0)
CASES = COMMAND.integer("cases", "of each exam (default: 200, or 8 of the miniature)", minimum=1)

_CONFIGS = "experiments/configs"
_CASES = {"miniature": 8}
_NEEDED = tuple(name for name in PARTS if name != "qwen")


@dataclasses.dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of what it makes.
        words: after `omnidiff`.
    """

    name: str
    words: tuple[str, ...]

    @property
    def line(self) -> str:
        return shlex.join(("omnidiff", *self.words))


def run() -> None:
    workdir, preset = path(str(WORKDIR.value)), PRESET.value or ""
    workdir.mkdir(parents=True, exist_ok=True)
    with only_run(workdir):
        folder = workdir / "commons"
        fetched = path(FOLDER.value) if FOLDER.value else folder
        cases = CASES.value or _CASES.get(preset, 200)
        steps = plan(workdir, fetched, preset, STEPS.value or 0, cases, ARCHIVES.value or "")
        done = _done(workdir)
        left = [step for step in steps if step.line not in done]
        print(f"commons: {len(steps)} steps, of which {len(steps) - len(left)} are done; {workdir} gets it all")
        for number, step in enumerate(steps, start=1):
            if step.line in done:
                print(f"{number}/{len(steps)} {step.name}: done in {done[step.line]:.0f} s")
                continue
            if step.name == "clips":
                prepare(fetched, folder, preset)
            print(f"{number}/{len(steps)} {step.name}: {step.line}", flush=True)
            began = time.perf_counter()
            perform(step)
            done[step.line] = time.perf_counter() - began
            write_bytes(workdir / "steps.json", (json.dumps(done, indent=1) + "\n").encode())
    print(f"{sum(done.values()) / 60:.0f} minutes; open {workdir}/model/report.html")


def plan(workdir: Path, fetched: Path, preset: str, most: int, cases: int, archives: str = "") -> list[Step]:
    """The commands, in their order.

    Args:
        workdir: of all.
        fetched: the folder that parts are fetched into, where they are not there.
        preset: of the configs, "" = as planned.
        most: steps of a training; 0 = as planned.
        cases: of each exam.
        archives: folder of packages to fetch from, "" = from registries.
    """
    folder = str(workdir / "commons")
    suffix, capped = f":{preset}" if preset else "", (f"--config.total_steps={most}",) if most else ()
    made = {name: str(workdir / name / "export") for name in ("text", "image", "hears", "codes", "mel", "voice")}

    def training(name: str, config: str, *words: str) -> Step:
        file, cap = f"--config={_CONFIGS}/{config}.py{suffix}", () if name == "text" else capped
        return Step(name, ("train", file, f"--workdir={workdir / name}", *words, *cap))

    def tokenizer(name: str, config: str, *words: str) -> Step:
        key = "--config.pictures.folder" if name == "image" else "--config.folder"
        return training(name, f"tokenizers/commons_{config}", f"{key}={folder}", *words)

    def fetch() -> Iterator[Step]:
        if not (fetched / "google").is_dir():
            from_here = (f"--archives={archives}",) if archives else ()
            parts = (f"--part={name}" for name in _NEEDED)
            yield Step("parts", ("data", "fetch", "commons", str(fetched), *from_here, *parts))

    return [
        *fetch(),
        Step("clips", ("data", "speak", folder)),
        tokenizer("text", "text"),
        tokenizer("image", "image"),
        tokenizer("hears", "speech_encoder"),
        tokenizer("codes", "speech_tokenizer"),
        tokenizer("mel", "speech_decoder", f"--config.speech_tokenizer={made['codes']}"),
        tokenizer("voice", "vocoder", f"--config.speech_decoder={made['mel']}"),
        training(
            "model",
            "commons",
            f"--config.data.sources.text_qa.path={folder}",
            f"--config.tokenizers.text={made['text']}",
            f"--config.tokenizers.image={made['image']}",
            f"--config.tokenizers.speech_encoder={made['hears']}",
            f"--config.tokenizers.speech_tokenizer={made['codes']}",
            f"--config.tokenizers.speech_decoder={made['voice']}",
        ),
        Step(
            "exams",
            (
                "evaluate",
                f"--workdir={workdir / 'model'}",
                "--exam=commons",
                "--exam=recorded",
                f"--data={folder}",
                f"--cases={cases}",
            ),
        ),
    ]


def prepare(fetched: Path, folder: Path, preset: str) -> None:
    """Links the parts of Commons into a folder of their own, and says who speaks where nobody has said it.

    Raises:
        UserError: nothing was fetched.
    """
    if not (fetched / "google").is_dir():
        raise UserError(f"{fetched} has no pictures; it should be a folder of `omnidiff data fetch commons`")
    clips, spoken = folder / "clips", fetched / "clips" / SETTINGS
    linked = [fetched / name for name in PARTS if (fetched / name).is_dir()]
    if spoken.is_file() and preset not in VOICES:
        linked.append(fetched / "clips")
    folder.mkdir(exist_ok=True)
    for part in linked:
        if not (folder / part.name).exists():
            (folder / part.name).symlink_to(part.absolute(), target_is_directory=True)
    if not (clips / SETTINGS).is_file():
        clips.mkdir(exist_ok=True)
        write_bytes(clips / SETTINGS, (json.dumps(_voices(folder, preset)) + "\n").encode())


def _voices(folder: Path, preset: str) -> dict[str, Any]:
    """What stands in `speech.json`: Kokoro, where it is, or espeak."""
    settings = dict(VOICES.get(preset, PLANNED))
    who: dict[str, Any] = {"kind": "espeak"}
    if (folder / "kokoro").is_dir():
        who = {"kind": "kokoro", "folder": str((folder / "kokoro").absolute())}
    return {"speaker": who | {"voices": settings.pop("voices")}, **settings}


def perform(step: Step) -> None:
    """Runs a command in a process of its own, which saves what it has where this one is told to end.

    Raises:
        UserError: it fails.
    """
    children = start([sys.executable, "-m", "omnidiff_jax.cli", *step.words], 1)
    try:
        status = children[0].wait()
    finally:
        end(children, signal.SIGTERM)
        children[0].wait()
    if status:
        raise UserError(f"step {step.name!r} ended with status {status}, for the reason above; start again to go on")


def _done(workdir: Path) -> dict[str, float]:
    """Seconds of each step that was done, by its line."""
    file = workdir / "steps.json"
    try:
        found: Mapping[str, float] = json.loads(file.read_text())
        return {str(line): float(seconds) for line, seconds in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"cannot read {file} ({error}); remove it, and every step looks for what is there") from error


if __name__ == "__main__":
    COMMAND.main(run)
