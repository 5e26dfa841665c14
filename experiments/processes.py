"""How a command becomes one of several processes of a run: its flags, as `omnidiff train` and `evaluate` have them."""

from collections.abc import Callable

from experiments.common import Command
from omnidiff_jax.sharding.distributed import METHODS, initialize


def process_flags(command: Command) -> Callable[[], None]:
    """Adds the flags; what it gives joins this process to the others, before anything touches a device."""
    method = command.choice("distributed", "how processes find each other", METHODS, default="auto")
    coordinator = command.string("coordinator", "HOST:PORT of process 0, where no launcher tells")
    number = command.integer("num_processes", "of the run, where no launcher tells", minimum=1)
    mine = command.integer("process_id", "of this process, from 0, where no launcher tells", minimum=0)
    return lambda: initialize(str(method.value), coordinator.value, number.value, mine.value)
