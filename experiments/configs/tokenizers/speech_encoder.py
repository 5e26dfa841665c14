"""The nano speech encoder: SAN-M with CTC on heard Scenes speech, in 900 voices.

    omnidiff train --config=experiments/configs/tokenizers/speech_encoder.py --workdir=DIR

Validation is on sentences of the test split in 100 voices never trained on.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.program = "speech_encoder"
    config.seed = 0
    config.batch_size = 24  # packed rows
    config.accumulate = 1
    config.total_steps = 0  # caps the run; 0 = as planned below
    config.checkpoint_every = 500
    config.keep_checkpoints = 1
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "sequence": 1})
    config.stages = ConfigDict({"train": ConfigDict({"steps": 500, "learning_rate": 2e-3})})
    config.optimizer = ConfigDict(
        {
            "b2": 0.98,
            "weight_decay": 0.01,
            "clip_norm": 1.0,
            "warmup_fraction": 0.1,
            "final_fraction": 0.01,
            "frozen": (),
        }
    )
    config.training = ConfigDict(
        {
            "row_frames": 128,
            "utterances": 8000,
            "cmvn_utterances": 256,
            "validation_size": 300,
            "augmentation": ConfigDict({"tempo": 0.1, "gain_db": 8.0, "tilt_db": 6.0, "mel_masks": 2, "time_masks": 2}),
            "encoder": ConfigDict(
                {
                    "width": 128,
                    "heads": 4,
                    "ffn": 384,
                    "blocks": 4,
                    "tp_blocks": 1,
                    "max_positions": 1024,
                    "attention": "rows",
                    "dtype": "float32",
                }
            ),
        }
    )
    return config
