"""The image tokenizer of Commons: 64x64 emoji of two styles to 8x8 codes of 13 bits.

    omnidiff train --config=experiments/configs/tokenizers/commons_image.py --workdir=DIR \
        --config.pictures.folder=COMMONS

COMMONS is a folder of `omnidiff data fetch commons`. A code is a function of its own 8x8 pixels (kernels 1 and 2 in the
encoder, normalisation per position), so that a thing has the same codes at every place where it is looked at
(`data_pipelines/commons/pictures.py`); the decoder looks around. Goes on where it was stopped.
"""

from ml_collections import ConfigDict

from experiments.configs import commons_presets


def get_config(preset: str = "") -> ConfigDict:
    config = ConfigDict()
    config.program = "commons_image_tokenizer"
    config.seed = 0
    config.batch_size = 32  # pictures
    config.accumulate = 1
    config.total_steps = 0  # caps the run; 0 = as planned below
    config.checkpoint_every = 500
    config.keep_checkpoints = 1
    config.dtype = "float32"
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "sequence": 1})
    config.stages = ConfigDict({"train": ConfigDict({"steps": 6000, "learning_rate": 2e-3})})
    config.optimizer = ConfigDict({"b2": 0.95, "clip_norm": 1.0, "final_fraction": 0.02, "frozen": ()})

    config.pictures = ConfigDict({"folder": "", "drawn": 0.25})  # drawn: share on white, whole, as they are to be drawn
    config.training = ConfigDict(
        {
            "absolute": 1.0,
            "squared": 4.0,
            "gradient": 1.0,
            "perceptual": 0.0,  # weight of COMMONS/imagenet's opinion; not compared yet
            "spread_steps": 6000,
            "validation_size": 512,
            "quantizer": ConfigDict(
                {
                    "commitment": 0.02,
                    "sample_entropy": 0.02,
                    "batch_entropy": 0.05,
                    "temperature": 1.0,
                    "group_bits": 7,
                }
            ),
            "model": ConfigDict(
                {
                    "channels": 16,
                    "encoder_multipliers": (8, 16),
                    "encoder_blocks": (2, 2),
                    "encoder_kernels": (1, 1),
                    "downsample_kernel": 2,
                    "encoder_middle": False,
                    "decoder_multipliers": (8, 12),
                    "decoder_blocks": (2, 2),
                    "decoder_middle": False,
                    "patch": 4,
                    "code_bits": 13,
                    "norm_groups": 1,
                    "norm_scope": "position",
                }
            ),
        }
    )
    return commons_presets.apply(config, "commons_image", preset)
