"""What every command shares: flags, `--config=FILE --config.key=value`, one-line errors, the compilation cache.

A command is one module:

    COMMAND = Command("count", __doc__, arguments="FILE")
    CONFIG = COMMAND.config("experiments/configs/nano.py")
    WORKDIR = COMMAND.string("workdir", "folder of the run", required=True)

    def run(file: str) -> None:
        print(WORKDIR.value, CONFIG.value.seed, file)

    if __name__ == "__main__":
        COMMAND.main(run)

Each command holds its flags in its own table, so that a process may import several.
"""

import collections
import functools
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Never

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from omnidiff_jax.cli import guard
from omnidiff_jax.compilation import use_cache
from omnidiff_jax.config import suggest, to_dict
from omnidiff_jax.errors import UserError
from omnidiff_jax.signals import leave

PROJECT = Path(__file__).parents[1]


class ConfigHolder:
    """The config of a command, read when it is first asked for.

    Attributes:
        default: its file, where the command line names none.
        file: the one named by the command line, or None.
        words: the command line's `--config.key=value`.
    """

    def __init__(self, default: str | None):
        self.default = default
        self.set(None, [])

    def set(self, file: str | None, words: list[str]) -> None:
        self.file, self.words = file, words
        self._value: ConfigDict | None = None

    @property
    def name(self) -> str:
        return Path(self._source().partition(":")[0]).stem

    @property
    def value(self) -> ConfigDict:
        """Raises a `UserError` as `load_config` does, and where no file is named."""
        if self._value is None:
            self._value = load_config(self._source(), self.words)
        return self._value

    def _source(self) -> str:
        file = self.file or self.default
        if not file:
            raise UserError("--config is missing: --config=experiments/configs/nano.py, or a file of your own")
        return file


