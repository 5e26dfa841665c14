"""Orbax checkpoints: train state, data iterator state and config together, written atomically in the background."""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from omnidiff_jax.config import Count, Natural
from omnidiff_jax.errors import UserError
from omnidiff_jax.sharding.distributed import barrier, is_primary
from omnidiff_jax.training.digest import damage, write_digest, write_part


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved, and which are kept.

    Attributes:
        every: steps between saves.
        keep: newest checkpoints kept.
        keep_period: also keep every checkpoint whose step is a multiple of this; 0 keeps none.
    """

    every: Count = 1000
    keep: Count = 2
    keep_period: Natural = 0


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


# Orbax logs the traceback of an error in each of its threads before it raises the error, which is said in one line.
logging.getLogger("absl").addFilter(_not_of_orbax)


@contextlib.contextmanager
def one_error_a_failure() -> Iterator[None]:
    """Around a run that saves: when one array cannot be written, the writers of the others find their event loop
    closed, and tensorstore prints that for each."""

    def hook(args: Any) -> None:
        if str(args.exc_value) != "Event loop is closed":
            before(args)

    before, sys.unraisablehook = sys.unraisablehook, hook
    try:
        yield
    finally:
        sys.unraisablehook = before


class _SealedHandler(ocp.StandardCheckpointHandler):
    """Sums up what this process has written, as the last thing it does in the background."""

    @classmethod
    def typestr(cls) -> str:
        """What checkpoints say they were written by: one that Orbax alone reads too."""
        return ocp.StandardCheckpointHandler.typestr()

    async def async_save(self, directory: Any, *args: Any, **options: Any) -> list[Any]:
        futures = await super().async_save(directory, *args, **options)
        return [*(futures or ()), _Sealing(Path(directory))]


class _Sealing:
    """A future in Orbax's sense: the saving thread waits for it after the writes of the same item."""

    def __init__(self, directory: Path):
        self._directory = directory

    def result(self, timeout: float | None = None) -> None:
        write_part(self._directory, f"ocdbt.process_{jax.process_index()}")

    def cancel(self) -> None:
        pass


