"""Configs as what the benchmarks measure: the backbone alone, under the released vocabulary."""

import math
from pathlib import Path

from ml_collections import ConfigDict

from experiments.programs.run import batch_axes, check_batch, config_mesh, masking_config, optimizer_config
from omnidiff_jax.benchmarks.batches import LONG_TAILED, packed_batch
from omnidiff_jax.benchmarks.train import Trainer
from omnidiff_jax.config import build
from omnidiff_jax.data.loader import Loader
from omnidiff_jax.data.packing import PackingConfig
from omnidiff_jax.data.streams import DataConfig
from omnidiff_jax.diffusion.loss import LossConfig
from omnidiff_jax.models.backbone import BackboneConfig
from omnidiff_jax.models.omni import OmniConfig
from omnidiff_jax.speech_frames import SpeechLayout
from omnidiff_jax.training.omni import OmniProgram
from omnidiff_jax.vocabulary import Vocabulary

VOCABULARY = Vocabulary.released()


def backbone_config(config: ConfigDict) -> BackboneConfig:
    given = dict(config.model) | {"vocab_size": VOCABULARY.size, "dtype": config.dtype}
    return build(BackboneConfig, given, "config.model")


def deaf_packing(config: ConfigDict) -> PackingConfig:
    """Rows without heard speech, whose encoder is frozen and not part of the measured step."""
    data = config.data
    return PackingConfig(data.length, 0, data.samples, data.open_rows, speech=SpeechLayout(()))


def data_config(config: ConfigDict) -> DataConfig:
    """The loader of a config, heard speech included, in the released features."""
    data = config.data
    packing = PackingConfig(data.length, data.frames, data.samples, data.open_rows)
    return DataConfig(config.seed, config.batch_size, data.streams, data.max_tail_pads, packing)


def backbone_trainer(config: ConfigDict) -> Trainer:
    """The training step of the config's backbone, with a packed batch of the long-tailed mixture."""

    def no_data(seed: int) -> Loader:
        raise AssertionError("the measured step takes one batch")

    mesh = config_mesh(config)
    check_batch(config, mesh)
    groups = math.prod(mesh.shape[axis] for axis in batch_axes(mesh))
    program = OmniProgram(
        model=OmniConfig(backbone_config(config), speech_encoder=None),
        vocabulary=VOCABULARY,
        masking=masking_config(config),
        loss_config=build(LossConfig, dict(config.loss) | {"groups": groups}, "config.loss"),
        tasks=tuple(kind.name for kind in LONG_TAILED),
        open_loader=no_data,
        seed=config.seed,
        sharding=config.sharding,
    )
    batch = packed_batch(config.batch_size, deaf_packing(config), VOCABULARY, config.seed)
    return Trainer(program, optimizer_config(config), mesh, batch, config.accumulate)


TORCH_STEP = Path(__file__).parents[2] / "omnidiff_jax" / "benchmarks" / "torch_step.py"


def torch_settings(config: ConfigDict, threads: int) -> dict:
    """What `benchmarks/torch_step.py` is told, so that it trains the same backbone on the same rows."""
    batch = packed_batch(config.batch_size, deaf_packing(config), VOCABULARY, config.seed)
    names = ("width", "layers", "heads", "kv_heads", "head_dim", "hidden", "rope_theta")
    return {name: config.model[name] for name in names} | {
        "vocab_size": VOCABULARY.size,
        "rows": config.batch_size,
        "length": config.data.length,
        "segments": batch.inputs.segment_ids.tolist(),
        "positions": batch.inputs.positions.tolist(),
        "masked": 0.25,  # half of each sample is to be predicted, half of that masked
        "threads": threads,
    }
