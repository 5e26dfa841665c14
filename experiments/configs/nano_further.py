"""The shipped nano model's second half: what `nano.py` trained goes on with all tasks at once, for as long again.

    omnidiff train --config=experiments/configs/nano_further.py --workdir=DIR --config.init.folder=FIRST

`make train-nano` runs both. What is new to the first half: pictures at every noise level, since a picture that leaves
something open is decoded by going on with what is half drawn; captions and pictures that answer nothing, which guidance
compares with; more of what was still missed.
"""

from ml_collections import ConfigDict

from experiments.configs import nano


def get_config() -> ConfigDict:
    config = nano.get_config()
    config.init.folder = "nano"
    config.seed = 1
    config.min_noise_of = ConfigDict({"t2i": 0.05, "s2i": 0.05, "captioning": 0.3})
    examples = {
        "text_qa": 60000,
        "captioning": 20000,
        "vqa": 24000,
        "t2i": 40000,
        "asr": 5000,
        "tts": 6000,
        "spoken_qa": 8000,
        "s2i": 5000,
        "spoken_vqa": 10000,
    }
    for name, count in examples.items():
        config.data.sources[name].examples = count
    for name in ("captioning", "t2i"):
        config.data.sources[name].unconditional = 0.1
    weights = {
        "text_qa": 3.0,
        "captioning": 1.5,
        "vqa": 1.6,
        "t2i": 2.2,
        "asr": 0.7,
        "tts": 0.7,
        "spoken_qa": 1.8,
        "s2i": 0.9,
        "spoken_vqa": 2.4,
    }
    config.stages = ConfigDict(
        {
            "stage3_speech_driven_visual": ConfigDict(
                {"steps": 12000, "learning_rate": 8e-4, "final_fraction": 0.01, "weights": ConfigDict(weights)}
            )
        }
    )
    return config
