"""A HiFT vocoder for the answering voice of Scenes, in place of nano's Griffin-Lim.

    omnidiff train --config=experiments/configs/tokenizers/vocoder.py --workdir=DIR

DIR/export is the speech decoder that `config.speech_decoder` names, with this vocoder; it is `config.tokenizers`'
speech_decoder then. For the released sizes take `HiftConfig`'s and `CriticsConfig`'s defaults.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.program = "vocoder"
    config.seed = 0
    config.batch_size = 8  # parts of utterances
    config.accumulate = 1
    config.total_steps = 0  # caps the run; 0 = as planned below
    config.checkpoint_every = 500
    config.keep_checkpoints = 1
    config.dtype = "float32"
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "sequence": 1})
    config.stages = ConfigDict({"train": ConfigDict({"steps": 8000, "learning_rate": 1e-3})})
    config.optimizer = ConfigDict({"b1": 0.8, "b2": 0.99, "clip_norm": 100.0, "final_fraction": 0.05, "frozen": ()})

    config.speech_decoder = "nano"  # or a folder: whose spectrograms are made audible
    config.training = ConfigDict(
        {
            "start": 1500,
            "mel": 45.0,
            "adversarial": 1.0,
            "matching": 2.0,
            "pitch": 0.1,
            "crop_frames": 32,
            "utterances": 800,
            "validation_size": 24,
            "model": ConfigDict(
                {
                    "base_channels": 128,
                    "pitch_channels": 64,
                    "resblock_kernels": (3, 7),
                    "resblock_dilations": ((1, 3, 5), (1, 3, 5)),
                    "source_kernels": (3, 7),
                    "source_dilations": ((1, 3, 5), (1, 3, 5)),
                }
            ),
            "critics": ConfigDict(
                {
                    "periods": (2, 3, 5, 7, 11),
                    "period_channels": (8, 16, 32, 64),
                    "resolutions": ((1024, 256), (512, 128)),
                    "resolution_channels": 8,
                }
            ),
        }
    )
    return config
