"""`omnidiff COMMAND [flags]`: finds the module `experiments.COMMAND` and runs it as `python -m` would."""

import ast
import errno
import importlib.util
import os
import runpy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Never

from omnidiff_jax import __version__
from omnidiff_jax.config import suggest
from omnidiff_jax.errors import UserError
from omnidiff_jax.signals import INTERRUPTED, PREEMPTED, Terminated, heeded, leave

# Packages of commands, each with what `omnidiff --help` calls them.
SCRIPTS = {"experiments": "commands", "experiments.checks": "checks of developers"}
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# Of a path that the user gave: nothing there, a file where a folder should be, a folder that is not theirs.
_UNUSABLE = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
)


def main() -> Never:
    """Entry point of the console script; exits with the command's status."""
    leave(lambda: guard("omnidiff", lambda: dispatch(sys.argv[1:])))


def dispatch(arguments: list[str]) -> None:
    """Runs one command line, without the leading `omnidiff`.

    Raises:
        UserError: the command does not exist.
        SystemExit: with the command's own status.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return
    name, *rest = arguments
    if name == "--version":
        print(__version__)
        return
    found = commands()
    if name not in found:
        raise UserError(f"unknown command {name!r}; {suggest(name, found)}; `omnidiff --help` lists them")
    sys.argv = [f"omnidiff {name}", *rest]
    runpy.run_module(f"{found[name].package}.{name}", run_name="__main__", alter_sys=True)


class Script(NamedTuple):
    """A command: the package that its module stands in, and the first line of its docstring."""

    package: str
    summary: str


def commands() -> dict[str, Script]:
    """Every command by name: the modules of the packages `SCRIPTS` that run as scripts."""
    found = {}
    for package in SCRIPTS:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"the package {package!r} is not installed; `pip install` the whole project")
        for folder in spec.submodule_search_locations:
            for path in sorted(Path(folder).glob("*.py")):
                tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
                if any(isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) for node in tree.body):
                    found[path.stem] = Script(package, (ast.get_docstring(tree) or "").partition("\n")[0])
    return found


def overview() -> str:
    """The text of `omnidiff --help`."""
    found = commands()
    width = max(map(len, found), default=0)
    lines = ["usage: omnidiff COMMAND [flags]"]
    for package, title in SCRIPTS.items():
        rows = [f"  {name:<{width}}  {script.summary}" for name, script in found.items() if script.package == package]
        lines += ["", f"{title}:", *rows]
    return "\n".join([*lines, "", "omnidiff COMMAND --help shows its flags."])


def guard(program: str, function: Callable[[], None]) -> int:
    """Calls `function`; what the user did wrong becomes one line on stderr, without a traceback.

    Returns:
        The exit status: 0 done, 2 bad input or a full disk, 75 SIGTERM, 130 interrupted. Other exceptions are bugs and
        pass through. With OMNIDIFF_DEBUG=1 in the environment the traceback is printed too.
    """
    try:
        with heeded():
            function()
            if sys.stdout is not None:  # closed by whoever started us
                sys.stdout.flush()
        return 0
    except UserError as error:
        return _explain(program, str(error))
    except BrokenPipeError:
        # The reader of our output left, as `head` does; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno in _UNUSABLE and error.filename:
            return _explain(program, f"cannot use {error.filename}: {error.strerror}; name another place")
        if error.errno not in _DISK_FULL:
            raise
        where = error.filename or "the output folder"
        return _explain(program, f"no space left on the disk of {where}; free some and run again")
    except RuntimeError as error:
        if "Unable to initialize backend" not in str(error):
            raise
        platforms = os.environ.get("JAX_PLATFORMS", "")
        return _explain(program, f"JAX_PLATFORMS={platforms} names no devices that are here ({error}); leave it unset")
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Terminated:
        print(f"{program}: ended by SIGTERM; start again to go on", file=sys.stderr)
        return PREEMPTED


def _explain(program: str, message: str) -> int:
    if os.environ.get("OMNIDIFF_DEBUG") == "1":
        traceback.print_exc()
    print(f"{program}: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
