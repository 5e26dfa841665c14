"""Several processes of one run on this machine, for tests and for machines with several accelerators.

    python -m experiments.launch.local 2 omnidiff train --config=… --workdir=DIR

Each process gets --coordinator, --num_processes and --process_id. A signal to the launcher goes to all; when one
process fails, the others are ended after a grace time, as a cluster's launcher would.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(
    command: Sequence[str], processes: int, env: Mapping[str, str] | None = None, output: IO[str] | None = None
) -> list[subprocess.Popen]:
    """Starts `command` as each process of a run; with one process, as it stands.

    Args:
        env: the environment; this process's by default.
        output: where stdout and stderr go; this process's by default.
    """
    where = f"--coordinator=localhost:{free_port()}"
    words = [[where, f"--num_processes={processes}", f"--process_id={rank}"] for rank in range(processes)]
    return [
        subprocess.Popen([*command, *(flags if processes > 1 else [])], env=env, stdout=output, stderr=output)
        for flags in words
    ]


def end(processes: Sequence[subprocess.Popen], number: int = signal.SIGKILL) -> None:
    """Sends a signal to those that still run."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def wait(processes: Sequence[subprocess.Popen], grace: float = 20.0) -> int:
    """Waits for all, and once one has failed, only `grace` seconds for the others; returns the first status not 0."""
    while any(process.poll() is None for process in processes):
        failed = [process.returncode for process in processes if process.poll() not in (None, 0)]
        if failed:
            deadline = time.monotonic() + grace
            while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
                time.sleep(0.05)
            end(processes)
            for process in processes:
                process.wait()
            return failed[0]
        time.sleep(0.05)
    return next((process.returncode for process in processes if process.returncode), 0)


def main(words: Sequence[str]) -> int:
    """Runs `[NUMBER, COMMAND…]`; returns the exit status."""
    if len(words) < 2 or not words[0].isdigit() or int(words[0]) < 1:
        print("usage: python -m experiments.launch.local PROCESSES COMMAND…", file=sys.stderr)
        return 2
    processes = start(list(words[1:]), int(words[0]), dict(os.environ))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: end(processes, received))
    status = wait(processes)
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
