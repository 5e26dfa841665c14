"""Several processes as one run: who they are, where they meet, and what only one of them does."""

import glob
import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint.multihost import get_barrier_sync_fn

from omnidiff_jax.errors import UserError

# How processes find each other, in jax's names, beside `auto` (look at the environment) and `off` (one process).
METHODS = ("auto", "off", "slurm", "ompi", "mpi4py", "gketpu", "gcetpu")


def detect(environment: Mapping[str, str], tpu_vm: bool = False) -> str | None:
    """The launcher that started this process as one of several, or None.

    Args:
        environment: `os.environ`.
        tpu_vm: whether this machine has TPU chips; then a Cloud TPU is asked for its other workers.
    """

    def number(name: str) -> int:
        return int(environment[name]) if environment.get(name, "").isdigit() else 0

    if number("OMPI_COMM_WORLD_SIZE") > 1:
        return "ompi"
    # A batch script without `srun` has SLURM_NTASKS but no step: it is one process.
    if "SLURM_STEP_NODELIST" in environment and number("SLURM_NTASKS") > 1:
        return "slurm"
    if not tpu_vm:
        return None
    names = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if names is not None:
        return "gketpu" if "," in names or number("MEGASCALE_NUM_SLICES") > 1 else None
    return None if "TPU_SKIP_MDS_QUERY" in environment else "gcetpu"


def initialize(
    method: str = "auto",
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins this process to its run; call it before anything touches a device. One process needs nothing.

    Args:
        method: one of `METHODS`. Given a coordinator, only what is left out is looked up.
        coordinator: "host:port" of process 0.
        num_processes: of the run.
        process_id: of this process, in 0 .. num_processes - 1.

    Raises:
        UserError: flags that contradict each other, or a run that does not come together.
    """
    given: dict[str, Any] = {
        "coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id,
    }  # fmt: skip
    explicit = {name: value for name, value in given.items() if value is not None}
    if method == "off":
        if explicit:
            raise UserError(f"--distributed=off contradicts {_flags(explicit)}; leave one of them out")
        return
    found = method if method != "auto" else detect(os.environ, _has_tpu())
    if found == "ompi" and "OMPI_MCA_orte_hnp_uri" not in os.environ:  # Open MPI 5: jax finds no address
        counts = {"num_processes": "OMPI_COMM_WORLD_SIZE", "process_id": "OMPI_COMM_WORLD_RANK"}
        explicit = {key: int(os.environ[name]) for key, name in counts.items() if name in os.environ} | explicit
        found = None
    if found is None:
        if not explicit:
            return
        missing = given.keys() - explicit.keys()
        if missing:
            raise UserError(
                f"{_flags(explicit)} without {_flags(dict.fromkeys(sorted(missing), '…'))}; outside of SLURM, "
                "Open MPI before 5 and TPU pods a process needs all three"
            )
    if {"process_id", "num_processes"} <= explicit.keys():
        number, last = explicit["process_id"], explicit["num_processes"] - 1
        if not 0 <= number <= last:
            raise UserError(f"--process_id={number} must be in 0 .. {last} (--num_processes={last + 1})")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        # With all three given, jax would still let a launcher that it finds choose this process's devices.
        jax.distributed.initialize(**explicit, cluster_detection_method=found or "deactivate")
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        where = coordinator or f"the run that {found} describes"
        raise UserError(
            f"cannot join {where} ({reason}); check that every process was started, and that process 0 can be reached"
        ) from error


def _flags(values: Mapping[str, Any]) -> str:
    words = {"coordinator_address": "coordinator"}
    return " ".join(f"--{words.get(name, name)}={value}" for name, value in values.items())


def _has_tpu() -> bool:
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def is_primary() -> bool:
    """Whether this process writes what the run writes once: metrics, reports, exports."""
    return jax.process_index() == 0


def by_the_first(values: Sequence[bool]) -> np.ndarray:
    """bool [n]: what the first process says of n things, on every process."""
    if jax.process_count() == 1:
        return np.asarray(values, bool)
    return multihost_utils.broadcast_one_to_all(np.asarray(values, bool))


def by_all(values: Sequence[bool]) -> np.ndarray:
    """bool [n]: of which of n things every process says yes."""
    if jax.process_count() == 1:
        return np.asarray(values, bool)
    return multihost_utils.process_allgather(np.asarray(values, bool)).reshape(-1, len(values)).all(axis=0)


def barrier(name: str, minutes: int = 240) -> None:
    """Waits until every process of the run is here.

    Args:
        name: the same on all processes, met once.
        minutes: after which it fails; long, because one process may be building data for all.
    """
    if jax.process_count() > 1:
        # The coordination service's barrier: a collective of the devices may give up long before.
        get_barrier_sync_fn()(key=name, timeout_ms=minutes * 60_000)