class Checkpointer:
    """Saves and restores runs under `workdir/checkpoints/STEP/{state,iterator,config}`.

    A save is written beside, sealed with checksums (`digest`) and renamed when whole, so that a kill or a full disk
    leaves the older ones as they were. What is restored has the checksums it was saved with; a damaged checkpoint is
    named, moved to `workdir/damaged_checkpoints` (as STEP, STEP.2, …), and the one before it is used. Every process of
    a run calls every method.
    """

    def __init__(self, workdir: str | os.PathLike[str], config: CheckpointConfig, *, read_only: bool = False):
        self._directory = (Path(workdir) / "checkpoints").absolute()
        self._read_only = read_only
        if read_only and not self._directory.is_dir():
            raise UserError(f"no checkpoints in {workdir}; train there first (omnidiff train --workdir={workdir})")
        self._saving: int | None = None
        self._damage: dict[int, str] = {}  # step -> what is wrong with it, "" = verified
        self._reported: set[int] = set()
        handlers, sealed = ocp.handlers.DefaultCheckpointHandlerRegistry(), _SealedHandler()
        handlers.add("state", ocp.args.StandardSave, sealed)
        handlers.add("state", ocp.args.StandardRestore, sealed)
        self._manager = ocp.CheckpointManager(
            self._directory,
            handler_registry=handlers,
            options=ocp.CheckpointManagerOptions(
                # A reader that asks for what only a writer does is warned of each word.
                max_to_keep=None if read_only else config.keep,
                keep_period=None if read_only else config.keep_period or None,
                save_interval_steps=0 if read_only else 1,
                read_only=read_only,
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
        )

    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, or None where nothing was saved.

        Raises:
            UserError: there are checkpoints, and all of them are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged: list[int] = []
        for step in steps:
            if not self._verify(step):
                self._set_aside(damaged, step)
                return step
            damaged.append(step)
        if damaged:
            what = "; ".join(f"{step}: {self._damage[step]}" for step in damaged)
            raise UserError(
                f"every checkpoint in {self._directory} is damaged ({what}); put back a copy, or remove the folder to "
                "start over"
            )
        return None

    @property
    def saved(self) -> int | None:
        """Step of the last `save` of this object, whole or under way."""
        return self._saving

    def _seal(self) -> None:
        """Called by Orbax in the saving thread, between the last write and the rename."""
        (folder,) = self._directory.glob(f"{self._saving}.*tmp*")
        write_digest(folder)

    def _verify(self, step: int) -> str:
        """What is wrong with a checkpoint, "" if nothing; every process reads its share of the files."""
        if step not in self._damage:
            part, parts = jax.process_index(), jax.process_count()
            found = damage(self._directory / str(step), part, parts)
            if parts > 1:
                bad = np.asarray(multihost_utils.process_allgather(np.array([bool(found)]))).reshape(-1)
                if not found and bad.any():
                    found = f"found damaged by process {int(np.flatnonzero(bad)[0])}"
            self._damage[step] = found
        return self._damage[step]

    def _set_aside(self, damaged: list[int], good: int) -> None:
        """Reports damaged checkpoints; where this run will save again, they also make way."""
        damaged = [step for step in damaged if step not in self._reported]
        if not damaged:
            return
        self._reported.update(damaged)
        for step in damaged:
            print(f"checkpoint {self._directory / str(step)} is damaged: {self._damage[step]}", file=sys.stderr)
        print(f"using checkpoint {good} instead", file=sys.stderr)
        if self._read_only:
            return
        if is_primary():
            for step in damaged:
                home = self._directory.with_name("damaged_checkpoints")
                home.mkdir(exist_ok=True)
                names = itertools.chain([str(step)], (f"{step}.{number}" for number in itertools.count(2)))
                shutil.move(
                    self._directory / str(step), next(home / name for name in names if not (home / name).exists())
                )
        barrier("damaged checkpoints are moved")
        self._manager.reload()

    def save(self, step: int, state: Any, iterator: dict[str, Any], config: dict[str, Any]) -> None:
        """Starts saving in the background, after the save before. A failure of that one is raised here or in `wait`.

        Raises:
            UserError: the disk is full or not writable; earlier checkpoints are untouched.
        """
        try:
            self._manager.wait_until_finished()  # of the save before: `_seal` knows one step
            self._saving = step
            self._damage.pop(step, None)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    iterator=ocp.args.JsonSave(iterator),
                    config=ocp.args.JsonSave(config),
                ),
            )
        except (OSError, ValueError) as error:
            raise self._save_error(error) from error

    def wait(self) -> None:
        """Blocks until the save under way is whole.

        Raises:
            UserError: it failed.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._save_error(error) from error

    def _save_error(self, error: Exception) -> UserError:
        kept = self._manager.latest_step()
        survivor = f"checkpoint {kept} is whole" if kept is not None else "no earlier checkpoint exists"
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        if number := re.search(r"os_error_code='(\d+)'", str(error)):  # tensorstore's, at the end of three long paths
            reason = os.strerror(int(number[1]))
        remedy = "free space and start again to resume"
        return UserError(f"could not save to {self._directory}: {reason}; {survivor}; {remedy}")

    def config(self, step: int | None = None) -> dict[str, Any]:
        """The config stored with checkpoint `step` (newest by default)."""
        step = self._require(step)
        return self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict[str, Any], int]:
        """Restores (state, iterator state, step).

        Args:
            abstract_state: tree of `jax.ShapeDtypeStruct` with shardings: where each array goes.

        Raises:
            UserError: there is no checkpoint, or its arrays have other names or shapes.
        """
        step = self._require(step)
        self._check_arrays(step, abstract_state)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state), iterator=ocp.args.JsonRestore()),
        )
        return restored["state"], restored["iterator"], step

    def _check_arrays(self, step: int, abstract_state: Any) -> None:
        """Compares names and shapes before any array is read."""
        stored = _shapes(ocp.StandardCheckpointHandler().metadata(self._directory / str(step) / "state"))
        wanted = _shapes(abstract_state)
        for name in sorted(stored.keys() | wanted.keys()):
            if stored.get(name) != wanted.get(name):
                raise UserError(
                    f"checkpoint {self._directory / str(step)} does not fit this config: array {name} has shape "
                    f"{stored.get(name, 'none (absent)')} there, {wanted.get(name, 'none (absent)')} here; "
                    "use the config it was trained with, or another --workdir"
                )

    def _require(self, step: int | None) -> int:
        found = self.latest() if step is None else step
        if found is None or found not in self._manager.all_steps():
            wanted = "checkpoint" if step is None else f"checkpoint {step}"
            there = ", ".join(map(str, self._manager.all_steps())) or "none"
            raise UserError(f"no {wanted} in {self._directory} (found: {there}); train there or name another folder")
        if self._verify(found):
            raise UserError(f"checkpoint {self._directory / str(found)} is damaged: {self._damage[found]}; use another")
        return found

    def close(self) -> None:
        """Lets go of threads and files, after the save under way; whether that was whole is for `wait` to say."""
        for end in (self._manager.wait_until_finished, self._manager.close):  # each raises a failed save's error once
            with contextlib.suppress(Exception):
                end()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """ "/"-joined path -> shape of every array of a tree; dataclasses and dicts of the same names agree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)

    def name(key: Any) -> str:
        found = next((getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a)), key)
        return str(found)

    return {"/".join(map(name, path)): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def stored_config(workdir: Path) -> tuple[int, dict[str, Any]] | None:
    """Step and config of the newest checkpoint in a folder, read before anything costly is done and not verified; None
    where there is none, or none that can be read."""
    home = workdir / "checkpoints"
    steps = [int(folder.name) for folder in home.iterdir() if folder.name.isdigit()] if home.is_dir() else []
    for step in sorted(steps, reverse=True):
        try:
            return step, json.loads((home / str(step) / "config" / "metadata").read_text())
        except (OSError, ValueError):
            continue  # whoever restores it says what is wrong
    return None


def weights_in(folder: Path) -> dict[str, Any]:
    """The parameters of a checkpoint, "params", and where it keeps one their average, "ema", as shapes.

    Args:
        folder: of the checkpoint, `WORKDIR/checkpoints/STEP`, verified.
    """
    stored = ocp.StandardCheckpointHandler().metadata(folder / "state")
    trees = {name: stored[name] for name in ("params", "ema") if stored.get(name)}
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), trees)


def read_weights(folder: Path, target: dict[str, Any]) -> dict[str, Any]:
    """Reads what `weights_in` told, and nothing else: what sampling needs, without the optimizer's memory.

    Args:
        folder: as for `weights_in`.
        target: its result with shardings: where each array goes.
    """
    request = ocp.args.PyTreeRestore(
        item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(folder / "state", args=request)
