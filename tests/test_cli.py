"""The command line: the table of commands, flags, configs, and one line for whatever the user got wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import jax
import pytest

from experiments import common
from experiments.common import Command, load_config
from omnidiff_jax import cli
from omnidiff_jax.compilation import use_cache
from omnidiff_jax.errors import UserError

CONFIG = """
    from ml_collections import ConfigDict

    def get_config(name="plain"):
        return ConfigDict({"seed": 0, "rate": 1e-4, "name": name, "ema": True, "sizes": (1, 2), "end": None,
                           "mesh": {"data": -1, "fsdp": 1}})
"""


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "small.py"
    path.write_text(textwrap.dedent(CONFIG))
    return str(path)


def message(function: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        function()
    return str(caught.value)


# Configs


def test_overrides_replace_values_and_keep_types(config_file: str) -> None:
    words = ["--config.seed=3", "--config.rate=1", "--noconfig.ema", "--config.mesh.data=4", "--config.sizes=(3,4,5)"]
    config = load_config(f"{config_file}:named", words)
    assert config.to_dict() == {
        "seed": 3,
        "rate": 1.0,
        "name": "named",
        "ema": False,
        "sizes": (3, 4, 5),
        "end": None,
        "mesh": {"data": 4, "fsdp": 1},
    }
    assert config.is_locked and load_config(config_file).seed == 0


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--config.sed=3", "unknown config key 'sed'"),
        ("--config.sed=3", "did you mean 'seed'?"),
        ("--config.mesh.fdsp=3", "did you mean 'mesh.fsdp'?"),
        ("--config.seed=abc", "config key 'seed' = 'abc' must be int, like 0 in"),
        ("--config.ema=maybe", "config key 'ema' = 'maybe' must be bool, like True in"),
        ("--config.mesh.data=many", "config key 'mesh.data' = 'many' must be int"),
        ("--config.end=3", "config key 'end' (<class 'NoneType'>) is set in its file"),
    ],
)
def test_a_wrong_override_is_named(config_file: str, word: str, expected: str) -> None:
    assert expected in message(lambda: load_config(config_file, [word]))


def test_a_wrong_config_file_is_named(tmp_path: Path, config_file: str) -> None:
    assert f"did you mean '{config_file}'?" in message(lambda: load_config(str(tmp_path / "smal.py")))
    broken = tmp_path / "broken.py"
    for text, expected in (
        ("def get_config(): return 1 / 0", "broken.py fails: ZeroDivisionError: division by zero"),
        ("def get_config(:", "broken.py fails: SyntaxError"),
        ("x = 1", "broken.py fails: AttributeError"),
        ("def get_config(): return {}", "get_config() returns dict; it must return a ConfigDict"),
    ):
        broken.write_text(text)
        assert expected in message(lambda: load_config(str(broken)))


def test_shipped_configs_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiments" / "configs").mkdir(parents=True)
    (tmp_path / "experiments" / "configs" / "mine.py").write_text(textwrap.dedent(CONFIG))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(common, "PROJECT", tmp_path)
    assert load_config("experiments/configs/mine.py").seed == 0


# Flags


def make_command(default: str | None = None) -> Command:
    command = Command("count", "Counts things.\n\nAt length.", arguments="FILE [MORE...]")
    command.config(default)
    command.string("workdir", "folder of the run", required=True)
    command.strings("image", "a picture; repeat for several")
    command.integer("steps", "denoising steps", default=8, minimum=1)
    command.number("warmth", "sampling temperature", default=1.0)
    command.switch("json", "end with one line of JSON")
    command.choice("task", "what to do", ("t2i", "asr", "tts"))
    return command


def test_flags_positionals_and_config_are_parsed(config_file: str) -> None:
    command = Command("count", "Counts.", arguments="SRC DST")
    config = command.config()
    workdir = command.string("workdir", "folder", required=True)
    images = command.strings("image", "picture")
    json = command.switch("json", "JSON")
    task = command.choice("task", "what", ("t2i", "asr"), default="asr")
    words = ["a", "--config", config_file, "--config.seed", "5", "--noconfig.ema", "--json", "b"]
    assert command.parse([*words, "--workdir=w", "--image=1.png", "--image=2.png"]) == ["a", "b"]
    assert (config.value.seed, config.value.ema) == (5, False)
    assert (workdir.value, images.value, json.value, task.value) == ("w", ["1.png", "2.png"], True, "asr")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["f"], "--workdir is missing: folder of the run"),
        (["f", "--workdr=w"], "unknown flag --workdr; did you mean --workdir?"),
        (["f", "--workdir=w", "--steps=few"], "--steps=few is not a number"),
        (["f", "--workdir=w", "--steps=0"], "--steps=0"),
        (["f", "--workdir=w", "--warmth=hot"], "--warmth=hot is not a number"),
        (["f", "--workdir=w", "--task=t2j"], "did you mean 't2i'?"),
        (["--workdir=w"], "got no arguments; expected FILE [MORE...]"),
        (["f", "--workdir=w", "--config.sed=1"], "did you mean 'seed'?"),
        (["f", "--workdir"], "workdir"),
    ],
)
def test_a_wrong_command_line_is_named(config_file: str, words: list[str], expected: str) -> None:
    assert expected in message(lambda: make_command(config_file).parse(words))


def test_a_command_without_a_default_config_asks_for_one() -> None:
    assert "--config is missing" in message(lambda: make_command().parse(["f", "--workdir=w"]))


def test_help_shows_every_flag_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    make_command("nano.py").call(lambda *_: pytest.fail("ran"), ["--help"])
    text = capsys.readouterr().out
    for piece in ("usage: omnidiff count FILE [MORE...] [flags]", "At length.", "--config.KEY=VALUE", "nano.py"):
        assert piece in text
    assert "list of values" not in text
    for piece in ("--workdir=…", "--steps=…", "(default: 8)", "--task=…", "t2i, asr, tts", "  --json "):
        assert piece in text


def test_the_compilation_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = jax.config.jax_compilation_cache_dir
    try:
        use_cache()
        assert jax.config.jax_compilation_cache_dir == before
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        use_cache()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "omnidiff_jax" / "xla")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


# Commands


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scripts package of two commands and a helper."""
    package = tmp_path / "planted_scripts"
    (package / "configs").mkdir(parents=True)
    (package / "configs" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "common.py").write_text('"""Helps."""\n')
    main = 'if __name__ == "__main__":\n    '
    (package / "train.py").write_text(f'"""Trains.\n\nMore."""\nimport sys\n{main}print(__name__, sys.argv)\n')
    (package / "sample.py").write_text(f'"""Samples."""\n{main}raise SystemExit(3)\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(cli, "SCRIPTS", {package.name: "commands"})
    monkeypatch.setattr(sys, "argv", ["omnidiff"])


def test_commands_are_the_scripts(planted: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(cli.commands()) == ["sample", "train"]
    cli.dispatch(["--help"])
    text = capsys.readouterr().out
    assert "  train   Trains." in text and "Helps" not in text and "configs" not in text
    cli.dispatch(["train", "--seed=1"])
    assert capsys.readouterr().out.startswith("__main__ [") and sys.argv[1:] == ["--seed=1"]
    with pytest.raises(SystemExit) as caught:
        cli.dispatch(["sample"])
    assert caught.value.code == 3
    assert "did you mean 'train'?" in message(lambda: cli.dispatch(["trian"]))


def test_guard_gives_one_line_and_a_status(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise UserError("no such\nfile")

    def fill_disk() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    def interrupt() -> None:
        raise KeyboardInterrupt

    def bug() -> None:
        raise RuntimeError("bug")

    assert cli.guard("omnidiff x", lambda: None) == 0
    assert cli.guard("omnidiff x", refuse) == 2
    assert capsys.readouterr().err == "omnidiff x: no such file\n"
    assert cli.guard("omnidiff x", fill_disk) == 2
    assert "no space left on the disk of metrics.jsonl" in capsys.readouterr().err
    assert cli.guard("omnidiff x", interrupt) == 130
    with pytest.raises(RuntimeError):
        cli.guard("omnidiff x", bug)
    monkeypatch.setenv("OMNIDIFF_DEBUG", "1")
    assert cli.guard("omnidiff x", refuse) == 2
    assert "Traceback" in capsys.readouterr().err


def test_as_a_user_sees_it(omnidiff: Callable[..., CompletedProcess[str]]) -> None:
    shown = omnidiff("--help")
    assert shown.returncode == 0 and "usage: omnidiff COMMAND" in shown.stdout
    wrong = omnidiff("no-such-command")
    assert wrong.returncode == 2 and wrong.stdout == "" and wrong.stderr.count("\n") == 1
    assert "unknown command 'no-such-command'" in wrong.stderr


def test_every_command_shows_its_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["omnidiff"])
    for name in cli.commands():
        with pytest.raises(SystemExit) as caught:
            cli.dispatch([name, "--help"])
        assert caught.value.code == 0
        assert f"usage: omnidiff {name}" in capsys.readouterr().out


def test_devices_that_are_not_there_and_a_closed_output_are_no_tracebacks() -> None:
    words = [sys.executable, "-m", "omnidiff_jax.cli"]
    code = "import jax; from omnidiff_jax.cli import guard; raise SystemExit(guard('x', lambda: print(jax.devices())))"
    env = {**os.environ, "JAX_PLATFORMS": "nonsense"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "JAX_PLATFORMS=nonsense" in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *words, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
