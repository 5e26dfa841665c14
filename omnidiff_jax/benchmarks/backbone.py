"""A run's config as what the benchmarks measure: the backbone alone, under the released vocabulary."""

import dataclasses
from pathlib import Path

from omnidiff_jax.benchmarks.batches import LONG_TAILED, packed_batch
from omnidiff_jax.benchmarks.train import Trainer
from omnidiff_jax.data.config import DataConfig
from omnidiff_jax.data.loader import Loader
from omnidiff_jax.data.mixture import Stage
from omnidiff_jax.data.packing import PackingConfig
from omnidiff_jax.models.backbone import BackboneConfig
from omnidiff_jax.models.omni import OmniConfig
from omnidiff_jax.runs.config import RunConfig
from omnidiff_jax.sharding.mesh import batch_parts
from omnidiff_jax.speech_frames import SpeechLayout
from omnidiff_jax.training.model_program import OmniProgram
from omnidiff_jax.training.run import Run
from omnidiff_jax.vocabulary import Vocabulary

VOCABULARY = Vocabulary.released()
TORCH_STEP = Path(__file__).with_name("torch_step.py")


def backbone_config(config: RunConfig) -> BackboneConfig:
    """Sizes of the measured backbone."""
    return dataclasses.replace(config.model, vocab_size=VOCABULARY.size, dtype=config.dtype)


def deaf_packing(config: RunConfig) -> PackingConfig:
    """Rows without heard speech, whose encoder is frozen and not part of the measured step."""
    data = config.data
    return PackingConfig(data.length, 0, data.samples, data.open_rows, speech=SpeechLayout(()))


def loading(config: RunConfig) -> DataConfig:
    """The loader of a config, heard speech included, in the released features."""
    data = config.data
    packing = PackingConfig(data.length, data.frames, data.samples, data.open_rows)
    return DataConfig(config.seed, config.batch_size, data.streams, data.max_tail_pads, packing)


def backbone_trainer(config: RunConfig) -> Trainer:
    """The training step of the config's backbone, with a packed batch of the long-tailed mixture."""

    def no_data(seed: int) -> Loader:
        raise AssertionError("the measured step takes one batch")

    mesh, groups = config.make_mesh(), tuple((kind.name, kind.name) for kind in LONG_TAILED)
    program = OmniProgram(
        model=OmniConfig(backbone_config(config), speech_encoder=None),
        vocabulary=VOCABULARY,
        masking=config.corruption(groups),
        loss_config=dataclasses.replace(config.loss, groups=batch_parts(mesh)),
        groups=groups,
        open_loader=no_data,
        seed=config.seed,
        sharding=config.sharding,
    )
    batch = packed_batch(config.batch_size, deaf_packing(config), VOCABULARY, config.seed)
    measured = dataclasses.replace(config, stages={"bench": Stage(1000, 1e-5)}, total_steps=0)
    return Trainer(Run(measured, program, mesh), batch)


def torch_settings(config: RunConfig, threads: int) -> dict:
    """What `benchmarks/torch_step.py` is told, so that it trains the same backbone on the same rows."""
    batch = packed_batch(config.batch_size, deaf_packing(config), VOCABULARY, config.seed)
    names = ("width", "layers", "heads", "kv_heads", "head_dim", "hidden", "rope_theta")
    return {name: getattr(config.model, name) for name in names} | {
        "vocab_size": VOCABULARY.size,
        "rows": config.batch_size,
        "length": config.data.length,
        "segments": batch.inputs.segment_ids.tolist(),
        "positions": batch.inputs.positions.tolist(),
        "masked": 0.25,  # half of each sample is to be predicted, half of that masked
        "threads": threads,
    }
