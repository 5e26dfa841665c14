"""A run as the loop takes it: what is trained, how, and on which devices."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh

from omnidiff_jax.config import build
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
        read_stored: a checkpoint's config, as `config.to_dict` left it, to one of this type; None = `config.build`.
    """

    config: TrainingConfig
    program: TrainProgram
    mesh: Mesh
    initial_params: Callable[[Any], Any] | None = None
    read_stored: Callable[[Mapping[str, Any]], TrainingConfig] | None = None
    held_out: Callable[[], HeldOutLoss] | None = None

    def stored(self, content: Mapping[str, Any]) -> TrainingConfig:
        """The config that a checkpoint holds as `content`."""
        return self.read_stored(content) if self.read_stored else build(type(self.config), content)
