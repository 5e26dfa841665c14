"""The nano image tokenizer: 64x64 Scenes pictures to 4x4 codes of 10 bits.

    omnidiff train --config=experiments/configs/tokenizers/image.py --workdir=DIR

A code is a function of its own 16x16 pixels (kernels 1 and 2 in the encoder, normalisation per position), and the
same for every jitter of an object, because the decoder is asked for the picture without jitter: so the backbone has
few codes to learn. The decoder does look around. For photographs take `MagvitConfig`'s defaults and set
`training.adversarial`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.program = "image_tokenizer"
    config.seed = 0
    config.batch_size = 24  # pictures
    config.accumulate = 1
    config.total_steps = 0  # caps the run; 0 = as planned below
    config.checkpoint_every = 1000
    config.keep_checkpoints = 1
    config.dtype = "float32"
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "sequence": 1})
    config.stages = ConfigDict({"train": ConfigDict({"steps": 3500, "learning_rate": 3e-3})})
    config.optimizer = ConfigDict({"b2": 0.95, "clip_norm": 1.0, "final_fraction": 0.02, "frozen": ()})

    config.pictures = ConfigDict(
        {
            # A tokenizer has seen everything, as the released one has; what was never combined is the backbone's exam.
            "splits": ("train", "compositional"),
            "object_counts": (0.1, 0.2, 0.7),  # share of one, two and three objects
        }
    )
    config.training = ConfigDict(
        {
            "absolute": 1.0,
            "squared": 4.0,
            "gradient": 2.0,
            "agreement": 0.1,
            # Six bits of form, four of colour: a red triangle is a triangle's code and red's (docs/performance.md).
            "factors": (6, 4),
            "factor_agreement": 0.2,
            "spread_steps": 3500,
            "validation_size": 512,
            "quantizer": ConfigDict(
                {
                    "commitment": 0.02,
                    "sample_entropy": 0.02,
                    "batch_entropy": 0.05,
                    "temperature": 1.0,
                    "group_bits": 10,
                }
            ),
            "model": ConfigDict(
                {
                    "channels": 16,
                    "encoder_multipliers": (4, 8, 8),
                    "encoder_blocks": (1, 1, 1),
                    "encoder_kernels": (1, 1, 1),
                    "downsample_kernel": 2,
                    "encoder_middle": False,
                    "decoder_multipliers": (2, 3, 6),
                    "decoder_blocks": (1, 1, 1),
                    "decoder_middle": False,
                    "patch": 4,
                    "code_bits": 10,
                    "norm_groups": 1,
                    "norm_scope": "position",
                }
            ),
        }
    )
    return config
