"""Imports point down: the layer table of docs/architecture.md, read from the document and enforced on the code."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = "omnidiff_jax"
FLOORS = (LIBRARY, "data_pipelines", "experiments")
DOORS = {("omnidiff_jax.cli", "experiments")}
"""The one climb there is: `omnidiff COMMAND` finds `experiments.COMMAND` by name (docs/architecture.md)."""
LOADERS = ("run_module", "import_module", "find_spec", "__import__")


class Room(NamedTuple):
    """A folder of the library, or the single files of one layer, which share their folder.

    `layer` is the row of the table and how many arrows stand left of the room in it.
    """

    layer: tuple[int, int]
    name: str


def layer_table(document: str) -> dict[str, Room]:
    """First name under `omnidiff_jax` -> its room, from the rows `| 1 | `media/` → `models/` | … |`; base is row -1."""
    rooms: dict[str, Room] = {}
    for row, cell in re.findall(r"^\| (base|\d+) \| ([^|]*) \|", document, flags=re.MULTILINE):
        for step, names in enumerate(cell.split("→")):
            layer = (-1 if row == "base" else int(row), step)
            for name in re.findall(r"`([^`]+)`", names):
                if name.endswith(".py"):
                    rooms[name.removesuffix(".py")] = Room(layer, "files")
                else:
                    rooms[name.removesuffix("/")] = Room(layer, name)
    return rooms


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, of every module on the three floors; a package's name stands for its `__init__.py`."""
    found = {}
    for floor in FLOORS:
        for path in sorted((root / floor).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path) -> Iterator[str]:
    """Absolute dotted names imported anywhere in the file, `from a import b` as both `a` and `a.b`."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def named(path: Path) -> Iterator[str]:
    """Modules that the file names in strings: what `runpy` and `importlib` are told to load, what stands after `-m`.

    Of a name put together at run time the part that is known is given; docstrings are not code.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}

    def text(node: ast.expr | None) -> str:
        if isinstance(node, ast.Name):
            return text(constants.get(node.id))
        if isinstance(node, ast.BinOp):
            return text(node.left)
        if isinstance(node, ast.FormattedValue):
            return text(node.value) or "\0"
        if isinstance(node, ast.JoinedStr):
            return "".join(map(text, node.values)).partition("\0")[0]
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""

    for node in ast.walk(tree):
        found = ""
        if isinstance(node, ast.Call) and node.args:
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            found = text(node.args[0]) if function in LOADERS else ""
        elif isinstance(node, ast.List | ast.Tuple):
            words = [text(element) for element in node.elts]
            found = next((word for flag, word in itertools.pairwise(words) if flag == "-m"), "")
        elif isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in prose:
            match = re.search(r"(?:^|\s)-m\s+([\w.]+)", text(node))
            found = match[1] if match else ""
        if found.strip("."):
            yield found.strip(".")


def reached(root: Path, start: str) -> dict[str, list[str]]:
    """Module -> a chain of imports that leads to it, from any module of the package `start` through the library."""
    found = modules(root)
    ways = {name: [name] for name in found if name == start or name.startswith(start + ".")}
    waiting = list(ways)
    while waiting:
        name = waiting.pop()
        for target in {*imports(name, found[name]), *named(found[name])}:
            parts = target.split(".")
            # Importing a module loads the packages around it first.
            for module in (".".join(parts[:n]) for n in range(2, len(parts) + 1)):
                if module in found and module not in ways:
                    ways[module] = [*ways[name], module]
                    waiting.append(module)
    return ways


def breaches(root: Path) -> list[str]:
    """Every import that breaks the table, each as one line; empty when the house is in order."""
    rooms = layer_table((root / "docs" / "architecture.md").read_text(encoding="utf-8"))
    found = modules(root)
    graph: dict[str, set[str]] = {}
    lines = []

    def room_of(module: str) -> Room | None:
        parts = module.split(".")
        return rooms.get(parts[1]) if parts[0] == LIBRARY and len(parts) > 1 else None

    for name, path in found.items():
        where = path.relative_to(root)
        room = room_of(name)
        if room is None and name.startswith(LIBRARY + "."):
            lines.append(f"{where}: {name.split('.')[1]!r} is not in the table of docs/architecture.md")
            continue
        names = set(imports(name, path))
        graph[name] = {target for target in names if target in found} - {name}
        strings = {target for target in named(path) if (name, target) not in DOORS}
        for target in sorted(names | strings):
            floor = target.split(".")[0]
            if floor not in FLOORS:
                continue
            if FLOORS.index(floor) > FLOORS.index(name.split(".")[0]):
                lines.append(f"{where}: {name} imports {target} from a floor above")
                continue
            source_of = room_of(target)
            if room is None or source_of is None or source_of == room or source_of.layer < room.layer:
                continue
            kind = "sideways" if source_of.layer == room.layer else "up"
            lines.append(f"{where}: layer {room.layer[0]} imports {kind}: {target} (layer {source_of.layer[0]})")
    return lines + [f"cycle: {' -> '.join(cycle)}" for cycle in cycles(graph)]


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One path for each back edge of a depth-first walk: empty exactly when the graph has no cycle."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> None:
        if node in path:
            found.append([*path[path.index(node) :], node])
            return
        if node in done:
            return
        for target in sorted(graph.get(node, ())):
            # Importing a sibling loads the package's `__init__` first: python's own doing, not a cycle of ours.
            if not node.startswith(target + "."):
                visit(target, [*path, node])
        done.add(node)

    for start in sorted(graph):
        visit(start, [])
    return found


