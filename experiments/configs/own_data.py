"""One stage on data of one's own, from the shipped nano model (docs/data.md).

    omnidiff train --config=experiments/configs/own_data.py --workdir=RUN \
        --config.data.sources.mine.reader=folder --config.data.sources.mine.path=DIR \
        --config.data.sources.mine.task=captioning --config.stages.own.weights.mine=1
"""

from ml_collections import ConfigDict

from experiments.configs import nano


def get_config() -> ConfigDict:
    config = nano.get_config()
    config.init.folder = "nano"  # a shipped model's name, or a folder of weights
    config.checkpoint_every = 200
    config.optimizer.frozen = ()  # what it heard so far was synthetic
    config.data.sources = ConfigDict()  # the command line names them
    config.stages = ConfigDict(
        {"own": {"steps": 600, "learning_rate": 1e-3, "final_fraction": 0.1, "weights": ConfigDict()}}
    )
    return config