class Command:
    """A command's name, documentation, flags and positional arguments.

    Args:
        name: as in `omnidiff NAME`.
        doc: the script's docstring: its first line is the summary in `omnidiff --help`.
        arguments: positional arguments as the usage line shows them: `SRC DST`, `[FILE]` optional, `FILE...` many.
    """

    def __init__(self, name: str, doc: str, arguments: str = ""):
        self.program = f"omnidiff {name}"
        self._doc = doc.strip()
        self._arguments = arguments.split()
        self._flags = flags.FlagValues()
        self._flags.set_gnu_getopt(True)
        self._required: list[str] = []
        self._config: ConfigHolder | None = None
        self._at_once = True

    def string(
        self, name: str, help: str, default: str | None = None, required: bool = False
    ) -> flags.FlagHolder[str | None]:
        return flags.DEFINE_string(name, default, self._note(name, help, required), flag_values=self._flags)

    def strings(self, name: str, help: str) -> flags.FlagHolder[list[str]]:
        """A flag that may be given several times."""
        return flags.DEFINE_multi_string(name, [], help, flag_values=self._flags)

    def integer(
        self, name: str, help: str, default: int | None = None, required: bool = False, minimum: int | None = None
    ) -> flags.FlagHolder[int | None]:
        note = self._note(name, help, required)
        return flags.DEFINE_integer(name, default, note, lower_bound=minimum, flag_values=self._flags)

    def number(self, name: str, help: str, default: float | None = None) -> flags.FlagHolder[float | None]:
        return flags.DEFINE_float(name, default, help, flag_values=self._flags)

    def switch(self, name: str, help: str) -> flags.FlagHolder[bool]:
        """A flag that is off unless given."""
        return flags.DEFINE_boolean(name, False, help, flag_values=self._flags)

    def choice(
        self, name: str, help: str, choices: Sequence[str], default: str | None = None, required: bool = False
    ) -> flags.FlagHolder[str | None]:
        """A flag with listed values; another value is refused with the nearest one."""
        holder = self.string(name, f"{help}: {', '.join(choices)}", default, required)

        def check(value: str | None) -> bool:
            if value is not None and value not in choices:
                raise flags.ValidationError(suggest(value, choices))
            return True

        flags.register_validator(name, check, flag_values=self._flags)
        return holder

    def config(self, default: str | None = None, *, at_once: bool = True) -> ConfigHolder:
        """Adds `--config=FILE` and `--config.key=value`; without a default file, `--config` is required.

        Args:
            default: the file where none is named.
            at_once: read the config while the command line is parsed; else when its value is asked for, which a
                command may never do.
        """
        self._config, self._at_once = ConfigHolder(default), at_once
        return self._config

    def main(self, run: Callable[..., None]) -> Never:
        """Parses `sys.argv`, calls `run(*positional arguments)` and exits with its status."""
        leave(lambda: guard(self.program, lambda: self.call(run, sys.argv[1:])))

    def call(self, run: Callable[..., None], argv: list[str]) -> None:
        """`main` without the exit: errors are raised.

        Raises:
            UserError: a flag, config key or positional argument is unknown, missing or malformed.
        """
        if {"-h", "--help"} & set(argv):
            print(self.usage())
            return
        arguments = self.parse(argv)
        logging.set_verbosity(logging.ERROR)  # a library's warnings would bury the one line that matters
        use_cache()
        run(*arguments)

    def parse(self, argv: list[str]) -> list[str]:
        """Fills the flags from `argv` (without the program's name); returns the positional arguments."""
        rest = self._parse_config(argv) if self._config else argv
        self._flags.unparse_flags()
        for name in self._flags:
            self._flags[name].unparse()  # back to its default: a process may call a command twice
        try:
            arguments = self._flags([self.program, *rest])[1:]
        except flags.Error as error:
            raise UserError(f"{_reword(error)}; `{self.program} --help` lists the flags") from error
        for name in self._required:
            if self._flags[name].value is None:
                raise UserError(f"--{name} is missing: {self._flags[name].help}")
        fewest = sum(not word.startswith("[") for word in self._arguments)
        most = len(argv) if any("..." in word for word in self._arguments) else len(self._arguments)
        if not fewest <= len(arguments) <= most:
            expected = " ".join(self._arguments) or "no arguments beside flags"
            raise UserError(f"got {' '.join(arguments) or 'no arguments'}; expected {expected}")
        return arguments

    def usage(self) -> str:
        """The text of `--help`."""
        rows = []
        if self._config:
            note = f" (default: {self._config.default})" if self._config.default else ""
            rows += [("--config=FILE", f"the config, a python file with get_config(){note}")]
            rows += [("--config.KEY=VALUE", "replaces one value of the config")]
        for name in self._flags:
            flag = self._flags[name]
            note = f" (default: {flag.default})" if flag.default not in (None, False, [], "") else ""
            # absl appends its own sentence to flags that repeat, after a line break.
            text = flag.help.partition(";\n")[0]
            rows.append((f"--{name}" if flag.boolean else f"--{name}=…", f"{text}{note}"))
        width = max((len(left) for left, _ in rows), default=0)
        table = [f"  {left:<{width}}  {right}" for left, right in rows]
        return "\n".join([f"usage: {' '.join([self.program, *self._arguments])} [flags]", "", self._doc, "", *table])

    def _note(self, name: str, help: str, required: bool) -> str:
        if required:
            self._required.append(name)
        return help

    def _parse_config(self, argv: list[str]) -> list[str]:
        assert self._config is not None
        file, overrides, rest = None, [], []
        words = collections.deque(argv)
        while words:
            word = words.popleft()
            if word == "--":
                rest += [word, *words]
                break
            if match := re.fullmatch(r"--?config(?:=(.*))?", word, re.DOTALL):
                file = match[1] if match[1] is not None or not words else words.popleft()
            elif re.match(r"--?(no)?config\.", word):
                # `--config.key value` is `--config.key=value`; a switch stands alone.
                takes_next = "=" not in word and words and not words[0].startswith("--")
                overrides.append(f"{word}={words.popleft()}" if takes_next else word)
            else:
                rest.append(word)
        self._config.set(file or None, overrides)
        if self._at_once:
            _ = self._config.value
        return rest


def load_config(file: str, overrides: Iterable[str] = ()) -> ConfigDict:
    """Runs a config file's `get_config()`; `FILE:WORD` passes it WORD.

    Args:
        file: a path; one that starts with `experiments/` is also found from other working folders.
        overrides: `--config.key=value` words, in ml_collections' syntax.

    Returns:
        The config, locked: its keys are fixed.

    Raises:
        UserError: no such file, a file that fails, an unknown key, or a value of another type.
    """
    return override(_run_config_file(file), overrides, file)


