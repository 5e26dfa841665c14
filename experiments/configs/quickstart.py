"""The quickstart: the shipped nano model goes on through all three stages, briefly, on data built here.

    omnidiff quickstart --workdir=DIR

As one goes on from released weights: the model and curriculum of `nano.py`, which trained the first half of what is
shipped, with few samples, few steps and a low learning rate. `omnidiff quickstart
--config=experiments/configs/nano.py` starts from nothing.
"""

from ml_collections import ConfigDict

from experiments.configs import nano, nano_further

STEPS = {"stage1_visual_language": 60, "stage2_speech_vision_language": 80, "stage3_speech_driven_visual": 120}
SHARE = 1 / 16  # of nano's samples


def get_config() -> ConfigDict:
    config = nano.get_config()
    config.min_noise_of = nano_further.get_config().min_noise_of
    config.init.folder = "nano"  # a shipped model's name, or a folder of weights
    config.checkpoint_every = 100
    config.held_out.every = 65  # steps, and before the first: does going on help or hurt?
    for source in config.data.sources.values():
        source.examples = int(source.examples * SHARE)
    for name, stage in config.stages.items():
        stage.steps, stage.learning_rate, stage.final_fraction = STEPS[name], 2e-5, 0.1
    return config
