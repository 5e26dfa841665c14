"""The speech tokenizer of Commons: the natural voice that answers, 12.5 codes of 10 bits a second.

    omnidiff data speak COMMONS
    omnidiff train --config=experiments/configs/tokenizers/commons_speech_tokenizer.py --workdir=DIR \
        --config.folder=COMMONS

COMMONS is a folder of `omnidiff data fetch commons` with `clips` (docs/commons.md). Sets have codes of the answering
voice alone: what is heard goes through the speech encoder. Unlike nano's, a code knows what was said before it, as in
the released model: natural words have no grid that they begin on. Goes on where it was stopped.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.program = "commons_speech_tokenizer"
    config.folder = ""
    config.seed = 0
    config.batch_size = 32  # pieces of `crop_codes` codes
    config.accumulate = 1
    config.total_steps = 0  # caps the run; 0 = as planned below
    config.checkpoint_every = 500
    config.keep_checkpoints = 1
    config.dtype = "float32"
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "sequence": 1})
    config.stages = ConfigDict({"train": ConfigDict({"steps": 14000, "learning_rate": 1e-3})})
    config.optimizer = ConfigDict({"b2": 0.95, "clip_norm": 1.0, "final_fraction": 0.02, "frozen": ()})

    config.training = ConfigDict(
        {
            "crop_codes": 25,
            "validation_size": 100,
            # Under a strong commitment features that know their neighbours fall together on few rows.
            "quantizer": ConfigDict({"codebook": 1.0, "commitment": 0.25, "restart": 1.0}),
            "model": ConfigDict(
                {
                    "num_mels": 80,
                    "width": 192,
                    "heads": 4,
                    "ffn": 512,
                    "layers": 4,
                    "max_positions": 512,  # 10 s
                    "block_size": 16,  # a frame sees at most 320 ms ahead
                    "pooling_position": 2,
                    "quantize_position": 2,
                    "codebook_size": 1024,
                }
            ),
        }
    )
    return config
