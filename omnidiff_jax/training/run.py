"""A run as the loop takes it: what is trained, how, and on which devices."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh

from omnidiff_jax.config import build, difference, to_dict
from omnidiff_jax.errors import UserError
from omnidiff_jax.training.config import TrainingConfig
from omnidiff_jax.training.held_out import HeldOutLoss
from omnidiff_jax.training.program import TrainProgram


@dataclasses.dataclass(frozen=True)
class Run:
    """A run opened on its devices: what `training.loop.train` takes.

    Attributes:
        config: stored with every checkpoint; one to go on from must agree with it (`config.difference`).
        program: what is trained.
        mesh: the devices.
        initial_params: what a fresh run starts from, given the parameters as shapes with shardings; None = the
            program's own.
        held_out: opens the loss that is measured beside training; None = none is.
    """

    config: TrainingConfig
    program: TrainProgram
    mesh: Mesh
    initial_params: Callable[[Any], Any] | None = None
    held_out: Callable[[], HeldOutLoss] | None = None

    def check_same(self, content: Mapping[str, Any], where: str) -> None:
        """Refuses to go on from a checkpoint of another config.

        Args:
            content: that the checkpoint holds, as `config.to_dict` left it.
            where: it lies, for messages.

        Raises:
            UserError: naming the first field that differs, with both values.
        """
        refuse_difference(build(type(self.config), content), self.config, where)


def refuse_difference(old: TrainingConfig, new: TrainingConfig, where: str) -> None:
    """Raises a UserError for the first field in which two configs differ that a resumed run must keep."""
    if found := difference(old, new):
        path, *values = found
        then, now = (to_dict(value) if dataclasses.is_dataclass(value) else value for value in values)
        raise UserError(
            f"{where} was trained with config.{path} = {then!r}, this config has {now!r}; give it the value of before, "
            "or use another --workdir"
        )
