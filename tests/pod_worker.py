"""One process of a small real run, with the flags of `omnidiff train`: `python pod_worker.py SETTINGS_JSON [flags]`.

Settings: workdir, every (steps between saves), pause (seconds a step), held_out (steps between measurements), and
optionally operations.
"""

import json
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import jax  # noqa: E402
from data_world import VOCABULARY, example  # noqa: E402

from omnidiff_jax.config import build  # noqa: E402
from omnidiff_jax.data.config import DataConfig  # noqa: E402
from omnidiff_jax.data.loader import Loader  # noqa: E402
from omnidiff_jax.data.mixture import Stage  # noqa: E402
from omnidiff_jax.data.packing import PackingConfig  # noqa: E402
from omnidiff_jax.data.sources import Source  # noqa: E402
from omnidiff_jax.data.streams import Corpus  # noqa: E402
from omnidiff_jax.diffusion.loss import LossConfig  # noqa: E402
from omnidiff_jax.diffusion.masking import MaskingConfig  # noqa: E402
from omnidiff_jax.models.backbone import BackboneConfig  # noqa: E402
from omnidiff_jax.models.omni import OmniConfig  # noqa: E402
from omnidiff_jax.sharding.distributed import initialize  # noqa: E402
from omnidiff_jax.sharding.mesh import MeshConfig, batch_parts, batch_sharding, make_mesh  # noqa: E402
from omnidiff_jax.speech_frames import SpeechLayout  # noqa: E402
from omnidiff_jax.training.config import TrainingConfig  # noqa: E402
from omnidiff_jax.training.held_out import HeldOutLoss  # noqa: E402
from omnidiff_jax.training.loop import train  # noqa: E402
from omnidiff_jax.training.model_program import OmniProgram  # noqa: E402
from omnidiff_jax.training.operations.journal import OperationsConfig  # noqa: E402
from omnidiff_jax.training.optimizer import OptimizerConfig  # noqa: E402
from omnidiff_jax.training.run import Run  # noqa: E402

STAGES = {
    "one": Stage(8, 1e-2, {"read": 2.0, "draw": 1.0}),
    "two": Stage(8, 3e-3, {"read": 1.0, "draw": 2.0}),
}
TASKS = ("read", "draw")
BATCH = 8
PACKING = PackingConfig(64, 0, 8, 3, speech=SpeechLayout(()))
DATA = DataConfig(seed=5, batch_size=BATCH, streams=4, max_tail_pads=3, packing=PACKING)


class Paused(OmniProgram):
    """Steps that take a while, so that a test can aim at one."""

    pause = 0.0

    def place(self, batch, mesh):
        time.sleep(self.pause)
        return batch


def program(mesh, pause):
    read = [example(i, "read", 3 + i % 17) for i in range(40)]
    draw = [example(100 + i, "draw", 20 + i % 19) for i in range(30)]
    corpus = Corpus({"read": Source(read, "read"), "draw": Source(draw, "draw")}, list(STAGES.values()), VOCABULARY)
    backbone = BackboneConfig(
        VOCABULARY.size, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, hidden=32, dtype="float32", remat="none"
    )
    Paused.pause = pause
    return Paused(
        OmniConfig(backbone, None),
        VOCABULARY,
        MaskingConfig(),
        LossConfig(chunk=16, groups=batch_parts(mesh)),
        tuple((name, name) for name in TASKS),
        lambda seed: Loader(corpus, DATA, batch_sharding(mesh)),
        seed=5,
    )


def held_out(program, mesh, every):
    """The loss of `program` on two batches of what it is not trained on."""
    read = [example(500 + i, "read", 3 + i % 17) for i in range(12)]
    draw = [example(600 + i, "draw", 20 + i % 19) for i in range(12)]
    even = Stage(1, weights={"read": 1.0, "draw": 1.0})
    corpus = Corpus({"read": Source(read, "read"), "draw": Source(draw, "draw")}, (even,), VOCABULARY)
    with Loader(corpus, DATA, batch_sharding(mesh)) as loader:
        return HeldOutLoss(program, [next(loader) for _ in range(2)], every, seed=5)


def main(settings, flags):
    given = dict(flag.removeprefix("--").split("=") for flag in flags)
    initialize(
        coordinator=given.get("coordinator"),
        num_processes=int(given["num_processes"]) if given else None,
        process_id=int(given["process_id"]) if given else None,
    )
    mesh = make_mesh(MeshConfig(**settings.get("mesh", {})))
    config = TrainingConfig(
        seed=5,
        batch_size=BATCH,
        stages=STAGES,
        optimizer=OptimizerConfig(frozen=()),
        checkpoint_every=settings["every"],
        operations=build(OperationsConfig, settings.get("operations", {})),
    )
    trained = program(mesh, settings.get("pause", 0.0))
    run = Run(config, trained, mesh, held_out=lambda: held_out(trained, mesh, settings["held_out"]))
    train(run, settings["workdir"])


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(json.loads(sys.argv[1]), sys.argv[2:])
