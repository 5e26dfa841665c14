"""What a user installs: ranges and lock agree, the wheel is whole, the build tools say what is wrong."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import omnidiff_jax

ROOT = Path(__file__).parents[1]
FLOORS = ("omnidiff_jax", "data_pipelines", "experiments")
ASSETS_LIMIT = 24_000_000  # bytes


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    """The keywords setup.py calls `setup` with."""
    seen: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **keywords: seen.update(keywords))
        patch.chdir(ROOT)
        runpy.run_path(str(ROOT / "setup.py"))
    return seen


def locked(python: str) -> dict[str, str]:
    """Name -> version that requirements.lock pins on Linux for one Python."""
    environment = default_environment() | {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    pins = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            pins[requirement.name] = pin.version
    return pins


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_the_lock_lies_within_the_ranges(metadata: dict[str, Any], python: str) -> None:
    assert SpecifierSet(metadata["python_requires"]).contains(f"{python}.0")
    pins = locked(python)
    extras = metadata["extras_require"]
    known = {
        "tpu",
        "cuda",
        "build",
        "eval",
        "benchmarks",
        "parquet",
        "quantize",
        "serve",
        "gcs",
        "s3",
        "tokamax",
        "kokoro",
        "commons",
        "beam",
        "torch",
        "dev",
    }
    assert set(extras) == known
    for text in [*metadata["install_requires"], *extras["eval"], *extras["dev"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonical(requirement.name)]), text
    # The core does without the heavy and vendor parts.
    assert not {"torch", "tensorflow", "tensorflow-cpu", "apache-beam", "libtpu"} & set(pins)


def test_no_registry_or_machine_is_named() -> None:
    files = [ROOT / name for name in ("requirements.lock", "setup.py", "pyproject.toml", "Makefile", ".ci/run")]
    for path in files:
        assert not re.search(r"https?://|file://|--index|--find-links|^-[ef] ", path.read_text(), re.MULTILINE), path
    sources = [path for floor in (*FLOORS, "tests") for path in (ROOT / floor).rglob("*.py")]
    for path in [*files, *sources]:
        assert not re.search(r"(?<![\w.])/(work|root|home)/", path.read_text(encoding="utf-8")), path


def test_versions_agree(metadata: dict[str, Any]) -> None:
    assert metadata["version"] == omnidiff_jax.__version__


def test_shipped_weights_are_small() -> None:
    files = [path for path in (ROOT / "omnidiff_jax" / "assets").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= ASSETS_LIMIT


def test_the_wheel_holds_every_module_and_asset(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for floor in FLOORS:
        shutil.copytree(ROOT / floor, source / floor, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*build, "--wheel-dir", tmp_path, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry = next(name for name in names if name.endswith("entry_points.txt"))
        assert "omnidiff = omnidiff_jax.cli:main" in archive.read(entry).decode()
    wanted = {path.relative_to(ROOT) for floor in FLOORS for path in (ROOT / floor).rglob("*.py")}
    wanted |= {path.relative_to(ROOT) for path in (ROOT / "omnidiff_jax/assets").rglob("*") if path.is_file()}
    assert sorted(str(path) for path in wanted if str(path) not in names and "__pycache__" not in path.parts) == []


def test_ci_runs_the_readmes_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK) and "make test" in script.read_text()
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_an_unsupported_python_is_refused_in_one_line(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.lock", "setup.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    done = subprocess.run(["make", "-C", tmp_path, "venv", "PYTHON=false"], capture_output=True, text=True)
    assert done.returncode != 0 and not (tmp_path / ".venv").exists()
    reasons = [line for line in done.stderr.splitlines() if "***" not in line]
    assert len(reasons) == 1 and "CPython 3.11 or 3.12" in reasons[0] and "PYTHON=" in reasons[0]
