"""The nano speech tokenizer: the answering voice of the Scenes world, 12.5 codes of 9 bits a second.

    omnidiff train --config=experiments/configs/tokenizers/speech_tokenizer.py --workdir=DIR

A piece is one code long (`max_positions` 4, 30 s in the released model), so that a code is a function of its own 80 ms.
The answering voice starts each word on the 80 ms grid: a word then always has the same codes, whatever stands beside
it, and the backbone has few sequences to learn. For speech in general take `WhisperVQConfig`'s defaults.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.program = "speech_tokenizer"
    config.seed = 0
    config.batch_size = 512  # pieces of `crop_codes` codes
    config.accumulate = 1
    config.total_steps = 0  # caps the run; 0 = as planned below
    config.checkpoint_every = 1000
    config.keep_checkpoints = 1
    config.dtype = "float32"
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "sequence": 1})
    config.stages = ConfigDict({"train": ConfigDict({"steps": 800, "learning_rate": 2e-3})})
    config.optimizer = ConfigDict({"b2": 0.95, "clip_norm": 1.0, "final_fraction": 0.02, "frozen": ()})

    config.training = ConfigDict(
        {
            "crop_codes": 1,
            "validation_size": 200,
            # The strong commitment holds features to their rows while the encoder learns: under a weak one they drift
            # away from the codebook together, and most rows are never chosen again.
            "quantizer": ConfigDict({"codebook": 1.0, "commitment": 10.0, "restart": 0.01}),
            "model": ConfigDict(
                {
                    "num_mels": 80,
                    "width": 128,
                    "heads": 4,
                    "ffn": 256,
                    "layers": 1,
                    "max_positions": 4,
                    "block_size": None,
                    "pooling_position": 1,
                    "quantize_position": 1,
                    "codebook_size": 512,
                }
            ),
        }
    )
    return config
