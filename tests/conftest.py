"""Test session: eight virtual CPU devices, one shared compilation cache, strict broadcasting, quiet property tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

# Before jax is imported anywhere. pytest-xdist workers and subprocesses inherit all of them.
_FOLDER = None  # of what one session's processes share; whoever starts workers owns it
if "PYTEST_XDIST_WORKER" not in os.environ:
    _FOLDER = tempfile.mkdtemp(prefix="omnidiff-test-cache-")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(_FOLDER, "xla"))
    # Where byte code is not written beside its source, every process would compile two thousand modules again.
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        sys.dont_write_bytecode, sys.pycache_prefix = False, os.path.join(_FOLDER, "python")
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
# A toy's programs compile in less than the second from which jax keeps them.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
import stores  # noqa: E402

from omnidiff_jax.cli import guard  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# Derandomised: a red run is red again; `HYPOTHESIS_PROFILE=search` looks further.
hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=20, database=None)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


# Of two workers one would end with one of these, alone: by their time, the longest first.
LONGEST = (
    "end_to_end", "buckets", "bench_sampler", "parity", "pods", "sampling_loop", "runs", "preflight", "bad_input",
)  # fmt: skip
# Their programs run for milliseconds, and need not be compiled for seconds.
TOYS = (
    "backbone", "bench_sampler", "door", "engine", "flow", "generate", "held_out", "initial", "likelihood", "load",
    "magvit", "named_models", "omni", "prefix_attention", "quantized", "runs", "sampling_caches", "sampling_candidates",
    "sampling_drafting", "sampling_loop", "sampling_model", "sampling_parts", "sampling_reveal", "sampling_rows",
    "sampling_strategies", "serving_films", "sharding", "training_loop",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first."""
    place = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


def pytest_unconfigure() -> None:
    """Removes what the session's processes shared, once, after the last worker."""
    if _FOLDER:
        shutil.rmtree(_FOLDER, ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def _programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiled programs of one file are of no use to the next, and a worker would gather gigabytes of them."""
    jax.config.update("jax_disable_most_optimizations", request.path.stem.removeprefix("test_") in TOYS)
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of numeric fixtures recorded from the released code."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="module", params=["s3", "gs"])
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of a bucket, its emulator running and named in the environment."""
    pytest.importorskip({"s3": "moto", "gs": "gcp_storage_emulator"}[request.param])
    with {"s3": stores.s3, "gs": stores.gcs}[request.param]() as variables, stores.in_environment(variables):
        yield f"{request.param}://{stores.BUCKET}"


@pytest.fixture
def home(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A folder of the bucket for one test, and a cache of its own."""
    monkeypatch.setenv("OMNIDIFF_CACHE", str(tmp_path / "cache" / "buckets"))
    return f"{store}/{request.node.name.split('[')[0]}"


@pytest.fixture(scope="session")
def omnidiff() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs `omnidiff ARGS…` in a process of its own, as a user would: one CPU device, caller's environment.

    `env` adds variables; `cwd` and `timeout` (seconds) are subprocess.run's.
    """

    def run(
        *args: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "omnidiff_jax.cli", *map(str, args)],
            env=_ENVIRONMENT | dict(env or {}),
            cwd=cwd,
            timeout=timeout,
            capture_output=True,
            text=True,
        )

    yield run


@pytest.fixture
def refusal(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command, given as its module, in this process; returns the one line it must leave on stderr."""

    def run(module: ModuleType, *words: str | Path) -> str:
        capfd.readouterr()
        command = module.COMMAND
        assert guard(command.program, lambda: command.call(module.run, list(map(str, words)))) == 2
        printed = capfd.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.endswith("\n"), printed
        assert printed.err.startswith(f"{command.program}: ") and "Traceback" not in printed.err
        return printed.err

    return run


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of fetched things and indices is the test's own."""
    monkeypatch.setenv("OMNIDIFF_CACHE", str(tmp_path_factory.mktemp("cache") / "buckets"))