def override(config: ConfigDict, overrides: Iterable[str], file: str) -> ConfigDict:
    """`config` with values replaced, and locked; arguments, result and errors as for `load_config`."""
    words = list(overrides)
    for word in words:
        key = re.sub(r"^--?(no)?config\.", "", word.partition("=")[0])
        known = _keys(config)
        if key not in known and not _add(config, key):
            raise UserError(f"unknown config key {key!r} for {file}; {suggest(key, known)}")
    table = flags.FlagValues()
    try:
        # ml_collections defines one typed flag for each override it finds in `sys_argv`.
        holder = config_flags.DEFINE_config_dict("config", config, flag_values=table, sys_argv=words)
        table(["omnidiff", *words])
        return holder.value
    except flags.IllegalFlagValueError as error:
        raise UserError(_reword_config(str(error), config, file)) from error
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(_reword(error)) from error


def _run_config_file(file: str) -> ConfigDict:
    name, _, argument = file.partition(":")
    path = Path(name).expanduser()
    if not path.exists() and name.startswith("experiments/"):
        path = PROJECT / name
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else PROJECT / "experiments" / "configs"
        others = [str(folder / other.name) for other in folder.glob("*.py") if other.name != "__init__.py"]
        remedy = suggest(str(folder / path.name), others) if others else "give the path of a python file"
        raise UserError(f"config file {name} does not exist; {remedy}")
    spec = importlib.util.spec_from_file_location("omnidiff_config", path)
    if spec is None or spec.loader is None:
        raise UserError(f"config file {name} is not a python file; give one that defines get_config()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*([argument] if argument else []))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"config file {name} fails: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"config file {name}: get_config() returns {type(config).__name__}; it must return a ConfigDict"
        )
    return config


@functools.cache
def _added() -> tuple[tuple[str, dict[str, Any] | None, Any], ...]:
    """What a command line may add: a source with its columns and rules, its weight in a stage, how sets are built.

    With each, what a group that is not there holds at first, None = it must be there; and the value that says the type.
    """
    # Readers import much, and few command lines add anything.
    from omnidiff_jax.data.config import EncodingConfig
    from omnidiff_jax.data.readers import SourceConfig

    source, encoding = to_dict(SourceConfig(reader="")), to_dict(EncodingConfig())
    return (
        (rf"((?:data|held_out)\.sources\.[\w-]+)\.({'|'.join(source)})", source, None),
        (r"((?:data|held_out)\.sources\.[\w-]+\.columns)\.(\w+)", {}, ""),
        (r"((?:data|held_out)\.sources\.[\w-]+\.rules)\.(\w+)", {}, False),
        (rf"(data\.encoding)\.({'|'.join(encoding)})", encoding, None),
        (r"(stages\.[\w-]+\.(?:weights|epochs))\.([\w-]+)", None, 0.0),
    )


def _add(config: ConfigDict, key: str) -> bool:
    """Makes room for a key of an open group; whether it is one."""
    for pattern, fields, default in _added():
        match = re.fullmatch(pattern, key)
        if not match:
            continue
        place, parents = config, match[1].split(".")
        for depth, name in enumerate(parents):
            if name not in place:
                if fields is None or depth < len(parents) - 1:
                    return False
                with place.unlocked():
                    place[name] = ConfigDict(fields)
            place = place[name]
        with place.unlocked():
            if match[2] not in place:
                place[match[2]] = (fields or {}).get(match[2], default)
        return True
    return False


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
    keys = []
    for key, value in config.items(preserve_field_references=True):
        keys.append(prefix + key)
        if isinstance(value, ConfigDict):
            keys += _keys(value, f"{prefix}{key}.")
    return keys


def _reword(error: Exception) -> str:
    """absl's messages in this project's words."""
    text = " ".join(str(error).split()).rstrip(".")
    text = re.sub(
        r"^Type (.*?) of field config\.(\S+) is not supported .*", r"config key '\2' (\1) is set in its file", text
    )
    text = re.sub(r"^flag (--[^=]+=.*?): (invalid literal|could not convert).*", r"\1 is not a number", text)
    text = re.sub(r"^flag (--[^=]+=.*?): ", r"\1: ", text)
    if match := re.fullmatch(r"Unknown command line flag '([^']*)'(?:. Did you mean: (.*?) \?)?", text):
        return f"unknown flag --{match[1]}" + (f"; did you mean --{match[2]}?" if match[2] else "")
    return text


def _reword_config(text: str, config: ConfigDict, file: str) -> str:
    match = re.match(r"flag --config\.([^=]+)=(.*?): ", text, re.DOTALL)
    if not match:
        return text
    value = config
    for part in match[1].split("."):
        value = value[part]
    return f"config key {match[1]!r} = {match[2]!r} must be {type(value).__name__}, like {value!r} in {file}"
