"""The shipped nano model's last part: two more layers, questions about text above all, and open requests settled.

    omnidiff train --config=experiments/configs/nano_deeper.py --workdir=DIR --config.init.folder=SECOND

`make train-nano` runs all three. What is new: layers that begin as copies which change nothing; four times the
questions about text, the last that were missed; inpainting as a task of its own, since of a picture that is masked here
and there what is left tells what is missing.
"""

from ml_collections import ConfigDict

from experiments.configs import nano_further


def get_config() -> ConfigDict:
    config = nano_further.get_config()
    config.init.layers = "expanded"
    config.model.layers = 6
    config.seed = 2
    config.data.sources.inpainting = ConfigDict({"reader": "scenes", "plain": 0.5})
    examples = {
        "text_qa": 150000,
        "captioning": 12000,
        "vqa": 16000,
        "t2i": 40000,
        "asr": 5000,
        "tts": 5000,
        "spoken_qa": 14000,
        "s2i": 6000,
        "spoken_vqa": 10000,
        "inpainting": 24000,
    }
    for name, count in examples.items():
        config.data.sources[name].examples = count
    weights = {
        "text_qa": 20.0,
        "captioning": 1.2,
        "vqa": 1.6,
        "t2i": 4.5,
        "asr": 0.6,
        "tts": 0.6,
        "spoken_qa": 2.8,
        "s2i": 0.9,
        "spoken_vqa": 1.8,
        "inpainting": 2.5,
    }
    config.stages = ConfigDict(
        {
            "stage3_speech_driven_visual": ConfigDict(
                {"steps": 6000, "learning_rate": 8e-4, "final_fraction": 0.01, "weights": ConfigDict(weights)}
            )
        }
    )
    return config
