"""A run for `omnidiff soak`: the nano model shrunk until a step is short, on all nine tasks, heard speech included."""

from ml_collections import ConfigDict

from experiments.configs import nano, stages


def get_config() -> ConfigDict:
    config = nano.get_config()
    config.total_steps = 150
    config.batch_size = 4
    config.checkpoint_every = 5
    # Layers unrolled: between CPU processes XLA may start an all-gather while a loop before it still runs its own, and
    # gloo, their transport, takes one for the other ("op.preamble.length <= op.nbytes"; jax 0.10.2).
    config.model.update({"width": 64, "layers": 2, "heads": 2, "kv_heads": 2, "hidden": 96, "scan_layers": False})
    config.mesh.update({"data": 1, "fsdp": -1})
    # The released model's optimizer and learning rates. Sums over another number of devices round otherwise; Muon, or
    # nano's tenfold rates, make much of that within a hundred steps.
    config.optimizer.algorithm = "adamw"
    for name, stage in stages.get_config().items():
        config.stages[name].learning_rate = stage.learning_rate
    for source in config.data.sources.values():
        source.examples = 60
    return config