def test_the_house_is_in_order() -> None:
    assert breaches(ROOT) == []


def test_sampling_imports_no_model() -> None:
    ways = reached(ROOT, f"{LIBRARY}.sampling")
    assert f"{LIBRARY}.sampling.loop" in ways and f"{LIBRARY}.diffusion.alignment" in ways
    assert {m: " -> ".join(way) for m, way in ways.items() if m.startswith(f"{LIBRARY}.models")} == {}


def test_a_model_behind_other_modules_is_reached(tmp_path: Path) -> None:
    files = {
        "sampling/__init__.py": "",
        "sampling/loop.py": "from omnidiff_jax.sampling import canvas",
        "sampling/canvas.py": "def late():\n    from omnidiff_jax.diffusion.loss import mean",
        "diffusion/__init__.py": "import_module('omnidiff_jax.models.backbone')",
        "diffusion/loss.py": "",
        "models/backbone.py": "",
    }
    for name, text in files.items():
        path = tmp_path / LIBRARY / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    way = reached(tmp_path, f"{LIBRARY}.sampling")[f"{LIBRARY}.models.backbone"]
    assert way[1:] == [f"{LIBRARY}.diffusion", f"{LIBRARY}.models.backbone"]


def test_the_table_is_read() -> None:
    rooms = layer_table((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert rooms["errors"].layer == (-1, 0) and rooms["models"] == Room((1, 1), "models/")
    assert rooms["media"].layer < rooms["models"].layer < rooms["tokenizers"].layer < rooms["cli"].layer
    assert rooms["records"] == rooms["batch"] != rooms["sharding"]


@pytest.mark.parametrize(
    ("file", "line", "expected"),
    [
        ("omnidiff_jax/models/backbone.py", "from omnidiff_jax.tasks import chat", "imports up: omnidiff_jax.tasks"),
        ("omnidiff_jax/models/backbone.py", "from ..diffusion.loss import mean", "imports sideways"),
        ("omnidiff_jax/media/audio.py", "from omnidiff_jax.models import rope", "imports up: omnidiff_jax.models"),
        ("omnidiff_jax/rng.py", "import omnidiff_jax.models", "imports up"),
        ("omnidiff_jax/models/backbone.py", "def f():\n    import experiments.train", "from a floor above"),
        ("data_pipelines/scenes.py", "from experiments import train", "from a floor above"),
        ("omnidiff_jax/rng.py", "import runpy\nrunpy.run_module('experiments.train')", "from a floor above"),
        ("omnidiff_jax/rng.py", "UP = 'experiments'\nrun_module(f'{UP}.{name}', 1)", "from a floor above"),
        ("omnidiff_jax/rng.py", "importlib.import_module('omnidiff_jax.tasks.' + name)", "imports up"),
        ("omnidiff_jax/rng.py", "COMMAND = [sys.executable, '-m', 'experiments.train', *rest]", "from a floor above"),
        ("omnidiff_jax/rng.py", "os.system(f'{python} -m experiments.train {rest}')", "from a floor above"),
        ("omnidiff_jax/cellar/wine.py", "", "'cellar' is not in the table"),
        ("omnidiff_jax/models/rope.py", "from omnidiff_jax.models import backbone", "cycle: "),
    ],
)
def test_a_planted_breach_is_found(tmp_path: Path, file: str, line: str, expected: str) -> None:
    files = {
        "omnidiff_jax/__init__.py": "",
        "omnidiff_jax/rng.py": "from omnidiff_jax import errors",
        "omnidiff_jax/errors.py": "",
        "omnidiff_jax/models/__init__.py": "",
        "omnidiff_jax/models/backbone.py": "from omnidiff_jax.models import rope\nfrom omnidiff_jax.rng import key",
        "omnidiff_jax/media/audio.py": "import numpy",
        "omnidiff_jax/models/rope.py": "from omnidiff_jax.media import audio",
        "omnidiff_jax/diffusion/loss.py": "import omnidiff_jax.errors",
        "omnidiff_jax/tasks/chat.py": "from omnidiff_jax.models.backbone import Backbone",
        "data_pipelines/scenes.py": "from omnidiff_jax.tasks import chat",
        "experiments/train.py": "from data_pipelines import scenes",
        "docs/architecture.md": (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"),
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert breaches(tmp_path) == []

    planted = tmp_path / file
    planted.parent.mkdir(parents=True, exist_ok=True)
    before = planted.read_text(encoding="utf-8") if planted.exists() else ""
    planted.write_text(f"{before}\n{line}\n", encoding="utf-8")
    found = breaches(tmp_path)
    assert len(found) >= 1 and expected in "; ".join(found)
