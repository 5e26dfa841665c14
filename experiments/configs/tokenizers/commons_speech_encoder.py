"""The speech encoder of Commons: SAN-M with CTC on natural voices that ask.

    omnidiff data speak COMMONS
    omnidiff train --config=experiments/configs/tokenizers/commons_speech_encoder.py --workdir=DIR \
        --config.folder=COMMONS

COMMONS is a folder of `omnidiff data fetch commons` with `clips` (docs/commons.md). Learns sentences that are joined of
the clips there are; validates on whole sentences in voices never learned, which are spoken then where they are missing.
Goes on where it was stopped.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.program = "commons_speech_encoder"
    config.folder = ""
    config.seed = 0
    config.batch_size = 24  # packed rows
    config.accumulate = 1
    config.total_steps = 0  # caps the run; 0 = as planned below
    config.checkpoint_every = 500
    config.keep_checkpoints = 1
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "sequence": 1})
    config.stages = ConfigDict({"train": ConfigDict({"steps": 8000, "learning_rate": 1e-3})})
    config.optimizer = ConfigDict(
        {
            "b2": 0.98,
            "weight_decay": 0.01,
            "clip_norm": 1.0,
            "warmup_fraction": 0.05,
            "final_fraction": 0.01,
            "frozen": (),
        }
    )
    config.pieces = ConfigDict({"kind": "bpe", "size": 640, "phrases": ()})  # 256 of them bytes
    config.training = ConfigDict(
        {
            "row_frames": 128,
            "utterances": 12000,
            "cmvn_utterances": 256,
            "validation_size": 200,
            "augmentation": ConfigDict({"tempo": 0.1, "gain_db": 8.0, "tilt_db": 6.0, "mel_masks": 2, "time_masks": 2}),
            "encoder": ConfigDict(
                {
                    "width": 192,
                    "heads": 4,
                    "ffn": 512,
                    "blocks": 5,
                    "tp_blocks": 1,
                    "max_positions": 1024,
                    "attention": "rows",
                    "dtype": "float32",
                }
            ),
        }
    )
    return config
