"""How long training stands for a save, how long a save and a restore take, beside the floors of this machine."""

import dataclasses
import os
import shutil
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from omnidiff_jax.benchmarks.train import Trainer
from omnidiff_jax.training.checkpoint import CheckpointConfig, Checkpointer

_BLOCK = 1 << 26


@dataclasses.dataclass(frozen=True)
class CheckpointSpeed:
    """Seconds are medians where there are several; floors are measured in the same run, in the same folder.

    Attributes:
        bytes: of the train state.
        stall_seconds: training stands, from the call of `save` until the next step may change the state.
        copy_seconds: floor of the stall: the state copied once to the host, or within its memory.
        save_seconds: from the call until the checkpoint is whole: written, summed up, renamed.
        write_seconds: floor of it: as many bytes written to one file and flushed to the disk.
        restore_seconds: checksums compared and the state read onto the devices.
        verify_seconds: of them the checksums.
        read_seconds: floor of a restore: the checkpoint's files read once. All three follow the writing and find in the
            host's cache what fits there.
        step_seconds: of a step while nothing is saved.
        step_seconds_saving: of steps beside the save; None where it was whole before a step ended.
        saves: measured.
    """

    bytes: int
    stall_seconds: float
    copy_seconds: float
    save_seconds: float
    write_seconds: float
    restore_seconds: float
    verify_seconds: float
    read_seconds: float
    step_seconds: float
    step_seconds_saving: float | None
    saves: int


def bench_checkpoint(trainer: Trainer, folder: Path, saves: int) -> CheckpointSpeed:
    """Trains, saves beside it, restores.

    Args:
        trainer: compiled, not started.
        folder: where the checkpoint goes; only `checkpoints` within it is touched, and removed.
        saves: how many are measured, after one to warm up.
    """
    trainer.start()
    trainer.step()
    quiet = [trainer.step() for _ in range(3)]
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(trainer.state))
    stalls, whole, beside = [], [], []
    saver = Checkpointer(folder, CheckpointConfig(every=1, keep=1))
    try:
        for number in range(saves + 1):
            began = time.perf_counter()
            saver.save(number, trainer.state, {}, {})
            stall = time.perf_counter() - began
            steps = []
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(_wait, saver)
                while not waiting.done():
                    steps.append(trainer.step())
            if number:  # the first one makes folders and starts threads
                stalls.append(stall)
                whole.append(waiting.result() - began)
                beside += steps
            waiting.result()  # a failed save is one here
    finally:
        saver.close()
    copy = statistics.median(_copy_seconds(trainer) for _ in range(3))
    files = [path for path in (folder / "checkpoints").rglob("*") if path.is_file()]
    trainer.state = None
    write = _write_seconds(folder / "checkpoints" / "floor.tmp", state_bytes)
    read = _read_seconds(files)
    reader = Checkpointer(folder, CheckpointConfig(every=1, keep=1), read_only=True)
    try:
        began = time.perf_counter()
        step = reader.latest()
        verified = time.perf_counter()
        restored, *_ = reader.restore(trainer.target, step)
        jax.block_until_ready(restored)
        restore = time.perf_counter() - began
    finally:
        reader.close()
        shutil.rmtree(folder / "checkpoints")
    return CheckpointSpeed(
        state_bytes,
        statistics.median(stalls),
        copy,
        statistics.median(whole),
        write,
        restore,
        verified - began,
        read,
        statistics.median(quiet),
        statistics.median(beside) if beside else None,
        saves,
    )


def _wait(saver: Checkpointer) -> float:
    """When the save under way was whole."""
    saver.wait()
    return time.perf_counter()


def _copy_seconds(trainer: Trainer) -> float:
    began = time.perf_counter()
    for leaf in jax.tree.leaves(trainer.state):
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0:
                np.array(shard.data)  # a copy, also where the device's memory is the host's
    return time.perf_counter() - began


def _write_seconds(file: Path, size: int) -> float:
    block = np.random.default_rng(0).bytes(min(_BLOCK, size))
    began = time.perf_counter()
    with file.open("wb") as target:
        for _ in range(max(size // len(block), 1)):
            target.write(block)
        target.flush()
        os.fsync(target.fileno())
    seconds = time.perf_counter() - began
    file.unlink()
    return seconds


def _read_seconds(files: list[Path]) -> float:
    began = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as source:
            while source.read(_BLOCK):
                pass
    return time.perf_counter() - began
