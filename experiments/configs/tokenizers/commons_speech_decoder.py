"""The speech decoder of Commons: codes of its speech tokenizer to 80-bin log-mel at 22.05 kHz, then Griffin-Lim.

    omnidiff train --config=experiments/configs/tokenizers/commons_speech_decoder.py --workdir=DIR \
        --config.folder=COMMONS --config.speech_tokenizer=CODES/export

COMMONS is a folder of `omnidiff data fetch commons` with `clips` (docs/commons.md), CODES the workdir of
`commons_speech_tokenizer.py`. Validates by the Whisper of COMMONS/whisper, if it is there. One voice, as in
`speech_decoder.py`, so the same choices. Goes on where it was stopped.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.program = "commons_speech_decoder"
    config.folder = ""
    config.seed = 0
    config.batch_size = 16  # utterances
    config.accumulate = 1
    config.total_steps = 0  # caps the run; 0 = as planned below
    config.checkpoint_every = 500
    config.keep_checkpoints = 1
    config.dtype = "float32"
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "sequence": 1})
    config.stages = ConfigDict({"train": ConfigDict({"steps": 14000, "learning_rate": 1e-3})})
    config.optimizer = ConfigDict({"b2": 0.95, "clip_norm": 1.0, "final_fraction": 0.01, "frozen": ()})

    config.speech_tokenizer = ""  # a folder: whose codes are learned
    config.joined = 2  # utterances of a row
    config.training = ConfigDict(
        {
            "crop_codes": 32,
            "utterances": 3000,
            "prompt_rate": 0.0,
            "validation_size": 24,
            "model": ConfigDict(
                {
                    "hift": None,
                    "griffin_lim_iterations": 32,
                    "flow": ConfigDict(
                        {
                            "codes": 1024,
                            "speaker_dim": 8,
                            "mel_mean": -6.0,
                            "mel_std": 2.5,
                            "steps": 6,
                            "temperature": 0.0,
                            "guidance": 0.0,
                            "encoder": ConfigDict({"width": 128, "heads": 4, "hidden": 384, "layers": 3}),
                            "estimator": ConfigDict(
                                {
                                    "channels": (128, 128),
                                    "mid_blocks": 2,
                                    "transformers": 1,
                                    "heads": 4,
                                    "head_dim": 32,
                                    "expansion": 2,
                                }
                            ),
                        }
                    ),
                }
            ),
        }
    )
    return config
